"""Runs the scenarios in all places in turn, so that whatever else the machine does meets them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ckfs.bench import daemon
from tests.bench import memory
from tests.bench.places import CKFS, Place, as_user, forget_names, forget_pages, places, scratch_in, write_out
from tests.bench.workloads import GIB, MB_S, Caches, Scale, Step, scenarios

Say = Callable[[str], None]

LOOK_S, _FEW_S = 0.3, 0.02
"""A daemon that takes no more than this of a processor between two looks is quiet: /proc counts hundredths of seconds."""
DIGESTS_BEGIN_S = 1.5
"""The digest of what became complete is begun a second later."""
_QUIET_WITHIN_S = 60.0


@dataclass(slots=True)
class Measured:
    """*seconds* of each place, one number per repetition. *cpu_s* is what the daemon of a ckfs place took meanwhile, *later_s* what
    it took afterwards for that, until it was quiet; *peak_bytes* the most that any was ever resident by then."""

    step: Step
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    later_s: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def rate(self, place: str) -> float | None:
        """The median, in the step's unit; None where the place was not measured."""
        times = self.seconds.get(place)
        return self.step.amount / statistics.median(times) if times else None

    def ratios(self, place: str, control: str) -> list[float]:
        """How many times as fast as *control* the *place* was, in each repetition."""
        return [
            theirs / ours
            for ours, theirs in zip(self.seconds.get(place, []), self.seconds.get(control, []), strict=False)
        ]

    @property
    def gib(self) -> float | None:
        """What is read or written; None of steps that are counted in files."""
        return self.step.amount * 1e6 / GIB if self.step.unit == MB_S else None


@dataclass(frozen=True, slots=True)
class Compared:
    """*passes*: the kernel passed through what it may."""

    measured: list[Measured]
    passes: bool


def compare(
    directory: str, scale: Scale, say: Say, *, on_disk: bool, examples: str | None = None
) -> Compared:
    """Everything measured in new places below *directory*."""
    measured: list[Measured] = []
    passes = True
    for steps in scenarios(scale):
        chosen = [Measured(step) for step in steps if on_disk or not step.disk_only]
        for repetition in range(scale.repetitions if chosen else 0):
            with scratch_in(directory) as scratch, places(scratch, examples) as found:
                passes = passes and found[CKFS].passes
                order = list(found.values())
                turn = repetition % len(order)
                for place_and_steps in _turns(chosen, order[turn:] + order[:turn]):
                    _measure(*place_and_steps, say)
        measured += [one for one in chosen if one.step.amount]
    return Compared(measured, passes)


def _turns(chosen: list[Measured], order: list[Place]) -> list[tuple[Place, Measured, Measured | None]]:
    """Step by step, all places; beside each step the measured one before it, which an unmeasured one is a part of."""
    turns: list[tuple[Place, Measured, Measured | None]] = []
    before: Measured | None = None
    for one in chosen:
        turns += [(place, one, before) for place in order]
        before = one if one.step.amount else before
    return turns


def _measure(place: Place, one: Measured, before: Measured | None, say: Say) -> None:
    step = one.step
    directory, below = (
        (place.images, place.images_below) if step.of_images else (place.directory, place.below)
    )
    if step.caches is Caches.NO_PAGES:
        if not forget_pages(below):
            say(f"{step.title}: {place.name}: pages of it stay in memory")
    elif step.caches is Caches.NO_NAMES:
        forget_names()
    memory.touch(step.written_bytes)
    begun = daemon.read(place.pid)
    seconds = as_user(step.work, directory, *step.args, uid=place.user)
    ended = daemon.read(place.pid)
    if step.writes:
        write_out(below)
    if step.amount:
        one.seconds.setdefault(place.name, []).append(seconds)
        say(f"{step.title}: {place.name} {step.amount / seconds:,.0f} {step.unit}")
    quiet = until_quiet(place.pid, DIGESTS_BEGIN_S if step.completes else LOOK_S)
    if begun is None or ended is None or quiet is None:
        return
    if step.amount:
        one.cpu_s.setdefault(place.name, []).append(ended.cpu_s - begun.cpu_s)
        one.later_s.setdefault(place.name, []).append(quiet.cpu_s - ended.cpu_s)
        one.peak_bytes[place.name] = max(one.peak_bytes.get(place.name, 0), quiet.peak_bytes)
    elif before is not None:
        before.later_s[place.name][-1] += quiet.cpu_s - begun.cpu_s


def until_quiet(pid: int | None, least_s: float) -> daemon.Reading | None:
    """When a daemon does nothing any more, and *least_s* are over: so that it does not disturb whoever is measured next."""
    before = daemon.read(pid)
    if before is None:
        return None
    deadline = time.monotonic() + _QUIET_WITHIN_S
    time.sleep(least_s)
    while time.monotonic() < deadline:
        now = daemon.read(pid)
        if now is None or now.cpu_s - before.cpu_s <= _FEW_S:
            return now
        before = now
        time.sleep(LOOK_S)
    return before
