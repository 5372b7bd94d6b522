"""Running a coroutine that mostly need not wait, and learning when it has to."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar, cast

T = TypeVar("T")


@types.coroutine
def driven(work: Coroutine[Any, Any, T], waits: Callable[[], None]) -> Generator[Any, Any, T]:
    """What *work* returns; *waits* is called when it first has to wait for something, if ever."""
    try:
        trap = work.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    waits()
    while True:
        try:
            sent = yield trap
        except BaseException as error:  # noqa: BLE001 - whatever it is is the work's to see
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            trap = step()
        except StopIteration as stop:
            return cast("T", stop.value)
