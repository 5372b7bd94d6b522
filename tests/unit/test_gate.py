"""The gate: time limits, what a late call still holds, down and up again. Threads hang on events; the clock is set by hand."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ckfs.errors import Busy, StoreDown
from ckfs.policy.further import FurtherStore
from ckfs.store.gate import Gate
from ckfs.store.identity import ROOT
from ckfs.store.layout import id_of, initialise, initialise_further
from ckfs.store.spots import Spot
from ckfs.store.volumes import Volumes

pytestmark = pytest.mark.trio

_OP_S, _IO_S = 10.0, 600.0
_REAL_TIME_S = 20.0
_OWN_THREADS = 16


class Hang:
    """Work that hangs in its thread until it is let go. It is let go at the end of the test in any case."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.result: object = "late"

    def __call__(self) -> object:
        self.entered.set()
        self.go.wait(_REAL_TIME_S)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def has_begun(self) -> None:
        assert await trio.to_thread.run_sync(self.entered.wait, _REAL_TIME_S)


@pytest.fixture
def hangs() -> Iterator[Callable[[], Hang]]:
    made: list[Hang] = []

    def make() -> Hang:
        made.append(Hang())
        return made[-1]

    yield make
    for hang in made:
        hang.go.set()


@pytest.fixture
def gate() -> Gate:
    return Gate(lambda: None, op_timeout_s=_OP_S, io_timeout_s=_IO_S)


