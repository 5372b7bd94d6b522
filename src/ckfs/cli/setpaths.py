"""The set that people name by its path on a mount."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.daemon.mounting import Mounted, mount_of
from ckfs.errors import CkfsError, UsageError
from ckfs.names import shown


@dataclass(frozen=True, slots=True)
class SetPath:
    """A set: the name *entry* in the open *directory* of *mount*. *shown* is what people call it."""

    shown: str
    directory: int
    entry: str
    mount: Mounted


@contextlib.contextmanager
def set_at(path: str) -> Iterator[SetPath]:
    """The set at *path*; UsageError if there is none. FileNotFoundError in the block says the same."""
    name = shown(path)
    parent, entry = os.path.split(os.path.abspath(path))
    try:
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        raise UsageError(f"{name}: there is no such set") from None
    try:
        yield SetPath(name, directory, entry, _check_is_set(directory, entry, name))
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such set") from None
    except OSError as error:
        raise CkfsError(f"{name}: {error.strerror}") from None
    finally:
        os.close(directory)


def _check_is_set(directory: int, entry: str, name: str) -> Mounted:
    """Sets are what is right below a mount; a set that is a symlink or a fifo has no attribute that says so.

    The kernel is asked whether it is a ckfs: any file system, a user's too, may have attributes of these names.
    """
    os.stat(entry, dir_fd=directory, follow_symlinks=False)
    mount = mount_of(directory)
    if mount is None or not mount.is_ckfs:
        raise UsageError(f"{name}: not in a set on a ckfs mount")
    try:
        if entry and os.getxattr(f"/proc/self/fd/{directory}", "user.ckfs.version"):
            return mount
    except OSError:
        pass
    try:
        set_name = os.getxattr(f"/proc/self/fd/{directory}", "user.ckfs.set")
    except OSError:
        raise UsageError(f"{name}: not in a set on a ckfs mount") from None
    raise UsageError(f"{name}: inside the set {shown(set_name)}: only whole sets are given and moved")
