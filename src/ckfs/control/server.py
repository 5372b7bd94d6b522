"""The answering side of a control socket: who asks, how long and how many at once.

Who asks is whoever the kernel says connected. Any user may, with anything: each connection is a task of its own with time
limits, of which users together and each of them have few, and what one of them meets ends that connection alone. Belongs
to the event loop's thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections import Counter
from dataclasses import dataclass, field

import trio

from ckfs.control.client import DIRECTORY, peer_of, socket_name
from ckfs.control.operations import OPERATIONS, Mount, Peer
from ckfs.control.protocol import (
    REQUEST_BYTES,
    Asked,
    Busy,
    Done,
    Lines,
    Malformed,
    Reply,
    Says,
    Values,
    decode_request,
    encode_reply,
    failed,
)
from ckfs.errors import CkfsError, FsError, UsageError
from ckfs.names import ROOT_UID, Gid, Uid, shown
from ckfs.owners.processes import process_of

log = logging.getLogger(__name__)

_CONNECTIONS = 64
_CONNECTIONS_OF_USERS = 48
"""Root, and with that an admin, always finds room."""
_CONNECTIONS_PER_USER = 4
_BACKLOG = 128
_PIECE_BYTES = 16 << 10
_SHORTLY_S = 0.1
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@dataclass(frozen=True, slots=True)
class Limits:
    """In seconds: for a request to have come whole; for one line of the answer to be taken; between signs of life."""

    request_s: float = 5.0
    line_s: float = 10.0
    sign_s: float = 5.0


class TooMany(CkfsError):
    """There is no room for one more who asks."""


class Gone(Exception):
    """Whoever asked does not listen any more."""


@dataclass(slots=True)
class Places:
    """Who is connected, by uid."""

    _taken: Counter[int] = field(default_factory=Counter)

    def take(self, uid: int) -> None:
        """TooMany if there is no place for *uid*."""
        users = self._taken.total() - self._taken[ROOT_UID]
        if uid != ROOT_UID and (self._taken[uid] >= _CONNECTIONS_PER_USER or users >= _CONNECTIONS_OF_USERS):
            raise TooMany("too many ask this mount at the same time: try again")
        if self._taken.total() >= _CONNECTIONS:
            raise TooMany("too many ask this mount at the same time: try again")
        self._taken[uid] += 1

    def give_back(self, uid: int) -> None:
        self._taken[uid] -= 1
        if not self._taken[uid]:
            del self._taken[uid]


# The socket


@dataclass(frozen=True, slots=True)
class Listening:
    """The socket of one mount. *name* in *directory_fd* is its name, as long as that leads to the inode *ino*."""

    listener: socket.socket
    directory_fd: int
    name: str
    ino: int

    def close(self) -> None:
        """Take the name away, unless another mount has it by now."""
        with contextlib.suppress(OSError):
            if os.stat(self.name, dir_fd=self.directory_fd, follow_symlinks=False).st_ino == self.ino:
                os.unlink(self.name, dir_fd=self.directory_fd)
        os.close(self.directory_fd)
        self.listener.close()  # last: up to now nobody else could have its inode's number


def listen(device: str, directory: str = DIRECTORY) -> Listening:
    """Listen for the mount *device*. What mounts left whose daemons were killed goes. Raises OSError."""
    if not device:
        raise FileNotFoundError(errno.ENOENT, "the mount is gone already")
    directory_fd = _opened_directory(directory)
    _clear(directory_fd)
    name = socket_name(device)
    unfinished = f".{name}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=directory_fd)
        path = f"/proc/self/fd/{directory_fd}/{unfinished}"
        listener.bind(path)
        os.chmod(path, 0o666)  # everybody may ask; who it is, the kernel says
        listener.listen(_BACKLOG)
        os.rename(unfinished, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        ino = os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_ino
    except BaseException:
        listener.close()
        os.close(directory_fd)
        raise
    return Listening(listener, directory_fd, name, ino)


def _opened_directory(path: str) -> int:
    """The directory, made if it is not there. PermissionError if others than root could put sockets into it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != ROOT_UID:
            raise PermissionError(errno.EPERM, "belongs to another user than root")
        if stat.S_IMODE(status.st_mode) != 0o755:
            os.fchmod(fd, 0o755)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _clear(directory_fd: int) -> None:
    """Take away sockets at which nobody listens. (They have their names only when somebody does.)"""
    for name in os.listdir(directory_fd):
        if not name.endswith(".sock"):
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            ino = os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_ino
            asking.setblocking(False)
            try:
                asking.connect(f"/proc/self/fd/{directory_fd}/{name}")
            except ConnectionRefusedError:
                if os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_ino == ino:
                    os.unlink(name, dir_fd=directory_fd)


# Serving