class Count:
    """Counts calls, from any thread, and tells when the first has come."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.came = threading.Event()

    def __call__(self, *args: object) -> None:
        self.calls.append(args)
        self.came.set()

    async def has_come(self) -> None:
        assert await trio.to_thread.run_sync(self.came.wait, _REAL_TIME_S)


async def _answered_late(
    hang: Hang, clock: MockClock, call: Callable[[], Awaitable[object]], after_s: float
) -> None:
    """Let the call that runs *hang* time out after *after_s*."""

    async def time_out() -> None:
        with pytest.raises(StoreDown):
            await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(time_out)
        await hang.has_begun()
        await wait_all_tasks_blocked()
        clock.jump(after_s)


async def _all_idle(gate: Gate) -> None:
    """Wait until no call holds a thread."""
    with trio.fail_after(1e9):
        while any(_borrowed(gate)):
            await wait_all_tasks_blocked(0.001)


def _borrowed(gate: Gate) -> list[float]:
    return [limiter.borrowed_tokens for limiter in (gate._metadata, gate._data, *gate._sets.values())]


async def test_a_call_returns_what_its_work_returns(gate: Gate) -> None:
    released = Count()
    assert await gate.call(lambda: 7, releases=(released,), of_set=3) == 7
    assert len(released.calls) == 1
    assert not any(_borrowed(gate))


async def test_a_call_raises_what_its_work_raises_and_gives_everything_back(gate: Gate) -> None:
    released, undone = Count(), Count()

    def work() -> int:
        raise OSError(5, "on purpose")

    with pytest.raises(OSError, match="on purpose"):
        await gate.call(work, undo=undone, releases=(released, released), of_set=3)
    assert len(released.calls) == 2
    assert not undone.calls
    assert not any(_borrowed(gate))


async def test_a_call_that_hangs_ends_at_its_limit_and_the_store_is_down(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang = hangs()
    await _answered_late(hang, mock_clock, lambda: gate.call(hang), _OP_S)
    assert not gate.is_up
    with pytest.raises(StoreDown):
        await gate.call(lambda: 7)


async def test_a_transfer_has_a_limit_of_its_own(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang = hangs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.transfer, hang)
        await hang.has_begun()
        await wait_all_tasks_blocked()
        mock_clock.jump(_IO_S - 1)
        await wait_all_tasks_blocked()
        assert gate.is_up
        hang.go.set()
    assert gate.is_up


async def test_what_a_late_call_holds_is_released_once_and_only_when_it_is_over(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang, released = hangs(), Count()
    await _answered_late(hang, mock_clock, lambda: gate.call(hang, releases=(released,), of_set=3), _OP_S)
    assert not released.calls
    assert any(_borrowed(gate))
    hang.go.set()
    await released.has_come()
    await _all_idle(gate)
    assert len(released.calls) == 1


async def test_a_late_result_is_taken_back_once(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang, undone = hangs(), Count()
    await _answered_late(hang, mock_clock, lambda: gate.call(hang, undo=undone), _OP_S)
    assert not undone.calls
    hang.go.set()
    await undone.has_come()
    await _all_idle(gate)
    assert undone.calls == [("late",)]


async def test_a_late_failure_needs_no_taking_back(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang, undone, released = hangs(), Count(), Count()
    hang.result = OSError(5, "late")
    await _answered_late(hang, mock_clock, lambda: gate.call(hang, undo=undone, releases=(released,)), _OP_S)
    hang.go.set()
    await released.has_come()
    assert not undone.calls


async def test_a_call_refused_while_the_store_is_down_gives_back_what_it_was_given(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang, released = hangs(), Count()
    await _answered_late(hang, mock_clock, lambda: gate.call(hang), _OP_S)
    with pytest.raises(StoreDown):
        await gate.transfer(lambda: 7, releases=(released,), of_set=3)
    assert len(released.calls) == 1


async def test_a_cancelled_call_keeps_what_it_holds_until_it_is_over(
    gate: Gate, hangs: Callable[[], Hang]
) -> None:
    hang, released, undone = hangs(), Count(), Count()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gate.call(hang, undo=undone, releases=(released,), of_set=3))
        await hang.has_begun()
        nursery.cancel_scope.cancel()
    assert gate.is_up
    assert not released.calls
    hang.go.set()
    await undone.has_come()
    assert len(released.calls) == 1
    await _all_idle(gate)


async def test_a_call_cancelled_after_its_work_has_ended_takes_the_result_back(gate: Gate) -> None:
    undone, released = Count(), Count()
    with trio.CancelScope() as scope:
        await gate.call(lambda: 7, undo=undone, releases=(released, scope.cancel))
    if scope.cancelled_caught:
        await undone.has_come()
        assert undone.calls == [(7,)]
    assert len(released.calls) == 1


async def test_a_set_that_hangs_leaves_threads_to_the_others(gate: Gate, hangs: Callable[[], Hang]) -> None:
    hanging = [hangs() for _ in range(_OWN_THREADS)]
    async with trio.open_nursery() as nursery:
        for hang in hanging:
            nursery.start_soon(functools.partial(gate.call, hang, of_set=3))
        for hang in hanging:
            await hang.has_begun()
        assert await gate.call(lambda: 7, of_set=4) == 7
        assert await gate.call(lambda: 8) == 8
        for hang in hanging:
            hang.go.set()


async def test_a_call_that_waits_for_a_thread_and_is_cancelled_holds_nothing(
    gate: Gate, hangs: Callable[[], Hang]
) -> None:
    hanging, released, ran = [hangs() for _ in range(_OWN_THREADS)], Count(), Count()
    async with trio.open_nursery() as outer:
        for hang in hanging:
            outer.start_soon(functools.partial(gate.call, hang, of_set=3))
        for hang in hanging:
            await hang.has_begun()
        async with trio.open_nursery() as inner:
            inner.start_soon(lambda: gate.call(ran, releases=(released,), of_set=3))
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert len(released.calls) == 1
        for hang in hanging:
            hang.go.set()
    assert not ran.calls
    assert not any(_borrowed(gate))


async def test_slow_transfers_of_a_set_do_not_bring_the_store_down_for_its_metadata(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    """Sixteen fsyncs that each take a minute are a busy store, not a hung one."""
    hanging = [hangs() for _ in range(_OWN_THREADS)]
    async with trio.open_nursery() as nursery:
        for hang in hanging:
            nursery.start_soon(functools.partial(gate.transfer, hang, of_set=3))
        for hang in hanging:
            await hang.has_begun()
        answers: list[object] = []

        async def look() -> None:
            answers.append(await gate.call(lambda: 7, of_set=3))

        nursery.start_soon(look)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(_OP_S - 1)
        await wait_all_tasks_blocked(0.05)
        assert answers == [7]
        assert gate.is_up
        for hang in hanging:
            hang.go.set()


async def test_the_store_is_up_again_once_it_answers_a_probe(
    hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    probe, hang = hangs(), hangs()
    gate = Gate(probe, op_timeout_s=_OP_S)  # type: ignore[arg-type]  # what a probe returns is of no account
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.watch)
        await _answered_late(hang, mock_clock, lambda: gate.call(hang), _OP_S)
        await wait_all_tasks_blocked(0.001)
        assert not probe.entered.is_set()  # first the kernel looks the name up once more
        mock_clock.jump(0.25)
        await probe.has_begun()
        with pytest.raises(StoreDown):
            await gate.call(lambda: 7)
        probe.go.set()
        while not gate.is_up:
            await wait_all_tasks_blocked(0.001)
        assert await gate.call(lambda: 7) == 7
        nursery.cancel_scope.cancel()


async def test_a_probe_that_fails_is_repeated(hangs: Callable[[], Hang], mock_clock: MockClock) -> None:
    hang, probed = hangs(), threading.Semaphore(0)
    answers: list[OSError | None] = [OSError(5, "not yet"), OSError(116, "not yet"), None]

    def probe() -> None:
        answer = answers.pop(0)
        probed.release()
        if answer is not None:
            raise answer

    gate = Gate(probe, op_timeout_s=_OP_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.watch)
        await _answered_late(hang, mock_clock, lambda: gate.call(hang), _OP_S)
        while not gate.is_up:
            await wait_all_tasks_blocked(0.001)
            mock_clock.jump(1)
        assert not answers
        nursery.cancel_scope.cancel()


async def test_no_thread_to_be_had_fails_the_call_and_nothing_else(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on processes must not use up the gate for good."""
    released = Count()

    def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(trio.lowlevel, "start_thread_soon", none_left)
        with pytest.raises(Busy):
            await gate.call(lambda: 7, releases=(released,), of_set=3)
    assert len(released.calls) == 1
    assert not any(_borrowed(gate))
    assert await gate.call(lambda: 7) == 7


