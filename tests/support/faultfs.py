"""A store that fails on purpose: a passthrough file system that hangs, slows, fails, squashes root or dies on command.

As a program (its own process: a process that serves a mount must never touch it)::

    python -m tests.support.faultfs BACKING MOUNTPOINT CONTROL_SOCKET [--squash]

it serves BACKING on MOUNTPOINT, prints ``ready``, and obeys lines on CONTROL_SOCKET, each answered by one line, ``ok …`` or
``error …``:

- ``hang OP[,OP…] [PATH-REGEX]`` holds matching operations back, before they do anything, until ``release``. As on NFS, a killed
  caller comes free; with ``hang-hard`` he does not, as on a FUSE store whose server takes no interrupts.
- ``release [OP[,OP…]]`` lets all that hang go on, or what the hangs of these operations hold: a call that its caller gave up
  long ago happens now.
- ``slow OP[,OP…] SECONDS [PATH-REGEX]``; ``fail OP[,OP…] ERRNO [COUNT] [PATH-REGEX]``; ``clear`` ends both.
- ``squash`` makes root the user 65534 for every decision and for the ownership of what it creates, and root's group the group
  65534, as root_squash does on NFS (of which :mod:`tests.support.nfsfs` has more).
- ``die`` ends the process without unmounting: every call on the store is ENOTCONN from then on.
- ``stats`` answers JSON: calls by operation, and what hangs.

An operation is named by the method of :class:`FaultFs` that serves it, ``*`` means each. A path is relative to the store's root.
Every backing call is made with the caller's file system identity, so that the backing file system decides about permissions, and what
moves data in a thread. Nothing is cached, as on a network store that several hosts use.

Tests use :func:`fault_store`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from tests.support.mounting import is_mounted
from tests.support.preloaded import Preloaded, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

NOBODY = 65534
_MAX_TASKS = 4000  # requests served at once; each that hangs keeps one of pyfuse3's tasks
_KILLED_POLL_S = 0.05
_MOMENTARY = frozenset({"flush", "readdir"})
"""Calls on open files that are not worth a thread either."""
_LARGEST_ERRNO = 511  # the kernel refuses a FUSE reply with more, and the caller would wait for ever
# Each write carries its offset, and comes from memory without alignment; the kernel truncates by setattr.
_NOT_PASSED_ON = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND | os.O_DIRECT

P = ParamSpec("P")
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


# --- identity -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Make this thread's file system calls as *uid* and *gid*; glibc's setfsuid acts on one thread only."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        if _libc.setfsuid(-1) != uid or _libc.setfsgid(-1) != gid:
            raise OSError(errno.EPERM, "the file system identity could not be switched")
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)


def thread_group_of(tid: int) -> int:
    """The process of the thread *tid*, or 0 if it is gone (or in another pid namespace)."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            return next((int(line.split()[1]) for line in status if line.startswith(b"Tgid:")), 0)
    except OSError:
        return 0


