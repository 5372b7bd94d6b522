"""Questions about users: whoever asks slowly waits for himself, not others for him."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ckfs.fs.aside import Aside
from ckfs.names import Uid

pytestmark = pytest.mark.trio

ALICE, BOB, ROOT = Uid(2101), Uid(2102), Uid(0)
_REAL_TIME_S = 20.0


class Slow:
    """A name service that hangs until it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self) -> str:
        self.asked.release()
        self.go.wait(_REAL_TIME_S)
        return "late"

    async def has_been_asked(self) -> None:
        assert await trio.to_thread.run_sync(lambda: self.asked.acquire(timeout=_REAL_TIME_S))


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.go.set()


async def test_a_user_who_floods_leaves_answers_for_others(slow: Slow) -> None:
    aside = Aside()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(aside.ask, slow, ALICE)
        for _ in range(2):
            await slow.has_been_asked()
        with trio.fail_after(5):
            assert await aside.ask(lambda: "bob", BOB) == "bob"
        assert not slow.asked.acquire(blocking=False)
        slow.go.set()


async def test_users_together_leave_answers_for_root(slow: Slow) -> None:
    aside = Aside()
    async with trio.open_nursery() as nursery:
        for uid in range(2101, 2121):
            nursery.start_soon(aside.ask, slow, Uid(uid))
        for _ in range(8):
            await slow.has_been_asked()
        with trio.fail_after(5):
            assert await aside.ask(lambda: "root", ROOT) == "root"
        slow.go.set()


async def test_a_thread_that_hangs_counts_until_it_is_over(slow: Slow, mock_clock: MockClock) -> None:
    aside = Aside(timeout_s=10)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(aside.ask, slow, ALICE)
        for _ in range(2):
            await slow.has_been_asked()
        await wait_all_tasks_blocked()
        mock_clock.jump(10)
    answers: list[object] = []

    async def ask_again() -> None:
        answers.append(await aside.ask(lambda: "alice", ALICE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_again)
        await wait_all_tasks_blocked(0.05)
        assert not answers
        slow.go.set()
        while not answers:
            await wait_all_tasks_blocked(0.001)
    assert answers == ["alice"]
    await aside.ask(lambda: None, BOB)
    assert set(aside._each) <= {ALICE, BOB}


async def test_no_thread_to_be_had_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    aside = Aside()

    def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("trio._threads.start_thread_soon", none_left)
        assert await aside.ask(lambda: "alice", ALICE) is None
    assert await aside.ask(lambda: "alice", ALICE) == "alice"
