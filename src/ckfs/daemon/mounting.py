"""The mount point: what is mounted there, mounting over it, and taking the mount away.

ckfs calls mount(2) itself and hands libfuse the open /dev/fuse: so a dead mount can be covered by a new one (libfuse
would first stat the mount point, which fails on a dead one) and no bare directory ever shows.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from dataclasses import dataclass

from ckfs.errors import MountFailed, MountRefused
from ckfs.names import shown
from ckfs.store import syscalls

FILE_SYSTEM = "fuse.ckfs"

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH = 2
_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mountinfo. *path* is as the kernel sees it."""

    path: bytes
    kind: str
    source: bytes


def mounts() -> list[Mounted]:
    """What is mounted in this mount namespace, lower mounts first."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parsed(line) for line in lines]


def _parsed(line: bytes) -> Mounted:
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    kind, source, *_ = after.split(b" ")
    return Mounted(_unescaped(before.split(b" ")[4]), kind.decode(), _unescaped(source))


def _unescaped(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def top_mount(path: str) -> Mounted | None:
    """What is mounted right at *path*, the uppermost if there are several."""
    wanted = os.fsencode(path)
    return next((mounted for mounted in reversed(mounts()) if mounted.path == wanted), None)


def resolved(mountpoint: str) -> str:
    """The mount point's path without links. Raises MountRefused if it is no directory, or holds a live ckfs."""
    path = os.path.realpath(mountpoint)
    covered = top_mount(path)
    if covered is not None and covered.kind == FILE_SYSTEM:
        if not is_dead(path):
            raise MountRefused(f"{shown(path)}: ckfs is mounted here already: umount it first")
        return path
    try:
        status = os.stat(path)
    except OSError as error:
        raise MountRefused(f"{shown(path)}: cannot mount here: {error.strerror}: give a directory") from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountRefused(f"{shown(path)}: cannot mount here: not a directory")
    return path


def is_dead(path: str) -> bool:
    """Whether the mount at *path* has lost its daemon. One that does not answer at all is not dead: it may yet."""
    failure: list[int | None] = []

    def ask() -> None:
        try:
            os.stat(path)
        except OSError as error:
            failure.append(error.errno)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    return failure == [errno.ENOTCONN]


def mount(store: str, path: str, *, read_only: bool) -> int:
    """Mount over *path* and return the /dev/fuse descriptor to serve. Raises MountFailed."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(
            f"/dev/fuse: {error.strerror}: load the kernel's fuse module (modprobe fuse)"
        ) from None
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    try:
        syscalls.mount(os.fsencode(store), os.fsencode(path), FILE_SYSTEM.encode(), flags, data.encode())
    except OSError as error:
        os.close(fd)
        raise MountFailed(f"{shown(path)}: mount failed: {error.strerror or error}") from None
    return fd


def unmount(path: str) -> None:
    """Take the mount away, from under its users if they have it open. OSError if there is none."""
    try:
        syscalls.unmount(os.fsencode(path), 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        syscalls.unmount(os.fsencode(path), _MNT_DETACH)


def remove_dead(path: str) -> None:
    """Take away dead ckfs mounts at *path*, which a mount that has just gone had covered."""
    while (covered := top_mount(path)) is not None and covered.kind == FILE_SYSTEM and is_dead(path):
        syscalls.unmount(os.fsencode(path), _MNT_DETACH)


def read_ahead(device: int, kib: int) -> None:
    """Let the kernel read ahead *kib* KiB on the mount whose st_dev is *device*; through the page cache FUSE reads
    would otherwise stay at 128 KiB. OSError where sysfs is not mounted or is read-only."""
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with open(path, "w") as setting:
        setting.write(str(kib))