class _Deaths:
    """Which processes were killed; each is looked at once per interval, however many of its calls hang."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, bool]] = {}

    def has(self, process: int) -> bool:
        """Whether *process* has gone, or was sent SIGKILL and still waits for its calls here."""
        until, killed = self._seen.get(process, (0.0, False))
        if not killed and time.monotonic() >= until:
            killed = _is_killed(process)
            self._seen[process] = (time.monotonic() + _KILLED_POLL_S, killed)
        return killed


def _is_killed(process: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:
        return True
    return any(_has_sigkill_pending(f"/proc/{process}/task/{thread}/status") for thread in threads)


def _has_sigkill_pending(status_file: str) -> bool:
    try:
        with open(status_file, "rb") as status:
            pending = next((line.split()[1] for line in status if line.startswith(b"SigPnd:")), b"0")
    except OSError:
        return False  # that thread has ended
    return bool(int(pending, 16) & 1 << (signal.SIGKILL - 1))


# --- what goes wrong ----------------------------------------------------------------------------------------------------


@dataclass
class _Rule:
    """Which calls a fault is for."""

    ops: frozenset[str]
    path: re.Pattern[str]

    def matches(self, op: str, path: str) -> bool:
        return (op in self.ops or "*" in self.ops) and self.path.search(path) is not None


@dataclass
class _Hang(_Rule):
    killable: bool = True
    released: trio.Event = field(default_factory=trio.Event)


@dataclass
class _Slow(_Rule):
    seconds: float = 0.0


@dataclass
class _Fail(_Rule):
    number: int = errno.EIO
    left: int | None = None  # None: for ever


class Faults:
    """The faults that are on, and what was asked of the store so far."""

    def __init__(self, *, squash: bool) -> None:
        self.squash = squash
        self._hangs: list[_Hang] = []
        self._slows: list[_Slow] = []
        self._fails: list[_Fail] = []
        self._calls: Counter[str] = Counter()
        self._hanging: list[str] = []
        self._deaths = _Deaths()

    @property
    def are_any(self) -> bool:
        """Whether :meth:`strike` could do more than :meth:`count`."""
        return bool(self._hangs or self._slows or self._fails)

    def count(self, op: str) -> None:
        self._calls[op] += 1

    async def strike(self, op: str, path: str, process: int) -> None:
        """Let happen to the call *op* on *path* what the rules say. Raises the error that a rule injects."""
        self.count(op)
        for hang in [h for h in self._hangs if h.matches(op, path)]:
            await self._wait(hang, f"{op} {path}", process)
        for slow in [s for s in self._slows if s.matches(op, path)]:
            await trio.sleep(slow.seconds)
        for fail in [f for f in self._fails if f.matches(op, path) and f.left != 0]:
            if fail.left is not None:
                fail.left -= 1
            raise OSError(fail.number, "injected")

    async def _wait(self, hang: _Hang, what: str, process: int) -> None:
        self._hanging.append(what)
        try:
            while not hang.released.is_set():
                with trio.move_on_after(_KILLED_POLL_S):
                    await hang.released.wait()
                if hang.killable and process and self._deaths.has(process):
                    raise InterruptedError(errno.EINTR, "the caller was killed")
        finally:
            self._hanging.remove(what)

    def command(self, line: str) -> str:
        """Obey one line of the control protocol; the result is its answer."""
        word, *args = line.split()
        match word:
            case "hang" | "hang-hard":
                self._hangs.append(_Hang(_ops(args[0]), _regex(args[1:]), killable=word == "hang"))
            case "release":
                released = _ops(args[0]) if args else OPERATIONS | {"*"}
                for hang in [h for h in self._hangs if h.ops <= released]:
                    hang.released.set()
                    self._hangs.remove(hang)
            case "slow":
                self._slows.append(_Slow(_ops(args[0]), _regex(args[2:]), float(args[1])))
            case "fail":
                count = int(args[2]) if args[2:] and args[2].isdigit() else None
                pattern = _regex(args[2:] if count is None else args[3:])
                self._fails.append(_Fail(_ops(args[0]), pattern, _errno(args[1]), count))
            case "clear":
                self._slows.clear()
                self._fails.clear()
            case "squash":
                self.squash = True
            case "stats":
                return json.dumps({"calls": dict(self._calls), "hanging": self._hanging})
            case "die":
                os._exit(1)
            case _:
                raise ValueError(f"unknown command {word!r}")
        return ""


def _ops(text: str) -> frozenset[str]:
    ops = frozenset(text.split(","))
    unknown = ops - OPERATIONS - {"*"}
    if unknown:
        raise ValueError(f"no such operation: {', '.join(sorted(unknown))}")
    return ops


def _regex(args: Sequence[str]) -> re.Pattern[str]:
    return re.compile(args[0] if args else "")


def _errno(text: str) -> int:
    number = int(text) if text.isdigit() else int(getattr(errno, text))
    if not 0 < number <= _LARGEST_ERRNO:
        raise ValueError(f"errno {number} cannot be injected through FUSE")
    return number


# --- the file system ----------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """An inode that the kernel knows. Its O_PATH descriptor keeps the backing's inode number from being used again."""

    fd: int
    lookups: int

    @property
    def link(self) -> str:
        return f"/proc/self/fd/{self.fd}"