async def test_a_probe_that_finds_no_thread_is_repeated(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, tried = hangs(), Count()

    def none_left(*_: object, **__: object) -> None:
        tried()
        raise RuntimeError("can't start new thread")

    async with trio.open_nursery() as nursery:
        await _answered_late(hang, mock_clock, lambda: gate.call(hang), _OP_S)
        with monkeypatch.context() as patched:
            patched.setattr(trio.lowlevel, "start_thread_soon", none_left)
            nursery.start_soon(gate.watch)
            while not tried.calls:
                await wait_all_tasks_blocked(0.001)
                mock_clock.jump(0.25)
        assert not gate.is_up
        while not gate.is_up:
            await wait_all_tasks_blocked(0.001)
            mock_clock.jump(1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("sets", "wait"), [([3], 2), ([3, 4], 3), ([0], 3)], ids=["set", "in all", "no set"])
async def test_data_calls_that_wait_are_bounded(
    hangs: Callable[[], Hang], sets: list[int], wait: int
) -> None:
    """Each has a task of the transport, of which some must be left for metadata."""
    gate = Gate(lambda: None, data_calls=3, data_calls_per_set=2)
    hanging, refused, released = [hangs() for _ in range(5)], Count(), Count()

    async def transfer(number: int) -> None:
        try:
            await gate.transfer(hanging[number], of_set=sets[number % len(sets)], releases=(released,))
        except Busy:
            refused()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(transfer, number)
        await wait_all_tasks_blocked(0.05)
        assert len(refused.calls) == len(released.calls) == 5 - wait
        assert await gate.call(lambda: 7, of_set=3) == 7
        for hang in hanging:
            hang.go.set()
    assert len(released.calls) == 5
    assert await gate.transfer(lambda: 7, of_set=3) == 7
    assert not gate._waiting_for_data


async def test_many_sets_leave_no_limiter_each(gate: Gate) -> None:
    for number in range(1, 3000):
        await gate.call(lambda: None, of_set=number)
    assert len(gate._sets) <= 1025


# Looks at a store on this host's own disk


async def test_a_look_at_a_local_store_takes_no_thread() -> None:
    assert await Gate(lambda: None, local=True).look(threading.get_ident) == threading.get_ident()


async def test_a_look_at_any_other_store_takes_one(gate: Gate) -> None:
    assert await gate.look(threading.get_ident) != threading.get_ident()


async def test_after_a_slow_look_the_next_ones_take_threads() -> None:
    gate = Gate(lambda: None, local=True)
    busy_until = time.monotonic() + 0.03

    def slow() -> None:
        while time.monotonic() < busy_until:
            pass

    await gate.look(slow)
    assert await gate.look(threading.get_ident) != threading.get_ident()


async def test_a_look_gives_back_what_it_held_even_if_it_fails() -> None:
    given_back: list[str] = []

    def fail() -> None:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        await Gate(lambda: None, local=True).look(fail, releases=[lambda: given_back.append("pin")])
    assert given_back == ["pin"]


# Writes that need no thread


@pytest.mark.parametrize("size", [1, 64 << 10, 1 << 20])
async def test_what_a_local_store_is_given_takes_no_thread_if_nobody_writes_besides(size: int) -> None:
    assert await Gate(lambda: None, local=True).put(threading.get_ident, size) == threading.get_ident()


async def test_what_any_other_store_is_given_takes_one(gate: Gate) -> None:
    assert await gate.put(threading.get_ident, 1) != threading.get_ident()


@pytest.mark.parametrize(("size", "takes_thread"), [(64 << 10, False), (1 << 20, True)])
async def test_beside_others_only_what_is_small_takes_no_thread(
    hangs: Callable[[], Hang], size: int, takes_thread: bool
) -> None:
    gate, other = Gate(lambda: None, local=True), hangs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.transfer, other)
        await other.has_begun()
        assert (await gate.put(threading.get_ident, size) != threading.get_ident()) == takes_thread
        other.go.set()


