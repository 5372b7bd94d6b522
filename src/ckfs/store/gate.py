"""Threads between the event loop and a store that may hang.

Each call on the store runs in a worker thread and has a time limit. A thread that hangs cannot be stopped: the caller
gets StoreDown, what the call holds (locks, pinned descriptors) stays held until it returns, and its late result is
undone. From the first time-out the store is *down*: calls fail at once until a probe gets through, so that many
waiters, which the kernel serialises in a directory, do not add up.

A look at a local disk or at memory answers sooner than a thread would: it is made right in the event loop, for as long as
none has been slow (:meth:`Gate.look`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import outcome
import trio

from ckfs.errors import Busy, Stale, StoreDown
from ckfs.store.spots import HOME, VolumeId
from ckfs.store.trouble import Trouble, trouble_of
from ckfs.store.volumes import Visit, Volumes, visiting

log = logging.getLogger(__name__)

T = TypeVar("T")
Release = Callable[[], None]
"""Gives something back that a call holds; called exactly once, when its thread is done with it."""


class LockRelease(ABC):
    """A release that also wants to know when the call's caller has been answered without it."""

    @abstractmethod
    def __call__(self) -> None: ...

    @abstractmethod
    def overdue(self) -> None: ...


_METADATA_THREADS = 48
_DATA_THREADS = 32
_THREADS_PER_SET = 16
_PROBE_AFTER_S = 0.25
"""The kernel looks a name up once more when it was told that this took too long, which must not wait again: where all else answers, it would."""
_PROBE_INTERVAL_S = 0.5
_SMALL_BYTES = 64 << 10
_SLOW_LOOK_S = 0.02
_THREADS_AFTER_SLOW_LOOK_S = 10.0

DATA_CALLS = 1536
"""How many data calls may wait for the store at once, so that a transport with more places than these always has one for
a metadata call: data calls may wait for ten minutes."""
_DATA_CALLS_PER_SET = 768


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """One call on its way; *abandoned* once its caller has been answered without it."""

    work: Callable[[], T]
    undo: Callable[[T], None] | None
    releases: tuple[Release, ...]
    limiters: list[trio.CapacityLimiter] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Outcome[T] | None = None
    started: bool = False
    abandoned: bool = False
    visit: Visit = field(default_factory=Visit)
    of_set: int = 0
    since_s: float = 0.0
    """When it got a thread, in the event loop's time."""