def answers(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Answer errors as FUSE wants them: anything but FUSEError would end the process."""

    @functools.wraps(method)
    async def wrapper(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(self, *args, **kwargs)
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc

    return wrapper


class FaultFs(pyfuse3.Operations):
    """Every operation on the backing directory, by descriptors and the caller's identity, after :meth:`Faults.strike`."""

    enable_writeback_cache = False

    def __init__(self, backing: str, faults: Faults) -> None:
        super().__init__()
        root = os.open(backing, os.O_PATH | os.O_DIRECTORY)
        self._faults = faults
        self._top = os.readlink(f"/proc/self/fd/{root}")
        self._root_ino = os.fstat(root).st_ino
        self._nodes = {pyfuse3.ROOT_INODE: Node(root, 1)}
        self._openers: dict[int, int] = {}
        self._listings: dict[int, list[bytes]] = {}
        self._limiter = trio.CapacityLimiter(64)

    # Steps that the operations share

    async def _call(
        self, op: str, ctx: pyfuse3.RequestContext, inode: int, name: bytes, call: Callable[[], T]
    ) -> T:
        if self._faults.are_any:
            await self._faults.strike(op, self._path(inode, name), thread_group_of(ctx.pid))
        else:
            self._faults.count(op)
        with acting_as(*self._who(ctx)):  # a moment on a local disk: it is not worth a thread
            return call()

    def _who(self, ctx: pyfuse3.RequestContext) -> tuple[int, int]:
        """Whom the store takes the caller for, by uid and gid."""
        if not self._faults.squash:
            return ctx.uid, ctx.gid
        return ctx.uid or NOBODY, ctx.gid or NOBODY

    async def _on_handle(self, op: str, fh: int, call: Callable[[], T]) -> T:
        """A call on an open file: its rights were checked when it was opened."""
        if self._faults.are_any:
            await self._faults.strike(op, self._shown(fh), self._openers[fh])
        else:
            self._faults.count(op)
        if op in _MOMENTARY:
            return call()
        return await trio.to_thread.run_sync(call, limiter=self._limiter)

    def _path(self, inode: int, name: bytes) -> str:
        return os.path.normpath(os.path.join(self._shown(self._nodes[inode].fd), os.fsdecode(name)))

    def _shown(self, fd: int) -> str:
        try:
            return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self._top)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return "too deep for a path"

    def _attributes(self, st: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        for key in ("mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"):
            setattr(entry, f"st_{key}", getattr(st, f"st_{key}"))
        for key in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, key, getattr(st, key))
        entry.st_ino = pyfuse3.ROOT_INODE if st.st_ino == self._root_ino else st.st_ino
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _known(self, fd: int) -> pyfuse3.EntryAttributes:
        """Count one look-up of the inode behind the O_PATH descriptor *fd*, which belongs to this object from here on."""
        entry = self._attributes(os.fstat(fd))
        node = self._nodes.get(entry.st_ino)
        if node is None:
            self._nodes[entry.st_ino] = Node(fd, 1)
        else:
            node.lookups += 1
            os.close(fd)
        return entry

    async def _made(
        self, op: str, ctx: pyfuse3.RequestContext, parent: int, name: bytes, make: Callable[[int], object]
    ) -> pyfuse3.EntryAttributes:
        """Make *name* in *parent* by *make*, which is given the parent's descriptor, and look it up."""
        parent_fd = self._nodes[parent].fd

        def call() -> int:
            make(parent_fd)
            return pinned(name, parent_fd)

        return self._known(await self._call(op, ctx, parent, name, call))

    def _opened(self, fd: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._openers[fd] = thread_group_of(ctx.pid)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fd))

    # Names

    @answers
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent_fd = self._nodes[parent_inode].fd
        return self._known(
            await self._call("lookup", ctx, parent_inode, name, lambda: pinned(name, parent_fd))
        )

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            node = self._nodes[inode]
            node.lookups -= count
            if node.lookups <= 0 and inode != pyfuse3.ROOT_INODE:
                os.close(self._nodes.pop(inode).fd)

    @answers
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IMODE(mode) & ~ctx.umask
        return await self._made("mkdir", ctx, parent_inode, name, lambda at: os.mkdir(name, mode, dir_fd=at))

    @answers
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode &= ~ctx.umask
        return await self._made(
            "mknod", ctx, parent_inode, name, lambda at: os.mknod(name, mode, rdev, dir_fd=at)
        )

    @answers
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._made(
            "symlink", ctx, parent_inode, name, lambda at: os.symlink(target, name, dir_fd=at)
        )

    @answers
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        source = self._nodes[inode].link
        return await self._made(
            "link", ctx, new_parent_inode, new_name, lambda at: _link(source, new_name, at)
        )

    @answers
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        fd = self._nodes[inode].fd
        return await self._call("readlink", ctx, inode, b"", lambda: os.readlink(b"", dir_fd=fd))

    @answers
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        at = self._nodes[parent_inode].fd
        await self._call("unlink", ctx, parent_inode, name, lambda: os.unlink(name, dir_fd=at))

    @answers
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        at = self._nodes[parent_inode].fd
        await self._call("rmdir", ctx, parent_inode, name, lambda: os.rmdir(name, dir_fd=at))

    @answers
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags:  # RENAME_NOREPLACE and RENAME_EXCHANGE: NFS has neither
            raise pyfuse3.FUSEError(errno.EINVAL)
        old, new = self._nodes[parent_inode_old].fd, self._nodes[parent_inode_new].fd
        await self._call(
            "rename",
            ctx,
            parent_inode_old,
            name_old,
            lambda: os.rename(name_old, name_new, src_dir_fd=old, dst_dir_fd=new),
        )

    # Attributes

    @answers
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        fd = self._nodes[inode].fd
        return self._attributes(await self._call("getattr", ctx, inode, b"", lambda: os.fstat(fd)))

    @answers
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._nodes[inode]
        return self._attributes(
            await self._call("setattr", ctx, inode, b"", lambda: _set(node, attr, fields, fh))
        )

    @answers
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        link = self._nodes[inode].link
        return await self._call("access", ctx, inode, b"", lambda: os.access(link, mode, effective_ids=True))

    @answers
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        link = self._nodes[pyfuse3.ROOT_INODE].link
        st = await self._call("statfs", ctx, pyfuse3.ROOT_INODE, b"", lambda: os.statvfs(link))
        reply = pyfuse3.StatvfsData()
        for key in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(reply, f"f_{key}", getattr(st, f"f_{key}"))
        return reply

    @answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        link = self._nodes[inode].link
        check_user(name)
        await self._call("setxattr", ctx, inode, b"", lambda: os.setxattr(link, name, value))

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        link = self._nodes[inode].link
        check_user(name)
        return await self._call("getxattr", ctx, inode, b"", lambda: os.getxattr(link, name))

    @answers
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        link = self._nodes[inode].link
        names = await self._call("listxattr", ctx, inode, b"", lambda: self.names_of_attributes(link))
        return [os.fsencode(name) for name in names if name.startswith("user.")]

    @staticmethod
    def names_of_attributes(link: str) -> list[str]:
        """Of the file that *link* leads to. Called in a thread that acts as the caller."""
        return os.listxattr(link)

    @answers
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        link = self._nodes[inode].link
        check_user(name)
        await self._call("removexattr", ctx, inode, b"", lambda: os.removexattr(link, name))

    # Data

    @answers
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        at = self._nodes[parent_inode].fd
        mode = stat.S_IMODE(mode) & ~ctx.umask
        flags = flags & ~_NOT_PASSED_ON | flags & (os.O_EXCL | os.O_TRUNC) | os.O_CREAT | os.O_NOFOLLOW
        fd = await self._call(
            "create", ctx, parent_inode, name, lambda: os.open(name, flags, mode, dir_fd=at)
        )
        return self._opened(fd, ctx), self._known(os.open(f"/proc/self/fd/{fd}", os.O_PATH))

    @answers
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        link = self._nodes[inode].link
        flags &= ~_NOT_PASSED_ON
        fd = await self._call("open", ctx, inode, b"", lambda: os.open(link, flags))
        return self._opened(fd, ctx)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._on_handle("read", fh, lambda: os.pread(fh, size, off))

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._on_handle("write", fh, lambda: os.pwrite(fh, buf, off))

    @answers
    async def flush(self, fh: int) -> None:
        await self._on_handle("flush", fh, lambda: None)

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._on_handle("fsync", fh, lambda: os.fdatasync(fh) if datasync else os.fsync(fh))

    @answers
    async def release(self, fh: int) -> None:
        del self._openers[fh]
        os.close(fh)

    # Directories

    @answers
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        link = self._nodes[inode].link
        flags = os.O_RDONLY | os.O_DIRECTORY
        return self._opened(
            await self._call("opendir", ctx, inode, b"", lambda: os.open(link, flags)), ctx
        ).fh

    @answers
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id == 0 or fh not in self._listings:
            self._listings[fh] = await self._on_handle("readdir", fh, lambda: names_in(fh))
        for number, name in enumerate(self._listings[fh][start_id:], start_id + 1):
            try:
                found = pinned(name, fh)
            except FileNotFoundError:
                continue  # removed since
            entry = self._attributes(os.fstat(found))
            if not pyfuse3.readdir_reply(token, name, entry, number):
                os.close(found)
                return
            self._known(found)

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._on_handle("fsyncdir", fh, lambda: os.fsync(fh))

    @answers
    async def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)
        del self._openers[fh]
        os.close(fh)


