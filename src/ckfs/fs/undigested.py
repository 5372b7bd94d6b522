"""Which images have become complete, and have no digest yet. All of it belongs to the event loop's thread,
but what is said otherwise."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace

import trio

from ckfs.fs.hashed import Written
from ckfs.fs.inodes import Place
from ckfs.names import Inode

_MOST = 10_000
_DELAY_S = 1.0
"""An image that is replaced, moved or removed right after it was made is not read for nothing."""


@dataclass(frozen=True, slots=True)
class Undigested:
    """An image, where it was when it became complete, its digest if that is known from writing it, and how often it was tried to be made."""

    ino: Inode
    place: Place
    since_s: float
    written: Written | None = None
    tries: int = 0


class UndigestedImages:
    """A queue of a limited length. What does not fit is left to ``ckfs scrub``."""

    def __init__(self, *, most: int = _MOST, delay_s: float = _DELAY_S) -> None:
        self._most = most
        self._delay_s = delay_s
        self._images: dict[Inode, Undigested] = {}
        self._some = trio.Event()
        self._loop: trio.lowlevel.TrioToken | None = None

    def __len__(self) -> int:
        return len(self._images)

    def add(self, ino: Inode, place: Place, written: Written | None = None) -> None:
        """Put it last, also if it was waiting already: it has been completed anew."""
        self._images.pop(ino, None)
        self._put_last(Undigested(ino, place, time.monotonic(), written))

    def again(self, image: Undigested) -> None:
        """Put it last, for one try more, unless it has been completed anew meanwhile."""
        if image.ino not in self._images:
            self._put_last(replace(image, since_s=time.monotonic(), tries=image.tries + 1))

    def _put_last(self, image: Undigested) -> None:
        if len(self._images) < self._most:
            self._images[image.ino] = image
            self._some.set()

    def add_from_thread(self, ino: Inode, place: Place) -> None:
        """As :meth:`add`, from any thread, and not at once; nothing while nobody makes digests."""
        if self._loop is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(self.add, ino, place)

    async def next(self) -> Undigested:
        """The one that has been waiting longest, once it has waited for a moment."""
        self._loop = trio.lowlevel.current_trio_token()
        while True:
            while not self._images:
                self._some = trio.Event()
                await self._some.wait()
            image = next(iter(self._images.values()))
            await trio.sleep(max(0.0, image.since_s + self._delay_s - time.monotonic()))
            if self._images.get(image.ino) is image:  # not completed once more meanwhile
                return self._images.pop(image.ino)
