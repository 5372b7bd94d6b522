"""What commands of root's share that work on a store itself, whatever is mounted."""

from __future__ import annotations

import contextlib
import os
import resource
import sys

from ckfs.daemon.mounting import mount_of
from ckfs.errors import UsageError
from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.store.identity import prepare_process

_DEEPEST_CALLS = 3_000
"""Users make trees of any depth; what is deeper is left alone, and said so."""


def prepare_for_stores() -> None:
    """Once, before a store is opened."""
    prepare_process()
    allow_all_files()
    sys.setrecursionlimit(_DEEPEST_CALLS)


def allow_all_files() -> None:
    """As many open files as root may have: a walk holds a descriptor for each level of a tree."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def service_of(path: str) -> Owner:
    """Who keeps the store at *path*, so that what root makes there is the mounts' too."""
    with contextlib.suppress(OSError):
        status = os.stat(os.path.join(path, "names"), follow_symlinks=False)
        return Owner(Uid(status.st_uid), Gid(status.st_gid))
    return Owner(Uid(0), Gid(0))


def check_is_no_mount(path: str) -> None:
    """UsageError if *path* is on a mount, not a store: what users put there may look like one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            mount = mount_of(descriptor)
        finally:
            os.close(descriptor)
        if mount is not None and mount.is_ckfs:
            raise UsageError(f"{shown(path)}: on a ckfs mount: name the store, as 'ckfs mount' does")
