"""Work in a process of its own that is killed (SIGKILL) at one of its changes of the store, which are counted in it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from tests.fs.failing import Failing

MOST_CALLS = 100_000
CHANGES = frozenset(
    {
        "chmod",
        "chown",
        "fchmod",
        "ftruncate",
        "link",
        "mkdir",
        "pwrite",
        "removexattr",
        "rename",
        "rmdir",
        "set_times",
        "setxattr",
        "symlink",
        "unlink",
        "write",
    }
)
"""Dying before a call that only looks is dying before the next of these."""

Work = Callable[[], int]
"""Returns an exit status."""


def killed(failing: Failing, at: int, work: Work) -> bool:
    """Do *work* in a process that is killed at its change *at*, from 1; whether it was. Else it must end with status 0."""
    child = os.fork()
    if child == 0:
        _work_and_die(failing, at, work)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _work_and_die(failing: Failing, at: int, work: Work) -> NoReturn:
    def kill() -> BaseException:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a process outlives SIGKILL")

    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            with failing.armed(at, kill, CHANGES):
                status = work()
    finally:
        os._exit(status)


def changes(failing: Failing, work: Work) -> int:
    """How many changes *work* makes; it is done, in another process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            with failing.armed(MOST_CALLS, AssertionError, CHANGES):
                work()
            os.write(writing, b"%d" % failing.count)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        count = int(answer.read() or 0)
    os.waitpid(child, 0)
    return count