OPERATIONS = frozenset(
    name for name in vars(FaultFs) if not name.startswith("_") and callable(getattr(FaultFs, name))
) - {"forget", "release", "releasedir"}
"""The names that rules may use: what a caller waits for."""


def pinned(name: bytes, parent_fd: int) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent_fd)


def names_in(fd: int) -> list[bytes]:
    """In an order that is each directory's own: that of a copy, and the offsets in it, are others, as on most file systems."""
    names = [os.fsencode(name) for name in os.listdir(fd)]
    seed = os.fstat(fd).st_ino.to_bytes(8, "little")
    return sorted(names, key=lambda name: hashlib.blake2b(name, key=seed).digest())


def _link(source: str, name: bytes, parent_fd: int) -> None:
    os.link(source, os.fsdecode(name), dst_dir_fd=parent_fd, follow_symlinks=True)


def check_user(name: bytes) -> None:
    if not name.startswith(b"user."):
        raise OSError(errno.EOPNOTSUPP, "only user attributes")


def _set(
    node: Node, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None
) -> os.stat_result:
    """Change what *fields* says, as the calling thread: a network store checks that one, not the open file."""
    if fields.update_size:
        os.truncate(node.link if fh is None else fh, attr.st_size)
    if fields.update_mode:
        os.chmod(node.link, stat.S_IMODE(attr.st_mode))
    if fields.update_uid or fields.update_gid:
        uid = attr.st_uid if fields.update_uid else -1
        os.chown(node.link, uid, attr.st_gid if fields.update_gid else -1)
    if fields.update_atime or fields.update_mtime:
        now = os.fstat(node.fd)
        atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
        os.utime(node.link, ns=(atime, attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns))
    return os.fstat(node.fd)


