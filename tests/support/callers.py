"""Calls as other users, each in a child that ends with it; and a small process that forks most of them: forking pytest itself, which holds
thousands of tests, takes twenty times as long as most calls do.

Only what means the same in another process is sent there: functions of ``os`` and of few modules of tests, with numbers, texts and bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NoReturn

_TESTS_MODULES = ("tests.posix.places", "tests.support.users")
_MODULES = frozenset(("posix", "os", *_TESTS_MODULES))
"""Whose functions are sent: they keep nothing between calls that a test could have changed."""
_MOST_BYTES = 64 << 10
_OWN = (b"/proc/self", b"/proc/thread-self", b"/dev/fd", b"/dev/std")
"""What a path means in the process that uses it."""
_PID_BYTES = 4


@dataclass(frozen=True)
class Call:
    """``fn(*args)`` as *uid*, *gid* and *groups*; with *umask*, if it is not to be that of who asks."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int | None
    fn: Callable[..., object]
    args: tuple[object, ...]

    def make(self) -> object:
        """In a child made for this one call: the whole process is meant here."""
        if self.umask is not None:
            os.umask(self.umask)
        os.setgroups(self.groups)  # noqa: TID251 - a process of its own, for that user
        os.setresgid(self.gid, self.gid, self.gid)  # noqa: TID251 - a process of its own, for that user
        os.setresuid(self.uid, self.uid, self.uid)  # noqa: TID251 - a process of its own, for that user
        return self.fn(*self.args)


# In the child


def live_and_die(writing: int, call: Call) -> NoReturn:
    """Make the call, write the answer, and leave, so that neither pytest's buffers nor its ``finally`` blocks run twice."""
    status = 1
    try:
        data = _answer_of(call)
        while data:
            data = data[os.write(writing, data) :]
        status = 0
    finally:
        os._exit(status)


def _answer_of(call: Call) -> bytes:
    answer: tuple[str, Any]
    try:
        answer = ("value", call.make())
        return pickle.dumps(answer)
    except OSError as error:
        answer = ("error", error)
    except BaseException:  # noqa: BLE001 - it is raised again by the parent
        answer = ("failure", traceback.format_exc())
    return pickle.dumps(answer)


# In who asks


def read_all(fd: int, child: int, within_s: float) -> bytes:
    """What *child* writes to *fd* until it is closed. TimeoutError, and the child is killed, if that takes longer."""
    deadline = time.monotonic() + within_s
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def is_sendable(call: Call) -> bool:
    """Whether the call means the same in another process."""
    return _is_sendable((call.fn, *call.args))


def _is_sendable(value: object) -> bool:
    match value:
        case None | bool() | float():
            return True
        case int():
            return not _is_open(value)
        case str():
            return _is_sendable(os.fsencode(value))
        case bytes():
            return len(value) < _MOST_BYTES // 8 and not any(own in value for own in _OWN)
        case tuple():
            return all(map(_is_sendable, value))
        case functools.partial():
            return not value.keywords and _is_sendable((value.func, *value.args))
        case _:
            name = getattr(value, "__qualname__", ".")
            return callable(value) and "." not in name and getattr(value, "__module__", "") in _MODULES


def _is_open(number: int) -> bool:
    """Whether it could be a descriptor of this process."""
    with contextlib.suppress(OSError, OverflowError):
        return number > 2 and os.fstat(number) is not None
    return False


def answer_to(call: Call, within_s: float) -> bytes:
    """The answer to a call that can be sent; empty if its child dies. TimeoutError."""
    umask = _umask() if call.umask is None else call.umask
    message = pickle.dumps((os.getcwd(), *astuple(call)[:3], umask, call.fn, call.args))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(_server(), [message], [theirs.fileno()])
        pid = int.from_bytes(ours.recv(_PID_BYTES), sys.byteorder)
        assert pid, "the process that makes calls has ended"
        answer = read_all(ours.fileno(), pid, within_s)
    _wait_for(pid)
    return answer


def _umask() -> int:
    """This process's, without changing it for other threads meanwhile."""
    found = re.search(rb"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_bytes(), re.MULTILINE)
    assert found is not None
    return int(found[1], 8)


def _wait_for(pid: int) -> None:
    """Until it has closed all that it had open."""
    with contextlib.suppress(ProcessLookupError):
        child = os.pidfd_open(pid)
        try:
            select.select([child], [], [])
        finally:
            os.close(child)


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    here = os.getpid()

    def end() -> None:
        ours.close()
        if os.getpid() == here:
            process.kill()  # children that this one forked may keep it waiting
            process.wait()

    atexit.register(end)
    return ours


# In the small process


def _serve(connection: socket.socket) -> None:
    """Until nobody is left who could ask."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for
    for module in _TESTS_MODULES:
        importlib.import_module(module)
    while True:
        message, fds, _, _ = socket.recv_fds(connection, _MOST_BYTES, 1)
        if not message:
            return
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.write(fds[0], os.getpid().to_bytes(_PID_BYTES, sys.byteorder))
            directory, *fields = pickle.loads(message)
            os.chdir(directory)
            live_and_die(fds[0], Call(*fields))
        os.close(fds[0])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
