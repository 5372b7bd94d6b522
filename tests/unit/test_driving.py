"""A coroutine that need not wait runs to its end at once; that it has to is told the first time, and it goes on as any other."""

from __future__ import annotations

import pytest
import trio

from ckfs.transport.driving import driven

pytestmark = pytest.mark.trio


class Told:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


async def test_what_need_not_wait_is_done_at_once() -> None:
    told = Told()

    async def work() -> int:
        return 7

    before = trio.lowlevel.current_statistics().tasks_runnable
    assert await driven(work(), told) == 7
    assert told.times == 0
    assert trio.lowlevel.current_statistics().tasks_runnable == before


async def test_that_it_waits_is_told_once() -> None:
    told = Told()

    async def work() -> str:
        for _ in range(3):
            assert told.times <= 1
            await trio.lowlevel.checkpoint()
        return "done"

    assert await driven(work(), told) == "done"
    assert told.times == 1


async def test_its_errors_are_its_caller_s() -> None:
    async def at_once() -> None:
        raise ValueError("at once")

    async def later() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("later")

    for work in (at_once, later):
        with pytest.raises(ValueError, match=r"at once|later"):
            await driven(work(), Told())


async def test_it_is_cancelled_and_has_time_limits_as_any_other() -> None:
    told, cleaned = Told(), Told()

    async def work() -> str:
        with trio.move_on_after(0.01) as limit:
            await trio.sleep_forever()
        assert limit.cancelled_caught
        try:
            await trio.sleep_forever()
        finally:
            cleaned()
        return "never"

    with trio.move_on_after(0.05) as scope:
        await driven(work(), told)
    assert scope.cancelled_caught
    assert (told.times, cleaned.times) == (1, 1)
