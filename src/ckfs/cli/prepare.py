"""``ckfs prepare MOUNTPOINT``: an unmounted node shall not pass for a mounted one.

pbs_mom takes any directory for its checkpoint directory, mounted or not, and would silently fill the local disk. But it
refuses to start when a part of the path belongs to a uid above 10 (docs/torque.md). So the directory *under* the mount
is given to uid 65534; what is mounted over it hides that. The mode stays as it is.

The directory is reached through a private copy of the mount that its parent lies on, without what is mounted below
(open_tree(2), Linux 5.2): nothing is unmounted, the copy is gone with its descriptor, and no call reaches what is
mounted there, which may hang or be dead.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

from ckfs.errors import MountRefused, NotPermitted
from ckfs.names import shown

NOBODY = 65534
BEFORE = "trusted.ckfs.prepared"
"""On a prepared directory: ``UID:GID`` of its owner before."""

_SYS_OPEN_TREE = 428  # the same on every architecture that Debian and Ubuntu build for
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="the directory under the mount")
    command.add_argument("--undo", action="store_true", help="give the directory back")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    print(prepare(arguments.mountpoint, undo=arguments.undo))
    return 0


def prepare(mountpoint: str, *, undo: bool) -> str:
    """Give the directory under *mountpoint* to uid 65534, or back. Returns the line to print.

    Raises MountRefused if there is no empty directory of its own, NotPermitted for callers that are not root.
    """
    name = shown(mountpoint)
    if os.geteuid() != 0:
        raise NotPermitted(f"{name}: only root can prepare a mount point")
    with _opened(mountpoint, name) as (directory, above):
        where = f"{name} (the directory under the mounted {', '.join(above)})" if above else name
        try:
            return f"{where}: {_give_back(directory) if undo else _give_away(directory, name, above)}"
        except OSError as error:
            raise NotPermitted(
                f"{where}: its file system does not let root change the owner: {error.strerror}"
            ) from error


def _give_away(directory: int, name: str, above: list[str]) -> str:
    if entries := len(os.listdir(directory)):
        look = " ('mount --bind' of its parent directory on another one shows it)" if above else ""
        raise MountRefused(
            f"{name}: not empty under the mount point, entries: {entries}, written while nothing was mounted:"
            f" move them into the mount or away first{look}"
        )
    before = os.fstat(directory)
    if before.st_uid == NOBODY:
        return f"belongs to uid {NOBODY} already"
    with contextlib.suppress(OSError):  # without it, undo gives the directory to root
        os.setxattr(directory, BEFORE, b"%d:%d" % (before.st_uid, before.st_gid))
    os.fchown(directory, NOBODY, -1)
    return f"now belongs to uid {NOBODY}, so that pbs_mom does not start on it unmounted"


def _give_back(directory: int) -> str:
    if os.fstat(directory).st_uid != NOBODY:
        return "is not prepared, nothing to undo"
    uid, gid = _owner_before(directory)
    os.fchown(directory, uid, gid)
    with contextlib.suppress(OSError):
        os.removexattr(directory, BEFORE)
    return f"belongs to {uid}:{gid} again"


def _owner_before(directory: int) -> tuple[int, int]:
    try:
        uid, _, gid = os.getxattr(directory, BEFORE).partition(b":")
        return int(uid), int(gid)
    except (OSError, ValueError):
        return 0, 0


@contextlib.contextmanager
def _opened(mountpoint: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """The directory under *mountpoint*, and the types of what is mounted over it, topmost first."""
    head, slash, last = mountpoint.rstrip("/").rpartition("/")
    if last in ("", ".", ".."):
        raise MountRefused(f"{name}: name the directory to mount on by its own name")
    with contextlib.ExitStack() as descriptors:

        def opened(path: str, flags: int, at: int | None = None) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC, dir_fd=at)
            descriptors.callback(os.close, descriptor)
            return descriptor

        try:
            parent = opened((head or "/") if slash else ".", os.O_PATH | os.O_DIRECTORY)
            copy = _without_mounts(parent)
            descriptors.callback(os.close, copy)
            _check_directory(os.stat(last, dir_fd=copy, follow_symlinks=False).st_mode, name)
            directory = opened(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, copy)
            above = _mounted_over(opened(last, os.O_PATH | os.O_NOFOLLOW, parent), parent)
        except OSError as error:
            raise MountRefused(
                f"{name}: cannot get at the directory to mount on: {error.strerror}"
            ) from error
        yield directory, above


def _check_directory(mode: int, name: str) -> None:
    if stat.S_ISLNK(mode):
        raise MountRefused(f"{name}: is a symbolic link: name the directory that it leads to")
    if not stat.S_ISDIR(mode):
        raise MountRefused(f"{name}: is not a directory, so that nothing can be mounted on it")


def _without_mounts(directory: int) -> int:
    """A descriptor of *directory* in a private copy of its mount, without the mounts below it."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC
    copy = int(call(ctypes.c_long(_SYS_OPEN_TREE), directory, b"", ctypes.c_uint(flags)))
    if copy >= 0:
        return copy
    number = ctypes.get_errno()
    if number in (errno.EPERM, errno.EACCES):
        raise NotPermitted(
            "looking under a mount needs CAP_SYS_ADMIN in this mount namespace: run ckfs prepare on the host, not in a container"
        )
    raise OSError(number, os.strerror(number))


def _mounted_over(visible: int, parent: int) -> list[str]:
    """The types of the mounts between *parent* and what is seen under the name, from the kernel's list alone."""
    mounts = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            mount, below, *_ = fields.split()
            mounts[int(mount)] = (int(below), rest.split()[0])
    types = []
    current, end = _mount_of(visible), _mount_of(parent)
    while current != end and current in mounts:
        current, kind = mounts[current]
        types.append(kind)
    return types


def _mount_of(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as fields:
        return next(int(line.split()[1]) for line in fields if line.startswith("mnt_id:"))
