"""The asking side of a control socket: what a command waits for, bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Protocol, TypeVar

from ckfs.control.protocol import (
    REPLY_BYTES,
    Busy,
    Done,
    Failed,
    Lines,
    Malformed,
    Request,
    Says,
    Values,
    decode_reply,
    encode_request,
)
from ckfs.errors import CkfsError, of_status

T = TypeVar("T")

DIRECTORY = "/run/ckfs"
SILENCE_S = 20.0
"""How long a daemon may say nothing at all, not even that it is at it."""

_PEER = struct.Struct("3i")


def socket_name(device: str) -> str:
    """The name in :data:`DIRECTORY` of the socket of the mount with that device number (``major:minor``)."""
    return device.replace(":", "-") + ".sock"


def made(kind: type[T], said: Values) -> T:
    """What a daemon *said*, as a *kind* of dataclass."""
    try:
        return kind(**said)
    except TypeError:
        raise CkfsError("the mount's daemon is of another version of ckfs") from None


class Unanswered(CkfsError):
    """No daemon answers for that mount."""


class _Connection(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_of(connection: _Connection) -> tuple[int, int, int]:
    """Who is at the other end, as the kernel says: process id (0 if of another pid namespace), uid, gid."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, gid = _PEER.unpack(raw)
    return pid, uid, gid


def daemon_pid(device: str, *, directory: str = DIRECTORY) -> int | None:
    """The process of the mount *device*, as the kernel says; None if it is of another pid namespace, or does not answer."""
    path = os.path.join(directory, socket_name(device))
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SILENCE_S)
        connection.connect(path)
        pid, uid, _ = peer_of(connection)
        return pid if pid and uid == 0 else None
    return None


def ask(
    device: str,
    operation: str,
    fields: Values,
    *,
    directory: str = DIRECTORY,
    silence_s: float = SILENCE_S,
) -> Iterator[Values]:
    """What the daemon of the mount *device* says to *operation*, part by part. Raises CkfsError, also for what it refuses."""
    path = os.path.join(directory, socket_name(device))
    request = encode_request(Request(operation, fields))
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(silence_s)
        try:
            connection.connect(path)
            _check_is_root(connection, path)
            with contextlib.suppress(
                BrokenPipeError
            ):  # refused before it was read: the reason is there to be read
                connection.sendall(request)
            yield from _said(connection, path)
        except TimeoutError:
            raise Unanswered(f"{path}: the mount's daemon does not answer: see its log") from None
        except (ConnectionError, FileNotFoundError, PermissionError):
            raise Unanswered(f"{path}: no daemon answers there: is the mount's daemon running?") from None
        except BlockingIOError:
            raise CkfsError(f"{path}: too many ask the mount's daemon: try again") from None


def _check_is_root(connection: socket.socket, path: str) -> None:
    """Only root makes mounts: whoever else answers is somebody's fake."""
    if peer_of(connection)[1] != 0:
        raise CkfsError(f"{path}: another user than root answers there: not asked")


def _said(connection: socket.socket, path: str) -> Iterator[Values]:
    lines = Lines(REPLY_BYTES)
    while True:
        try:
            line = lines.line()
            reply = None if line is None else decode_reply(line)
        except Malformed:
            raise CkfsError(f"{path}: the mount's daemon is of another version of ckfs") from None
        match reply:
            case None:
                data = connection.recv(1 << 16)
                if not data:
                    raise Unanswered(f"{path}: the mount's daemon ended before it had answered")
                lines.feed(data)
            case Says(values):
                yield values
            case Done():
                return
            case Failed(message, status):
                raise of_status(status, message)
            case Busy():
                pass
