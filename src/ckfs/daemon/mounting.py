"""The mount point: what is mounted there, mounting over it, and taking the mount away.

ckfs calls mount(2) itself and hands libfuse the open /dev/fuse: so a dead mount can be covered by a new one (libfuse
would first stat the mount point, which fails on a dead one) and no bare directory ever shows.
"""

from __future__ import annotations

import errno
import os
import re
import select
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
    """A line of /proc/self/mountinfo. *path* is as the kernel sees it.

    *device* (``major:minor``) is one file system's alone for as long as it is in use; *mount_id* is the mount's. *options*
    are the file system's own.
    """

    path: bytes
    kind: str
    source: bytes
    mount_id: int
    device: str
    options: tuple[str, ...]

    @property
    def is_ckfs(self) -> bool:
        """Whether root mounted it as ckfs: a user may give his own FUSE file system any type, but not root's user_id."""
        return self.kind == FILE_SYSTEM and "user_id=0" in self.options


def mounts() -> list[Mounted]:
    """What is mounted in this mount namespace, lower mounts first."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parsed(line) for line in lines]


def _parsed(line: bytes) -> Mounted:
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    mount_id, _, device, _, path, *_ = before.split(b" ")
    kind, source, options = after.split(b" ", 2)
    return Mounted(
        _unescaped(path),
        kind.decode(),
        _unescaped(source),
        int(mount_id),
        device.decode(),
        tuple(options.decode("utf-8", "replace").split(",")),
    )


def _unescaped(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def top_mount(path: str) -> Mounted | None:
    """What is mounted right at *path*, the uppermost if there are several."""
    wanted = os.fsencode(path)
    return next((mounted for mounted in reversed(mounts()) if mounted.path == wanted), None)


def mount_of(descriptor: int) -> Mounted | None:
    """The mount that an open file or directory was reached through; None if it is not mounted any more."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as fields:
        wanted = next(int(line.split()[1]) for line in fields if line.startswith("mnt_id:"))
    return next((mounted for mounted in mounts() if mounted.mount_id == wanted), None)


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


@dataclass(frozen=True, slots=True)
class OwnMount:
    """This process's mount: where it is, the /dev/fuse descriptor to serve, and the device number that tells it apart."""

    path: str
    fd: int
    device: str

    def unmount(self) -> bool:
        """Take the mount away, from under its users if they have it open. False if it is not the uppermost there: what
        others mounted over it, or after somebody took it away, is theirs. OSError if the kernel refuses."""
        top = top_mount(self.path)
        if top is None or top.device != self.device or not self._is_connected():
            return False
        try:
            syscalls.unmount(os.fsencode(self.path), 0)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            syscalls.unmount(os.fsencode(self.path), _MNT_DETACH)
        return True

    def _is_connected(self) -> bool:
        """Whether the file system still exists: once it is gone, another may have its device number."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def mount(store: str, path: str, *, read_only: bool) -> OwnMount:
    """Mount over *path*. Raises MountFailed."""
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
    top = top_mount(path)
    return OwnMount(path, fd, "" if top is None else top.device)


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
