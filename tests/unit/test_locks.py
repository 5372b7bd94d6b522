"""One lock per inode: in turn, with a time limit, and never lost."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ckfs.errors import StoreDown
from ckfs.store.gate import Release
from ckfs.store.locks import InodeLocks, Looks

pytestmark = pytest.mark.trio

_LIMIT_S = 10.0


@pytest.fixture
def locks() -> InodeLocks:
    return InodeLocks(_LIMIT_S)


async def test_a_free_lock_is_had_at_once_and_leaves_nothing(locks: InodeLocks) -> None:
    (await locks.acquire(7))()
    assert len(locks) == 0


async def test_locks_of_two_inodes_are_apart(locks: InodeLocks) -> None:
    first, second = await locks.acquire(7), await locks.acquire(8)
    first()
    second()
    assert len(locks) == 0


async def test_waiters_have_their_turn_in_order(locks: InodeLocks) -> None:
    order: list[int] = []
    release = await locks.acquire(7)

    async def wait(number: int) -> None:
        mine = await locks.acquire(7)
        order.append(number)
        mine()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert not order
        release()
    assert order == [0, 1, 2, 3, 4]
    assert len(locks) == 0


async def test_a_lock_that_is_given_back_to_nobody_else_cannot_be_taken_in_between(
    locks: InodeLocks, autojump_clock: MockClock
) -> None:
    release = await locks.acquire(7)
    got: list[Release] = []

    async def wait() -> None:
        got.append(await locks.acquire(7))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        release()  # it is the waiter's now, though he has not run yet
        with trio.move_on_after(1) as late:
            await locks.acquire(7)
        assert late.cancelled_caught
    assert len(got) == 1
    got[0]()
    assert len(locks) == 0


async def test_waiting_ends_at_the_limit_and_leaves_the_lock_to_its_holder(
    locks: InodeLocks, autojump_clock: MockClock
) -> None:
    release = await locks.acquire(7)
    began = trio.current_time()
    with pytest.raises(StoreDown):
        await locks.acquire(7)
    assert trio.current_time() - began == pytest.approx(_LIMIT_S)
    release()
    (await locks.acquire(7))()
    assert len(locks) == 0


async def test_a_cancelled_waiter_leaves_the_queue(locks: InodeLocks, autojump_clock: MockClock) -> None:
    release = await locks.acquire(7)
    with trio.move_on_after(1):
        await locks.acquire(7)
    release()
    (await locks.acquire(7))()
    assert len(locks) == 0


async def test_a_waiter_cancelled_in_the_moment_of_his_turn_passes_the_lock_on(
    locks: InodeLocks, autojump_clock: MockClock
) -> None:
    release = await locks.acquire(7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(locks.acquire, 7)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        release()
    with trio.fail_after(1):
        (await locks.acquire(7))()
    assert len(locks) == 0


async def test_a_waiter_whose_limit_ends_in_the_moment_of_his_turn_has_it_or_passes_it_on(
    locks: InodeLocks,
) -> None:
    release = await locks.acquire(7)
    had: list[bool] = []

    async def wait() -> None:
        try:
            mine = await locks.acquire(7)
        except StoreDown:
            had.append(False)
        else:
            had.append(True)
            mine()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(_LIMIT_S)
        release()
    assert had in ([True], [False])
    assert len(locks) == 0


async def test_whose_lock_is_overdue_is_told_at_once_and_so_is_who_waits_already(locks: InodeLocks) -> None:
    release = await locks.acquire(7)
    refused: list[int] = []

    async def wait(number: int) -> None:
        with pytest.raises(StoreDown):
            await locks.acquire(7)
        refused.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        await wait_all_tasks_blocked()
        release.overdue()
    await wait(2)
    assert refused == [1, 2]
    release()
    (await locks.acquire(7))()
    assert len(locks) == 0


async def test_names_in_one_directory_are_apart_and_the_overdue_is_found_by_the_directory(
    locks: InodeLocks,
) -> None:
    first, second = await locks.acquire(1, b"one"), await locks.acquire(1, b"two")
    assert not locks.is_overdue(1)
    first.overdue()
    assert locks.is_overdue(1)
    assert not locks.is_overdue(2)
    first()
    second()
    assert not locks.is_overdue(1)
    assert len(locks) == 0


async def test_no_look_is_begun_while_another_at_the_same_directory_hangs() -> None:
    looks = Looks()
    first, second = looks.begin("here"), looks.begin("here")
    first.overdue()
    second.overdue()
    with pytest.raises(StoreDown):
        looks.begin("here")
    looks.begin("there")()
    first()
    with pytest.raises(StoreDown):
        looks.begin("here")
    second()
    looks.begin("here")()
