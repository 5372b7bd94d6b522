"""Calls on a mount and its store, each in a process of its own that may be ended at any time; and signals, of which one is enough."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from ckfs.selftest.supervision import Died, NoAnswer, bounded

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GONE_WITHIN_S = 10.0


class Refused(Exception):
    """What a call met, in words; *number* is an errno."""

    def __init__(self, number: int, says: str) -> None:
        super().__init__(says)
        self.number = number


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """KeyboardInterrupt at the first signal that asks for an end; the others are not heard, so that tidying up is not disturbed."""

    is_heard = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_heard
        if not is_heard:
            is_heard = True
            raise KeyboardInterrupt

    asked = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
    before = {number: signal.signal(number, interrupt) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_child(call: Callable[[], object], timeout_s: float) -> object:
    """What *call* returns, as JSON has it. Afterwards it is over, with all processes that it started. Raises Refused."""
    reading, writing = os.pipe()  # all of them have it
    try:
        answer = bounded(lambda: _answered(call), timeout_s)
    except NoAnswer as error:
        raise Refused(errno.ETIMEDOUT, str(error)) from None
    except Died as error:
        raise Refused(errno.EIO, str(error)) from None
    finally:
        os.close(writing)
        _wait_for_end(reading)
        os.close(reading)
    assert isinstance(answer, dict)
    if "refused" in answer:
        raise Refused(answer["number"], answer["refused"])
    return answer["value"]


def _answered(call: Callable[[], object]) -> dict[str, object]:
    try:
        return {"value": call()}
    except OSError as error:
        return {"refused": error.strerror or str(error), "number": error.errno or errno.EIO}


def _wait_for_end(reading: int) -> None:
    """Nobody writes there: it is readable when the last one has closed it."""
    select.select([reading], [], [], _GONE_WITHIN_S)
