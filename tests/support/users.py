"""Calls as other users, each in a forked child: a test process itself never changes its identity.

The uids used in tests need no passwd entries. A child leaves by ``os._exit`` only, so that neither pytest's
buffers nor its ``finally`` blocks run twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Final, ParamSpec, TypeVar, cast

from tests.support import callers
from tests.support.callers import Call

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
    call = Call(uid, uid if gid is None else gid, groups, umask, fn, args)
    try:
        answer = callers.answer_to(call, CALL_TIMEOUT) if callers.is_sendable(call) else _forked(call)
    except TimeoutError:
        raise ChildFailed(f"the call hangs: no answer after {CALL_TIMEOUT:.0f} s") from None
    if not answer:
        raise ChildFailed(f"the child of uid {uid} ended without an answer")
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


def _forked(call: Call) -> bytes:
    """The answer of a child of this very process, which has all that the call may need."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        callers.live_and_die(writing, call)
    os.close(writing)
    try:
        return callers.read_all(reading, child, CALL_TIMEOUT)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
