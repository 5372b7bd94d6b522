"""What a mount counts and what it permits for a moment, by a clock that the tests turn."""

from __future__ import annotations

import logging
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ckfs.errors import Busy
from ckfs.fs.figures import Counts, Figures
from ckfs.fs.permits import Permits
from ckfs.names import Inode, Uid
from ckfs.owners.processes import Process, process_of

pytestmark = pytest.mark.trio

INTERVAL_S = 600
INO = Inode(7)
USER = Uid(2101)


async def test_what_is_routine_gets_a_line_when_there_was_more_of_it(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    figures = Figures()

    def lines() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    async def after_an_interval() -> list[str]:
        mock_clock.jump(INTERVAL_S)
        await wait_all_tasks_blocked()
        return lines()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(figures.sum_up)
        await wait_all_tasks_blocked()
        assert await after_an_interval() == []
        for _ in range(3):
            figures.refused(to_mom=True)
        figures.refused(to_mom=False)
        assert lines() == []
        [line] = await after_an_interval()
        assert line.startswith("kept 3 times ")
        assert line.endswith("; 3 since the mount began")
        assert await after_an_interval() == []
        figures.refused(to_mom=True)
        nursery.cancel_scope.cancel()
    [line] = lines()
    assert line.startswith("kept 1 times ")
    assert line.endswith("; 4 since the mount began")
    figures.trashed()
    assert figures.read() == Counts(refused_to_moms=4, refused_to_others=1, trashed=1)


async def test_a_permit_holds_for_a_moment(mock_clock: MockClock) -> None:
    permits, us = Permits(), process_of(os.getpid())
    assert us is not None
    permits.give(us, INO, USER)
    mock_clock.jump(4.9)
    assert permits.take(os.getpid(), INO)
    permits.give(us, INO, USER)
    mock_clock.jump(5)
    assert not permits.take(os.getpid(), INO)


async def test_a_permit_is_not_the_next_process_s_of_the_same_id(mock_clock: MockClock) -> None:
    permits, us = Permits(), process_of(os.getpid())
    assert us is not None
    permits.give(Process(us.pid, us.started - 1), INO, USER)
    assert not permits.take(os.getpid(), INO)
    assert not permits.take(0, INO)


async def test_of_permits_there_are_few(mock_clock: MockClock) -> None:
    permits = Permits()
    for number in range(32):
        permits.give(Process(1, 1), Inode(number), USER)
    with pytest.raises(Busy):
        permits.give(Process(1, 1), Inode(99), USER)
    for user in range(7):
        for number in range(32):
            permits.give(Process(2 + user, 1), Inode(number), Uid(3000 + user))
    with pytest.raises(Busy):
        permits.give(Process(1, 1), Inode(1), Uid(4000))
    mock_clock.jump(5)
    permits.give(Process(1, 1), Inode(1), USER)
