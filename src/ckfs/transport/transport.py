"""What carries the kernel's requests to the file system, and the answers back: what a mount knows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ckfs.fs.locking import MOST_WAITING
from ckfs.store.gate import DATA_CALLS
from ckfs.transport.under_way import UnderWay

MOST_REQUESTS = DATA_CALLS + MOST_WAITING + 512
"""That are answered at a time: more than the calls that may wait for long, for the store or for locks, so that there is always a place
for a metadata call."""


class Transport(ABC):
    """Begun once, run once, closed once, in this order."""

    name: str
    """For people."""

    def __init__(self) -> None:
        self.requests = UnderWay()

    @abstractmethod
    def begin(self, fd: int) -> None:
        """Serve the mount whose /dev/fuse is *fd* from now on; blocking. Raises MountFailed."""

    @property
    @abstractmethod
    def details(self) -> str:
        """After :meth:`begin`, for people: what it has agreed on with the kernel."""

    @abstractmethod
    async def run(self) -> None:
        """Answer requests until the mount is gone, or :meth:`end` is called."""

    @abstractmethod
    def end(self) -> None:
        """Let :meth:`run` come to its end. Who waits for an answer yet gets EIO."""

    @abstractmethod
    def close(self) -> None:
        """Close what :meth:`begin` was given: a mount that is still there is dead from then on."""