@dataclass(slots=True)
class Server:
    """The socket of *mount*, as it is served."""

    mount: Mount
    limits: Limits = field(default_factory=Limits)
    places: Places = field(default_factory=Places)

    async def run(
        self,
        device: str,
        directory: str = DIRECTORY,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve for the life of the mount; without a socket if there cannot be one."""
        try:
            listening = listen(device, directory)
        except OSError as error:
            reason = error.strerror or error
            log.warning("no control socket in %s (%s): users cannot ask this mount", shown(directory), reason)
            task_status.started()
            return
        with contextlib.closing(listening):
            task_status.started()
            await self._accept_all(trio.socket.from_stdlib_socket(listening.listener))

    async def _accept_all(self, listener: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as error:
                    if error.errno in _OUT_OF:
                        await trio.sleep(_SHORTLY_S)
                    continue  # whoever it was has gone again
                try:
                    peer = self._peer_at(connection)
                except (OSError, TooMany) as error:
                    await _turn_away(trio.SocketStream(connection), error)
                    continue
                nursery.start_soon(self._serve, trio.SocketStream(connection), peer)

    def _peer_at(self, connection: trio.socket.SocketType) -> Peer:
        pid, uid, gid = peer_of(connection)
        self.places.take(uid)
        return Peer(Uid(uid), Gid(gid), process_of(pid) if pid else None)

    async def _serve(self, stream: trio.SocketStream, peer: Peer) -> None:
        """One connection, from its request to its end."""
        answers = _Answers(stream, self.limits)
        try:
            result = await self._result(stream, peer, answers)
            await answers.say(result)
        except Gone:
            pass
        finally:
            stream.socket.close()
            self.places.give_back(peer.uid)

    async def _result(self, stream: trio.SocketStream, peer: Peer, answers: _Answers) -> Reply:
        """How it ended: Done or Failed."""
        try:
            line = await self._line(stream)
        except Malformed as error:
            return failed(error)
        result: Reply | None = None
        async with trio.open_nursery() as nursery:  # for as long as somebody listens
            nursery.start_soon(_until_gone, stream, nursery.cancel_scope)
            nursery.start_soon(answers.signs, nursery.cancel_scope)
            result = await self._done(line, peer, answers)
            nursery.cancel_scope.cancel()
        if result is None:
            raise Gone
        return result

    async def _line(self, stream: trio.SocketStream) -> bytes:
        """The request, as it came. Malformed if it does not come whole, and in time; Gone from who asks nothing."""
        lines = Lines(REQUEST_BYTES)
        with trio.move_on_after(self.limits.request_s):
            while (line := lines.line()) is None:
                lines.feed(await _received(stream))
            if not lines.is_empty:
                raise Malformed("one request a connection")
            return line
        raise Malformed(f"no whole request within {self.limits.request_s:g} s")

    async def _done(self, line: bytes, peer: Peer, answers: _Answers) -> Reply | None:
        """Do what is asked. Everything that this meets stays here: no request ends the mount. None if nobody listens."""
        try:
            request = decode_request(line)
            operation = OPERATIONS.get(request.operation)
            if operation is None:
                name = shown(request.operation[:40])
                raise UsageError(
                    f"{name}: the mount's daemon knows no such request: use the ckfs that it is of"
                )
            await operation(self.mount, peer, Asked(request.fields), answers.tell)
            return Done()
        except Gone:
            return None
        except (CkfsError, FsError, OSError, RecursionError) as error:
            return failed(error)
        except Exception as error:
            log.exception("a request of uid %d failed unexpectedly", peer.uid)
            return failed(error)


@dataclass(slots=True)
class _Answers:
    """Lines to whoever asked, one at a time; Gone if he does not take one in time."""

    stream: trio.SocketStream
    limits: Limits
    lock: trio.Lock = field(default_factory=trio.Lock)
    gone: bool = False

    async def say(self, reply: Reply) -> None:
        async with self.lock:
            if self.gone:
                raise Gone
            try:
                self.gone = True  # half a line may have gone if it is cancelled
                with trio.fail_after(self.limits.line_s):
                    await self.stream.send_all(encode_reply(reply))
                self.gone = False
            except (trio.TooSlowError, trio.BrokenResourceError, OSError):
                raise Gone from None

    async def tell(self, values: Values) -> None:
        await self.say(Says(values))

    async def signs(self, work: trio.CancelScope) -> None:
        """Say now and then that *work* goes on; end it if nobody listens."""
        with contextlib.suppress(Gone):
            while True:
                await trio.sleep(self.limits.sign_s)
                await self.say(Busy())
        work.cancel()


async def _until_gone(stream: trio.SocketStream, work: trio.CancelScope) -> None:
    """End *work* when whoever asked goes, or says more: he has asked, and waits."""
    with contextlib.suppress(Gone):
        await _received(stream)
    work.cancel()


async def _received(stream: trio.SocketStream) -> bytes:
    """Gone if there is nothing more to come."""
    try:
        data = await stream.receive_some(_PIECE_BYTES)
    except (trio.BrokenResourceError, OSError):
        raise Gone from None
    if not data:
        raise Gone
    return bytes(data)


async def _turn_away(stream: trio.SocketStream, error: Exception) -> None:
    """A connection that has just been made takes a line at once."""
    with contextlib.suppress(OSError, trio.BrokenResourceError), trio.move_on_after(_SHORTLY_S):
        await stream.send_all(encode_reply(failed(error)))
    stream.socket.close()
