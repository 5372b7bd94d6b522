"""Calls as other users, each in a forked child: a test process itself never changes its identity.

The uids used in tests need no passwd entries. A child leaves by ``os._exit`` only, so that neither pytest's
buffers nor its ``finally`` blocks run twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

ROOT: Final = 0
ALICE: Final = 2101
BOB: Final = 2102
NOBODY: Final = 65534

CALL_TIMEOUT = 60.0
"""Seconds after which a call counts as hanging; its child is killed then."""


class ChildFailed(AssertionError):
    """The child raised something other than OSError, or died; the text is its traceback."""


def as_user(
    uid: int,
    fn: Callable[..., T],
    *args: object,
    gid: int | None = None,
    groups: tuple[int, ...] = (),
    umask: int | None = None,
) -> T:
    """``fn(*args)`` in a child that is *uid*, *gid* (default: the same number) and supplementary *groups*.

    Only the result is pickled, *fn* may be a lambda. Its OSError is raised here, with errno and file names.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live_and_die(writing, lambda: _identified(uid, uid if gid is None else gid, groups, umask, fn, args))
    os.close(writing)
    try:
        answer = _read_all(reading, child, time.monotonic() + CALL_TIMEOUT)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if not answer:
        raise ChildFailed(f"the child of uid {uid} ended without an answer: wait status {status:#x}")
    kind, value = pickle.loads(answer)
    if kind == "error":
        raise cast("OSError", value)
    if kind == "failure":
        raise ChildFailed(cast("str", value))
    return cast("T", value)


def errno_as(
    uid: int,
    fn: Callable[..., object],
    *args: object,
    gid: int | None = None,
    groups: tuple[int, ...] = (),
    umask: int | None = None,
) -> int:
    """The errno of ``fn(*args)`` as *uid*; 0 if it succeeded."""
    return as_user(uid, errno_of_call, fn, *args, gid=gid, groups=groups, umask=umask)


def errno_of_call(fn: Callable[..., object], *args: object) -> int:
    """The errno that ``fn(*args)`` fails with; 0 if it succeeded. A descriptor that it opened stays open."""
    try:
        fn(*args)
    except OSError as error:
        if error.errno is None:
            raise ChildFailed(f"{error!r} has no errno") from error
        return error.errno
    return 0


@contextlib.contextmanager
def raises_errno(*expected: int) -> Iterator[None]:
    """The body must fail with one of the *expected* errnos."""
    wanted = " or ".join(_name_of(number) for number in expected)
    try:
        yield
    except OSError as error:
        got = error.errno or 0
        if got not in expected:
            raise AssertionError(f"expected {wanted}, got {_name_of(got)}: {error}") from error
    else:
        raise AssertionError(f"expected {wanted}, but it succeeded")


def _name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def _identified(
    uid: int,
    gid: int,
    groups: tuple[int, ...],
    umask: int | None,
    fn: Callable[..., object],
    args: tuple[object, ...],
) -> object:
    if umask is not None:
        os.umask(umask)
    # The whole process is meant here: it is a child made for this one call.
    os.setgroups(groups)  # noqa: TID251 - a process of its own, for that user
    os.setresgid(gid, gid, gid)  # noqa: TID251 - a process of its own, for that user
    os.setresuid(uid, uid, uid)  # noqa: TID251 - a process of its own, for that user
    return fn(*args)


def _live_and_die(writing: int, call: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        _write_all(writing, _answer_of(call))
        status = 0
    finally:
        os._exit(status)


def _answer_of(call: Callable[[], object]) -> bytes:
    answer: tuple[str, Any]
    try:
        answer = ("value", call())
        return pickle.dumps(answer)
    except OSError as error:
        answer = ("error", error)
    except BaseException:  # noqa: BLE001 - it is raised again by the parent
        answer = ("failure", traceback.format_exc())
    return pickle.dumps(answer)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _read_all(fd: int, child: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            raise ChildFailed(f"the call hangs: no answer after {CALL_TIMEOUT:.0f} s")
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
