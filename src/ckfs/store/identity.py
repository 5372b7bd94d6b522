"""Acting in the store as a set's owner: per thread, checked, and always taken back.

Never process-wide: a daemon that serves many users from many threads would otherwise act as the wrong one.
With a uid other than 0 the thread also loses the capabilities that override file permissions, so that the store
itself is the last to check. CAP_SYS_RESOURCE, which would let root past disk quotas, is dropped at start-up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store import syscalls

ROOT = Owner(Uid(0), Gid(0))


class _Acting(threading.local):
    owner = ROOT


_acting = _Acting()


@contextmanager
def acting_as(owner: Owner) -> Iterator[None]:
    """Let the calling thread make its file system calls as *owner*, with no supplementary groups, and after the block as whom
    it made them before.

    Raises PermissionError if the kernel refuses; the thread is then as it was.
    """
    before = _acting.owner
    if owner == before:
        yield
        return
    try:
        _become(owner)
        yield
    finally:
        _back_to(before)


def _become(owner: Owner) -> None:
    syscalls.set_fsgid(owner.gid)
    syscalls.set_fsuid(owner.uid)
    _acting.owner = owner


def _back_to(owner: Owner) -> None:
    try:
        _become(owner)
    except PermissionError:  # a worker thread stuck in a user's identity must never serve another
        os.abort()


def prepare_process() -> None:
    """Once, in the main thread before any other starts: no supplementary groups, no way past disk quotas."""
    syscalls.set_thread_groups(())
    syscalls.drop_effective_capability(syscalls.CAP_SYS_RESOURCE)