# --- the process --------------------------------------------------------------------------------------------------------


async def _obey(faults: Faults, stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            for line in data.decode().splitlines():
                try:
                    answer = f"ok {faults.command(line)}"
                except (ValueError, IndexError, AttributeError, re.error) as exc:
                    answer = f"error {exc}"
                await stream.send_all(f"{answer.strip()}\n".encode())


async def _serve(faults: Faults, control: str) -> None:
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(control)
    listener.listen()
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_listeners, functools.partial(_obey, faults))
        nursery.start_soon(serve, [trio.SocketListener(listener)])
        print("ready", flush=True)
        await pyfuse3.main(max_tasks=_MAX_TASKS)
        nursery.cancel_scope.cancel()


def main(backing: str, mountpoint: str, control: str, *options: str) -> None:
    """Serve until the mount is taken away."""
    faults = Faults(squash="--squash" in options)
    run(FaultFs(backing, faults), faults, mountpoint, control)


def run(fs: FaultFs, faults: Faults, mountpoint: str, control: str) -> None:
    """Serve *fs* until the mount is taken away."""
    os.umask(0)
    os.setgroups([])  # noqa: TID251 - a process of its own
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each file that the kernel knows keeps a descriptor
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    pyfuse3.init(fs, mountpoint, {"fsname=faultfs", "allow_other"})
    try:
        trio.run(_serve, faults, control)
    finally:
        pyfuse3.close(unmount=False)


