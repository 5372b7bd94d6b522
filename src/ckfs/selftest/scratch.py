"""The directory in which a selftest works: made with a name of its own, and removed whatever is in it, and whoever's it is.

A selftest that was killed leaves it. The next one knows by what is written there whether its process is gone; of another
host's it knows nothing, and takes one for left behind that the store's clock says is an hour old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.store import syscalls
from ckfs.store.identity import ROOT, acting_as

_PREFIX = ".ckfs-selftest-"
_NAME = re.compile(r"\.ckfs-selftest-[0-9a-f]{16}")
_WHO = b"who"
_LONGEST_BYTES = 1024
_ABANDONED_NS = 3_600_000_000_000
_MODE = 0o711
"""Users pass through it, and know no name in it."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The process of a selftest: on which host, under which kernel, its number, and when it started, in ticks since boot."""

    node: str
    boot: str
    pid: int
    started: str

    @classmethod
    def here(cls, pid: int) -> Worker:
        return cls(socket.gethostname(), _boot(), pid, _started(pid) or "")

    def encode(self) -> bytes:
        return f"{self.boot} {self.pid} {self.started} {self.node}\n".encode()

    @classmethod
    def decode(cls, raw: bytes) -> Worker | None:
        words = raw.decode("utf-8", "replace").split()
        if len(words) != 4 or not words[1].isdigit():
            return None
        return cls(words[3], words[0], int(words[1]), words[2])

    @property
    def is_of_this_kernel(self) -> bool:
        return self.boot == _boot()

    @property
    def is_alive(self) -> bool:
        """Of one of this kernel."""
        return _started(self.pid) == self.started

    @property
    def may_be_at_it(self) -> bool:
        """Of another host's nothing is known."""
        if self.is_of_this_kernel:
            return self.is_alive
        return self.node != socket.gethostname()


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _started(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class LeftOver:
    """*name* in the store; *by* says who left it; *in_use*: it may belong to a selftest that runs."""

    name: str
    by: str
    in_use: bool


@contextlib.contextmanager
def _opened(dir_fd: int | None, name: str | bytes) -> Iterator[int]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_store(path: str) -> Iterator[int]:
    """The store's directory, by the path that the admin gave: links of his are followed."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def new_name() -> str:
    return _PREFIX + secrets.token_hex(8)


def make(store_fd: int, name: str, keeper: Owner, worker: Worker) -> None:
    """One of *keeper*'s for *worker*."""
    with acting_as(keeper):
        os.mkdir(name, 0o700, dir_fd=store_fd)
        try:
            with _opened(store_fd, name) as fd:
                who = os.open(_WHO, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=fd)
                try:
                    os.write(who, worker.encode())
                finally:
                    os.close(who)
                os.fchmod(fd, _MODE)
        except OSError:
            with contextlib.suppress(OSError):
                remove(store_fd, name)
            raise


def left_overs(store_fd: int, keeper: Owner, own: str) -> list[LeftOver]:
    """What other selftests have left, or work in. *own* is that of this one, whose time is now."""
    now_ns = os.stat(own, dir_fd=store_fd, follow_symlinks=False).st_mtime_ns
    found = []
    with acting_as(keeper):
        for name in sorted(os.listdir(store_fd)):
            if not _NAME.fullmatch(name) or name == own:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=store_fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and status.st_uid in (ROOT.uid, keeper.uid):
                    found.append(_judged(store_fd, name, now_ns - status.st_mtime_ns))
    return found


def _judged(store_fd: int, name: str, age_ns: int) -> LeftOver:
    worker = _worker_of(store_fd, name)
    is_old = age_ns > _ABANDONED_NS
    if worker is None:
        return LeftOver(name, "by nobody knows whom", in_use=not is_old)
    by = f"process {worker.pid} on {shown(worker.node)}"
    return LeftOver(name, by, in_use=worker.may_be_at_it and (worker.is_of_this_kernel or not is_old))


def _worker_of(store_fd: int, name: str) -> Worker | None:
    try:
        with _opened(store_fd, name) as fd:
            who = os.open(_WHO, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
            try:
                return Worker.decode(os.pread(who, _LONGEST_BYTES, 0))
            finally:
                os.close(who)
    except OSError:
        return None


def remove(store_fd: int, name: str) -> None:
    """With all in it, each by its directory's owner, since root may be nobody there. Raises OSError for what stays."""
    keeper = _owner_of(store_fd, name)
    if keeper is not None:
        _remove(store_fd, os.fsencode(name), keeper)


def within(path: str, name: str) -> list[str]:
    """The paths of what is called *name* in the directories that are in the scratch directory *path*."""
    with _opened(None, path) as fd:
        rooms = [os.fsdecode(room) for room in syscalls.names_in(fd)]
    places = (os.path.join(path, room, name) for room in rooms)
    return [place for place in places if os.path.isdir(place)]


def empty(path: str) -> None:
    """Remove all that is in the directory *path*, which nobody else can name."""
    with _opened(None, path) as fd:
        status = os.fstat(fd)
        owner = Owner(Uid(status.st_uid), Gid(status.st_gid))
        for below in list(syscalls.names_in(fd)):
            _remove(fd, below, owner)


def _owner_of(dir_fd: int, name: str | bytes) -> Owner | None:
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Owner(Uid(status.st_uid), Gid(status.st_gid))


def _remove(dir_fd: int, name: bytes, parent: Owner) -> None:
    """*name* in the directory *dir_fd* of *parent*'s."""
    with acting_as(parent):
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            _gone(lambda: os.unlink(name, dir_fd=dir_fd))
            return
    own = Owner(Uid(status.st_uid), Gid(status.st_gid))
    with contextlib.suppress(FileNotFoundError), acting_as(own):  # one that had hung may remove it, too
        if stat.S_IMODE(status.st_mode) & 0o700 != 0o700:
            os.chmod(name, 0o700, dir_fd=dir_fd)
        with _opened(dir_fd, name) as fd:
            # What says whose it is goes last: removing may be interrupted, too.
            for below in sorted(syscalls.names_in(fd), key=lambda one: one == _WHO):
                _remove(fd, below, own)
    with acting_as(parent):
        _gone(lambda: os.rmdir(name, dir_fd=dir_fd))


def _gone(remove: Callable[[], object]) -> None:
    try:
        remove()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
