"""One place maps every failure to an errno, and none to a number that the kernel or a caller misunderstands."""

from __future__ import annotations

import errno
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs import errors
from ckfs.errors import CkfsError, FsError, errno_of

FS_ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FsError)]
COMMAND_ERRORS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CkfsError)
]

NEVER = {
    errno.ENOSYS: errno.EOPNOTSUPP,  # the kernel would never ask again
    errno.ENOTCONN: errno.EIO,  # looks as if ckfs itself had died
    errno.EINTR: errno.EIO,
}


@pytest.mark.parametrize("number", range(1, 512))
def test_every_errno_of_a_store_is_passed_on_but_for_three(number: int) -> None:
    assert errno_of(OSError(number, "text")) == NEVER.get(number, number)


@pytest.mark.parametrize("number", [0, -1, -errno.EIO, 512, 513, 514, 516, 517, 524, 1 << 31, 1 << 64])
def test_private_and_impossible_numbers_stay_inside(number: int) -> None:
    error = OSError()
    error.errno = number
    assert errno_of(error) == errno.EIO


@pytest.mark.parametrize("error", [OSError(), OSError("text"), OSError(None, "text")])
def test_an_oserror_without_a_number(error: OSError) -> None:
    assert error.errno is None
    assert errno_of(error) == errno.EIO


def test_an_errno_that_is_no_number() -> None:
    error = OSError(errno.ENOENT, "text")
    error.errno = "ENOENT"  # type: ignore[assignment]  # what libraries have been seen to do
    assert errno_of(error) == errno.EIO


@pytest.mark.parametrize("kind", FS_ERRORS)
def test_our_own(kind: type[FsError]) -> None:
    number = errno_of(kind("the log's text"))
    assert number == kind.errno
    assert 0 < number < 512
    assert number not in NEVER or kind is errors.Interrupted  # of a wait for a lock, as POSIX has it


TABLE: list[tuple[BaseException, int]] = [
    (errors.NotFound(), errno.ENOENT),
    (errors.Exists(), errno.EEXIST),
    (errors.NotOwner(), errno.EPERM),
    (errors.Denied(), errno.EACCES),
    (errors.OtherOwner(), errno.EXDEV),
    (errors.Unsupported(), errno.EOPNOTSUPP),
    (errors.Invalid(), errno.EINVAL),
    (errors.NoAttribute(), errno.ENODATA),
    (errors.Stale(), errno.ESTALE),
    (errors.BadHandle(), errno.EBADF),
    (errors.ReadOnly(), errno.EROFS),
    (errors.StoreDown(), errno.ETIMEDOUT),
    (errors.Interrupted(), errno.EINTR),
    (errors.NotDone(errno.EOPNOTSUPP), errno.EOPNOTSUPP),
    (FsError(), errno.EIO),
    (TimeoutError(), errno.ETIMEDOUT),
    (TimeoutError("text"), errno.ETIMEDOUT),
    (TimeoutError(errno.ETIMEDOUT, "text"), errno.ETIMEDOUT),
    (MemoryError(), errno.ENOMEM),
    (RecursionError(), errno.ELOOP),
    (ValueError("text"), errno.EIO),
    (KeyError("text"), errno.EIO),
    (AssertionError(), errno.EIO),
    (UnicodeDecodeError("utf-8", b"", 0, 1, "text"), errno.EIO),
    (KeyboardInterrupt(), errno.EIO),
    (SystemExit(0), errno.EIO),
    (GeneratorExit(), errno.EIO),
    (BaseExceptionGroup("text", [KeyboardInterrupt()]), errno.EIO),
    (FileNotFoundError(errno.ENOENT, "text"), errno.ENOENT),
    (BlockingIOError(errno.EAGAIN, "text"), errno.EAGAIN),
    (errors.UsageError("text"), errno.EIO),
]


@pytest.mark.parametrize(("error", "number"), TABLE, ids=lambda value: repr(value)[:40])
def test_each_failure_has_its_number(error: BaseException, number: int) -> None:
    assert errno_of(error) == number


@given(st.one_of(st.none(), st.integers(), st.text(), st.booleans(), st.floats(allow_nan=True)))
def test_no_answer_is_outside_of_what_a_kernel_takes(number: object) -> None:
    error = OSError()
    error.errno = number  # type: ignore[assignment]  # what libraries may do
    assert 0 < errno_of(error) < 512


def test_exit_statuses_are_the_documented_ones() -> None:
    """docs/commands.md lists them; they are part of the interface."""
    assert {kind.__name__: kind.exit_status for kind in COMMAND_ERRORS} == {
        "CkfsError": 1,
        "UsageError": 2,
        "StoreUnusable": 3,
        "LedgerUnusable": 3,
        "MountRefused": 4,
        "NotMounted": 4,
        "StoreInUse": 4,
        "NotPermitted": 5,
        "MountFailed": 6,
        "NoRoom": 7,
    }


def test_errors_of_commands_and_of_calls_are_told_apart() -> None:
    assert set(FS_ERRORS).isdisjoint(COMMAND_ERRORS)