# --- for tests ----------------------------------------------------------------------------------------------------------


class FaultStore:
    """A running fault store, from the test's side."""

    def __init__(self, path: Path, backing: Path, process: Process, control: str) -> None:
        self.path = path
        """Where the faulty store is mounted."""
        self.backing = backing
        """The same files without any fault."""
        self.process = process
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(control)
        self._answers = self._socket.makefile("r")

    def hang(self, *ops: str, path: str = "", killable: bool = True) -> None:
        """Hold *ops* whose path matches back until :meth:`release`."""
        self._send(f"{'hang' if killable else 'hang-hard'} {','.join(ops)} {path}")

    def release(self, *ops: str) -> None:
        """Let everything that hangs happen now; with *ops*, only what a :meth:`hang` of none but these holds."""
        self._send(f"release {','.join(ops)}")

    def slow(self, op: str, seconds: float, path: str = "") -> None:
        """Let *op* take *seconds* longer."""
        self._send(f"slow {op} {seconds} {path}")

    def fail(self, op: str, number: int, count: int | None = None, path: str = "") -> None:
        """Answer the next *count* calls of *op* (None: all) with the errno *number*."""
        self._send(f"fail {op} {number} {'' if count is None else count} {path}")

    def clear(self) -> None:
        """End what :meth:`slow` and :meth:`fail` began."""
        self._send("clear")

    def squash(self) -> None:
        """From now on root is nobody."""
        self._send("squash")

    def expire(self) -> None:
        """Let what an NFS-like client remembers of attributes expire."""
        self._send("expire")

    def die(self) -> None:
        """End the store's process; its mount stays, and answers ENOTCONN."""
        self._socket.sendall(b"die\n")
        self.process.wait(10)

    def stats(self) -> dict[str, Any]:
        """``calls`` by operation, and ``hanging``, a list of *operation path*."""
        answer: dict[str, Any] = json.loads(self._send("stats"))
        return answer

    def hanging(self, op: str, count: int = 1, within: float = 10.0) -> None:
        """Wait until at least *count* calls of *op* hang."""
        deadline = time.monotonic() + within
        while sum(what.startswith(f"{op} ") for what in self.stats()["hanging"]) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"fewer than {count} {op} hang: {self.stats()['hanging']}")
            time.sleep(0.01)

    def close(self) -> None:
        """Give up the control connection."""
        self._answers.close()
        self._socket.close()

    def _send(self, line: str) -> str:
        self._socket.sendall(f"{line}\n".encode())
        word, _, rest = self._answers.readline().strip().partition(" ")
        if word != "ok":
            raise ValueError(f"the fault store refused {line!r}: {rest or 'no answer'}")
        return rest


@contextlib.contextmanager
def fault_store(tmp: Path, *, squash: bool = False) -> Iterator[FaultStore]:
    """A fault store below *tmp*; at the end nothing hangs, nothing is mounted and no process is left, whatever happened."""
    backing = tmp / "backing"
    backing.mkdir()
    backing.chmod(0o755)
    with served(__name__, backing, tmp / "faulty", *["--squash"] * squash) as store:
        yield store


@contextlib.contextmanager
def served(program: str, backing: Path, mountpoint: Path, *options: str) -> Iterator[FaultStore]:
    """*backing*, served on *mountpoint* by the module *program*, which takes the arguments of this one."""
    mountpoint.mkdir()
    control = mountpoint.with_suffix(".sock")
    reading, writing = os.pipe()
    serve = importlib.import_module(program).main
    words = [str(backing), str(mountpoint), str(control), *options]
    process = Preloaded(serve, words, stdout=writing, stderr=2, env=os.environ)
    os.close(writing)
    try:
        with open(reading, encoding="utf-8") as answer:
            if answer.readline() != "ready\n":
                raise RuntimeError(f"the fault store did not start: exit status {process.wait(10)}")
        store = FaultStore(mountpoint, backing, process, str(control))
        try:
            yield store
        finally:
            store.close()
    finally:
        # Killing it first answers every call that hangs, so that unmounting cannot wait for one.
        process.kill()
        process.wait(10)
        while is_mounted(mountpoint):
            subprocess.run(["umount", "-l", str(mountpoint)], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
