"""``ckfs give SET USER``: root gives a set to a user, through a mount, exactly as chown would."""

from __future__ import annotations

import argparse
import errno
import os

from ckfs.cli.users import uid_of
from ckfs.daemon.mounting import Mounted, mount_of
from ckfs.errors import CkfsError, NotPermitted, UsageError
from ckfs.names import shown


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("set", metavar="SET", help="the set's path on a mount")
    command.add_argument("user", metavar="USER", help="name or uid")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    print(give(arguments.set, arguments.user))
    return 0


def give(path: str, user: str) -> str:
    """Give the set at *path* to *user* (a name or a uid). Returns the line to print; raises CkfsError."""
    name = shown(path)
    if os.geteuid() != 0:
        raise NotPermitted(f"{name}: only root gives sets to users")
    uid = uid_of(user)
    parent, entry = os.path.split(os.path.abspath(path))
    try:
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        raise UsageError(f"{name}: there is no such set") from None
    try:
        check_is_set(directory, entry, name)
        os.chown(entry, uid, -1, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such set") from None
    except OSError as error:
        reason = {errno.EDQUOT: "it does not fit the user's quota"}.get(error.errno or 0, error.strerror)
        raise CkfsError(f"{name}: cannot give it to {shown(user)}: {reason}; it stays as it was") from None
    finally:
        os.close(directory)
    return f"{name}: belongs to {shown(user)} now"


def check_is_set(directory: int, entry: str, name: str) -> Mounted:
    """The mount on which *entry* of the open *directory*, which people call *name*, is a set. UsageError if it is none. Sets are what is right below a mount; a set that is a symlink or a fifo has no attribute that says so.

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
    raise UsageError(f"{name}: inside the set {shown(set_name)}: only whole sets are given")