async def test_after_a_slow_write_the_next_ones_take_threads() -> None:
    gate = Gate(lambda: None, local=True)
    busy_until = time.monotonic() + 0.03

    def slow() -> None:
        while time.monotonic() < busy_until:
            pass

    await gate.put(slow, 1)
    assert await gate.put(threading.get_ident, 1) != threading.get_ident()


# Alone with a set


async def test_alone_waits_for_the_calls_of_the_set_and_holds_up_new_ones(
    gate: Gate, hangs: Callable[[], Hang]
) -> None:
    hang, order = hangs(), list[str]()

    async def running() -> None:
        await gate.call(hang, of_set=7)
        order.append("running")

    async def go_on() -> None:
        await wait_all_tasks_blocked()
        hang.go.set()

    async def new() -> None:
        await gate.transfer(lambda: order.append("new"), of_set=7)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(running)
        await hang.has_begun()
        nursery.start_soon(go_on)
        async with gate.alone(7):
            order.append("alone")
            nursery.start_soon(new)
            await gate.call(lambda: order.append("another set"), of_set=8)
            await gate.call(lambda: order.append("no set"))
    assert order == ["running", "alone", "another set", "no set", "new"]


async def test_alone_gives_up_before_others_have_waited_too_long(
    gate: Gate, hangs: Callable[[], Hang], mock_clock: MockClock
) -> None:
    hang = hangs()

    async def alone() -> None:
        with pytest.raises(StoreDown):
            async with gate.alone(7):
                raise AssertionError("not alone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(gate.transfer, hang, of_set=7))
        await hang.has_begun()
        nursery.start_soon(alone)
        await wait_all_tasks_blocked()
        mock_clock.jump(_OP_S / 4)
        await wait_all_tasks_blocked()
        assert gate.is_up
        hang.go.set()
    await _all_idle(gate)
    await gate.call(lambda: None, of_set=7)


async def test_calls_that_hang_in_a_further_store_keep_nobody_from_the_others(tmp_path: Path) -> None:
    assert initialise(str(tmp_path / "home"))
    home = id_of(str(tmp_path / "home"))
    _, identifier = initialise_further(str(tmp_path / "fast"), home)
    volumes = Volumes(home)
    volumes.follow([FurtherStore("fast", str(tmp_path / "fast"), identifier)])
    volumes.look_at_all()
    gate = Gate(lambda: None, op_timeout_s=0.5, io_timeout_s=3600.0, volumes=volumes)
    there = Spot(ROOT, (b"users",), volume=identifier.encode())
    released = threading.Event()

    def hang() -> None:
        with volumes.entered(there):
            released.wait()

    async def silent(call: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        with pytest.raises(StoreDown):
            await call(hang)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(
                100
            ):  # more than there are threads of either kind; the data calls would wait for an hour
                nursery.start_soon(silent, gate.call)
            for _ in range(40):
                nursery.start_soon(suppressed, gate.transfer, hang)
            while not volumes.is_silent(there.volume):  # noqa: ASYNC110 - nobody is told
                await trio.sleep(0.01)
            assert gate.is_up
            assert await gate.call(lambda: "home") == "home"
            assert await gate.transfer(lambda: "home") == "home"
            nursery.cancel_scope.cancel()
    finally:
        released.set()
        while gate.overdue:  # noqa: ASYNC110 - nobody is told
            await trio.sleep(0.01)
    volumes.look(there.volume)
    assert volumes.is_usable(there.volume)
    volumes.close()


async def suppressed(call: Callable[[Callable[[], None]], Awaitable[None]], work: Callable[[], None]) -> None:
    with contextlib.suppress(StoreDown):
        await call(work)