class Gate:
    """Runs calls on one store. All methods belong to the event loop's thread.

    *op_timeout_s* bounds a metadata call, *io_timeout_s* a data call or fsync. *probe* asks the store for a sign of life.
    *local* is for a store that no other machine has to answer for. A call that hangs in one of its further stores, *volumes*, makes that
    one alone go down.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        *,
        op_timeout_s: float = 10.0,
        io_timeout_s: float = 600.0,
        local: bool = False,
        data_calls: int = DATA_CALLS,
        data_calls_per_set: int = _DATA_CALLS_PER_SET,
        volumes: Volumes | None = None,
    ) -> None:
        self._probe = probe
        self._volumes = volumes
        self.volume_of: Callable[[int], VolumeId] = lambda _: HOME
        """In which further store a set lies that is known by that number."""
        self._local = local
        self._threads_until = 0.0
        self.op_timeout_s = op_timeout_s
        self.io_timeout_s = io_timeout_s
        self._metadata = trio.CapacityLimiter(_METADATA_THREADS)
        self._data = trio.CapacityLimiter(_DATA_THREADS)
        self._data_calls = data_calls
        self._data_calls_per_set = data_calls_per_set
        self._waiting_for_data: Counter[int] = Counter()
        self._sets: dict[tuple[int, int], trio.CapacityLimiter] = {}
        self._up = trio.Event()
        self._up.set()
        self._came_down = trio.Event()
        self.since_ns = time.time_ns()
        """Since when it is up, or down."""
        self.trouble: Trouble | None = None
        """The last that the store did wrong."""
        self._overdue: set[_Job[Any]] = set()
        self._running: set[_Job[Any]] = set()

    @property
    def overdue(self) -> int:
        """How many threads are with the store for calls whose callers have been answered."""
        return len(self._overdue)

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    @property
    def answers_at_once(self) -> bool:
        """Whether a look may be made right in the event loop."""
        is_local = self._local and (self._volumes is None or self._volumes.are_local)
        return is_local and self.is_up and time.monotonic() >= self._threads_until

    @property
    def is_busy(self) -> bool:
        """Whether anybody's call is with the store, or waits for it."""
        return self._waiting_for_data.total() > 0 or self._metadata.borrowed_tokens > 0

    async def call(
        self,
        work: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
        releases: Iterable[Release] = (),
        of_set: int = 0,
    ) -> T:
        """Run a metadata call. *undo* takes back a result that came too late; *releases* run when the thread is done
        with what they hold, however late. Raises StoreDown, or what *work* raises."""
        return await self._run(_Job(work, undo, tuple(releases)), self._metadata, self.op_timeout_s, of_set)

    async def look(self, work: Callable[[], T], *, releases: Iterable[Release] = (), of_set: int = 0) -> T:
        """As :meth:`call`, for *work* that changes nothing and reads no file's content."""
        if not self.answers_at_once:
            return await self.call(work, releases=releases, of_set=of_set)
        return self.at_once(work, releases)

    def at_once(self, work: Callable[[], T], releases: Iterable[Release] = ()) -> T:
        """Run *work* in the event loop, and see whether that still answers at once."""
        begin = time.monotonic()
        try:
            return work()
        except OSError as error:
            self.trouble = trouble_of(error) or self.trouble
            raise
        finally:
            if time.monotonic() - begin > _SLOW_LOOK_S:  # a busy disk: the next ones wait in threads
                self._threads_until = time.monotonic() + _THREADS_AFTER_SLOW_LOOK_S
            for release in releases:
                release()

    def takes_at_once(self, size: int) -> bool:
        """Whether the event loop may give the store *size* bytes itself."""
        return (size <= _SMALL_BYTES or not self._waiting_for_data) and self.answers_at_once

    async def put(
        self, work: Callable[[], T], size: int, *, releases: Iterable[Release] = (), of_set: int = 0
    ) -> T:
        """As :meth:`transfer`, for *work* that gives the store *size* bytes: a store that answers at once has taken them sooner
        than a thread would begin, unless others write besides, whom threads let do so at the same time."""
        if self.takes_at_once(size):
            return self.at_once(work, releases)
        return await self.transfer(work, releases=releases, of_set=of_set)

    async def transfer(
        self, work: Callable[[], T], *, releases: Iterable[Release] = (), of_set: int = 0
    ) -> T:
        """Run a data call or an fsync: as :meth:`call`, with the time limit for data. Raises Busy if too many wait."""
        job = _Job(work, None, tuple(releases))
        waiting = self._waiting_for_data
        if waiting.total() >= self._data_calls or (of_set and waiting[of_set] >= self._data_calls_per_set):
            self._give_up(job)
            raise Busy("too many data calls wait for the store")
        waiting[of_set] += 1
        try:
            return await self._run(job, self._data, self.io_timeout_s, of_set)
        finally:
            waiting[of_set] -= 1
            if not waiting[of_set]:
                del waiting[of_set]

    @contextlib.asynccontextmanager
    async def alone(self, of_set: int) -> AsyncIterator[None]:
        """Within the block no call of the set *of_set* is under way, and new ones wait.

        StoreDown if those that are do not end soon: others must not have to wait for long.
        """
        held: list[tuple[trio.CapacityLimiter, object]] = []
        try:
            with trio.move_on_after(self.op_timeout_s / 4) as limit:
                for kind in (self._metadata, self._data):
                    limiter = self._limiter(of_set, kind)
                    for _ in range(_THREADS_PER_SET):
                        borrower = object()
                        await limiter.acquire_on_behalf_of(borrower)
                        held.append((limiter, borrower))
                await trio.lowlevel.checkpoint()  # those whose calls have just ended take up what they found
            if limit.cancelled_caught:
                raise StoreDown("calls of the set are still under way")
            yield
        finally:
            for limiter, borrower in held:
                limiter.release_on_behalf_of(borrower)

    async def clean_up(self, work: Callable[[], None]) -> None:
        """Run *work* even while the store is down, for as long as it takes up to the limit; its errors are logged."""
        job: _Job[None] = _Job(work, None, ())
        self._start(job)
        with trio.move_on_after(self.op_timeout_s):
            await job.done.wait()
        if job.result is None:
            self._give_up(job)
        if isinstance(job.result, outcome.Error):
            log.warning("clean-up in the store failed: %s", job.result.error)

    async def _run(self, job: _Job[T], kind: trio.CapacityLimiter, limit_s: float, of_set: int) -> T:
        try:
            self._check_up(of_set)
            with trio.move_on_after(limit_s):
                await self._acquire(job, kind, of_set)
                self._check_up(of_set)  # it may have gone down while this call waited for a thread
                self._start(job)
                await job.done.wait()
        except BaseException:
            self._give_up(job)
            raise
        if job.result is None:
            self._give_up(job)
            # Else it only waited for others, of its set or of a further store: no news of the store.
            if job.started and trio.current_time() - job.since_s >= limit_s / 2:
                self.missed(self._volume_of(job), limit_s)
            raise StoreDown(f"the store did not answer within {limit_s:g} s")
        try:
            return job.result.unwrap()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise Stale("the store says that the file is gone") from error

    async def _acquire(self, job: _Job[T], kind: trio.CapacityLimiter, of_set: int) -> None:
        job.of_set = of_set
        limiter = self._limiter(of_set, kind)
        await limiter.acquire_on_behalf_of(job)
        job.limiters.append(limiter)
        await kind.acquire_on_behalf_of(job)
        job.limiters.append(kind)
        if len(self._sets) > 1024:
            self._sets = {key: used for key, used in self._sets.items() if used.borrowed_tokens}

    def _limiter(self, of_set: int, kind: trio.CapacityLimiter) -> trio.CapacityLimiter:
        key = (of_set, id(kind))  # slow data calls of a set leave its metadata calls alone
        limiter = self._sets.get(key)
        if limiter is None:
            limiter = self._sets[key] = trio.CapacityLimiter(_THREADS_PER_SET if of_set else math.inf)
        return limiter

    def _start(self, job: _Job[T]) -> None:
        token = trio.lowlevel.current_trio_token()

        def deliver(result: outcome.Outcome[T]) -> None:  # in the worker thread
            with contextlib.suppress(trio.RunFinishedError):  # the daemon ended meanwhile
                token.run_sync_soon(self._finish, job, result)

        def work() -> T:
            with visiting(job.visit):
                return job.work()

        try:
            trio.lowlevel.start_thread_soon(work, deliver)
        except RuntimeError as error:
            raise Busy(f"no thread to be had: {error}") from error
        self._running.add(job)
        job.since_s = trio.current_time()
        job.started = True  # only now: without a thread nothing would ever give back what the job holds

    def _finish(self, job: _Job[T], result: outcome.Outcome[T]) -> None:
        job.result = result
        self._overdue.discard(job)
        self._running.discard(job)
        if isinstance(result, outcome.Error):
            self.trouble = trouble_of(result.error) or self.trouble
        self._release(job)
        if job.abandoned:
            self._take_back(job)
        job.done.set()

    def _take_back(self, job: _Job[T]) -> None:
        if job.undo is not None and isinstance(job.result, outcome.Value):
            undo, value = job.undo, job.result.value
            with contextlib.suppress(
                RuntimeError
            ):  # no thread to be had: what is not taken back is not used either
                trio.lowlevel.start_thread_soon(lambda: undo(value), _log_failure)

    def _give_up(self, job: _Job[T]) -> None:
        """The caller waits no more. A job that runs keeps what it holds; one that never started holds nothing."""
        job.abandoned = True
        if not job.started:
            self._release(job)
            return
        if job.done.is_set():  # cancelled between the end of the work and its answer
            self._take_back(job)
            return
        self._overdue.add(job)
        for release in job.releases:
            if isinstance(release, LockRelease):
                release.overdue()

    def _release(self, job: _Job[T]) -> None:
        for limiter in job.limiters:
            limiter.release_on_behalf_of(job)
        job.limiters.clear()
        releases, job.releases = job.releases, ()
        for release in releases:
            release()

    # Down and up again

    def _check_up(self, of_set: int) -> None:
        if not self._up.is_set():
            raise StoreDown("the store is down")
        if self._volumes is not None and self._volumes.is_silent(self.volume_of(of_set)):
            raise StoreDown("the further store is down")

    def missed(self, volume: VolumeId, limit_s: float) -> None:
        """Something in *volume* did not end within *limit_s*. Calls that hang in a further store take nobody else's thread from then on:
        no others follow them."""
        if volume == HOME or self._volumes is None:
            self._go_down(limit_s)
            return
        self._volumes.silence(volume, limit_s)
        for job in self._running:
            if self._volume_of(job) == volume and len(job.limiters) > 1:  # its set's, and that of its kind
                job.limiters.pop().release_on_behalf_of(job)

    def _volume_of(self, job: _Job[Any]) -> VolumeId:
        return job.visit.volume or self.volume_of(job.of_set)

    def _go_down(self, limit_s: float) -> None:
        if self._up.is_set():
            log.warning(
                "store down: a call took longer than %g s; calls fail until it answers a probe", limit_s
            )
            self._up = trio.Event()
            self.trouble = Trouble(f"the store did not answer within {limit_s:g} s")
            self.since_ns = self.trouble.when_ns
            self._came_down.set()

    async def watch(self) -> None:
        """Probe the store whenever it is down; runs for the life of the mount."""
        while True:
            await self._came_down.wait()
            self._came_down = trio.Event()
            await trio.sleep(_PROBE_AFTER_S)
            while not await self._probe_once():  # noqa: ASYNC110 - a store sends no event when it answers again
                await trio.sleep(_PROBE_INTERVAL_S)
            log.warning("store up again")
            self.since_ns = time.time_ns()
            self._up.set()

    async def _probe_once(self) -> bool:
        answer = trio.Event()
        token = trio.lowlevel.current_trio_token()
        results: list[outcome.Outcome[None]] = []

        def deliver(result: outcome.Outcome[None]) -> None:
            results.append(result)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(answer.set)

        try:
            trio.lowlevel.start_thread_soon(self._probe, deliver)
        except RuntimeError:  # no thread to be had: this says nothing of the store, which is asked again
            return False
        await answer.wait()  # one probe at a time: a hung one must not be followed by a thousand others
        return isinstance(results[0], outcome.Value)


def _log_failure(result: outcome.Outcome[None]) -> None:
    if isinstance(result, outcome.Error):
        log.warning("could not take back a call that the store made too late: %s", result.error)
