"""What is wanted of ckfs, and whether it was reached: the table at the head of the performance document."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.bench.compare import Measured
from tests.bench.criu import BATCH, BOTH, OTHER, Dumped
from tests.bench.manysets import Size
from tests.bench.markdown import NOTHING, megabytes, short, table
from tests.bench.places import BINDFS, BY_DAEMON, CKFS, PLAIN
from tests.bench.workloads import AT_ONCE, CYCLE, FILES_S, READ, READ_COLD, READ_SMALL, WRITE, WRITE_SMALL

_CPU_S_PER_GIB = 0.05
_RESIDENT_BYTES = 150_000_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """At least *past* of a plain directory's speed as ckfs comes, and *by_daemon* of bindfs's with passthrough=off; None: as much as
    can be had."""

    step: str
    past: float | None
    by_daemon: float


WANTED = (
    Wanted(WRITE, 0.95, 2.0),
    Wanted(WRITE_SMALL, 0.9, 1.5),
    Wanted(READ, 0.95, 1.5),
    Wanted(READ_SMALL, 0.95, 1.5),
    Wanted(READ_COLD, 0.95, 1.5),
    Wanted(AT_ONCE, 0.9, 2.0),
    Wanted(CYCLE, None, 1.0),
)
_CRIU = 0.9


@dataclass(frozen=True, slots=True)
class Reached:
    """What was found on a backing file system, called *title*; what was not measured is empty. *passes*: the kernel passed through what
    it may."""

    title: str
    measured: Sequence[Measured] = ()
    passes: bool = False
    dumped: Dumped | None = None
    size: Size | None = None


def targets(found: Sequence[Reached]) -> str:
    """Wanted, and reached on each file system: as ckfs comes, and by its daemon alone."""
    rows: list[tuple[str, ...]] = [
        (
            "",
            f"{CKFS} ÷ {PLAIN}: wanted",
            *(f"reached on {one.title}" for one in found),
            f"{BY_DAEMON} ÷ {BINDFS}: wanted",
            *(f"reached on {one.title}" for one in found),
        )
    ]
    rows += [
        (
            wanted.step,
            "as close as it gets" if wanted.past is None else f"≥ {wanted.past:g}",
            *(_at_least(_ratios(one, wanted.step, CKFS, PLAIN), wanted.past) for one in found),
            f"≥ {wanted.by_daemon:g}",
            *(_at_least(_ratios(one, wanted.step, BY_DAEMON, BINDFS), wanted.by_daemon) for one in found),
        )
        for wanted in WANTED
    ]
    for where in (OTHER, BATCH):
        reached = [_at_least(_of_criu(one, where), _CRIU) for one in found]
        rows.append((f"CRIU, {BOTH}, {where}", f"≥ {_CRIU:g}", *reached, NOTHING, *(NOTHING for _ in found)))
    rows += [
        _below("daemon's CPU seconds for each GiB, at most", _costliest, _CPU_S_PER_GIB, _seconds, found),
        _below(
            "the same afterwards (digests)", lambda one, place: _costliest(one, place, later=True), None,
            _seconds, found,
        ),
        _below("daemon's CPU milliseconds for each file of that cycle", _for_each_file, None, _milliseconds, found),
        _below("daemon's resident memory, at most", _resident, _RESIDENT_BYTES, megabytes, found),
    ]  # fmt: skip
    return table(rows)


def _at_least(ratios: Sequence[float], wanted: float | None) -> str:
    if not ratios:
        return NOTHING
    median = statistics.median(ratios)
    return _marked(short(median), None if wanted is None else median >= wanted)


def _marked(text: str, is_reached: bool | None) -> str:
    """*is_reached* is None where nothing is wanted."""
    if is_reached is None:
        return text
    return f"**{text}**" if is_reached else f"{text}, missed"


def _ratios(one: Reached, step: str, place: str, control: str) -> list[float]:
    return [ratio for it in one.measured if it.step.title == step for ratio in it.ratios(place, control)]


def _of_criu(one: Reached, where: str) -> list[float]:
    return [] if one.dumped is None else one.dumped.ratios(BOTH, where)


def _below(
    title: str,
    figure: Callable[[Reached, str], float | None],
    wanted: float | None,
    show: Callable[[float], str],
    found: Iterable[Reached],
) -> tuple[str, ...]:
    """A row about the daemon itself, of either kind of mount. What is *wanted* of memory is wanted of both, the rest as ckfs comes."""

    def shown(one: Reached, place: str, limit: float | None) -> str:
        number = figure(one, place)
        if number is None:
            return NOTHING
        return _marked(show(number), None if limit is None else number < limit)

    every = list(found)
    of_both = wanted if figure is _resident else None
    cells = [title, NOTHING if wanted is None else f"< {show(wanted)}"]
    cells += [shown(one, CKFS, wanted) for one in every]
    cells += [NOTHING if of_both is None else f"< {show(of_both)}"]
    cells += [shown(one, BY_DAEMON, of_both) for one in every]
    return tuple(cells)


def _costliest(one: Reached, place: str, *, later: bool = False) -> float | None:
    """Of the steps with a target that read or write streams: the one of which each GiB takes most."""
    streams = {wanted.step for wanted in WANTED}
    figures = [
        per_gib(it, place, later=later)
        for it in one.measured
        if it.step.title in streams and it.gib is not None
    ]
    return max((figure for figure in figures if figure is not None), default=None)


def per_gib(one: Measured, place: str, *, later: bool = False) -> float | None:
    """Seconds of a processor that the daemon of *place* took for each GiB: meanwhile, or *later*."""
    times = (one.later_s if later else one.cpu_s).get(place)
    return statistics.median(times) / one.gib if times and one.gib else None


def per_file(one: Measured, place: str, *, later: bool = False) -> float | None:
    """The same for each file, of steps that are counted in files."""
    times = (one.later_s if later else one.cpu_s).get(place)
    return statistics.median(times) / one.step.amount if times and one.step.unit == FILES_S else None


def _for_each_file(one: Reached, place: str) -> float | None:
    return next((per_file(it, place) for it in one.measured if it.step.title == CYCLE), None)


def _resident(one: Reached, place: str) -> float | None:
    """The most that any daemon had; with many sets, too, and with CRIU, which are as ckfs comes."""
    most = [it.peak_bytes[place] for it in one.measured if place in it.peak_bytes]
    if place == CKFS:
        most += [] if one.size is None else [one.size.peak_bytes]
        most += [] if one.dumped is None or not one.dumped.peak_bytes else [one.dumped.peak_bytes]
    return max(most, default=None)


def _seconds(number: float) -> str:
    return f"{number:.3f}"


def _milliseconds(number: float) -> str:
    return f"{number * 1000:.2f}"
