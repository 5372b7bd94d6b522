"""The results as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyfuse3
import trio

from tests.bench import criu, ledger, owners
from tests.bench.compare import Measured
from tests.bench.criu import Dumped
from tests.bench.hosts import HOW, Together
from tests.bench.ledger import Costs
from tests.bench.manysets import Size
from tests.bench.markdown import NOTHING, megabytes, rate, ratio, spread, table
from tests.bench.places import BINDFS, BY_DAEMON, CKFS, MERGERFS, PASSTHROUGH_HP, PLAIN
from tests.bench.protection import OFF, WITH, Cost
from tests.bench.protection import PLAIN as NO_BATCH_SETS
from tests.bench.targets import Reached, per_file, per_gib, targets
from tests.bench.workloads import GIB, MIB, Scale

_HEADER = """\
## How the tables were made

The tables that follow are written by `{command} --write FILE`: do not edit them by hand, run it again.

**plain** is a directory of the backing file system, **bindfs** is bindfs with its defaults over another such directory, **ckfs** is a
mount of a store on the same file system as it comes: the kernel reads and writes by itself what it may
([passthrough](SEMANTICS.md#by-the-kernel-alone)). **ckfs by the daemon** is the same with `passthrough=off`. {others}All take turns within
one run, each time in another order; every step runs in a new process of a user who is not root, whose set it is, and who has no limit. A rate is
the median of all repetitions; a ratio is the median of the ratios of each repetition (above 1.00: ckfs is faster), with the lowest and
the highest.

- Writes are timed from open to close of a new file; only where fsync is named must the data reach the disk. After the time was taken
  it does everywhere, so that the next one does not wait for it.
- The file that is written with 1 MiB calls, and then read, is in a batch set, where complete images are read by the kernel alone: it is
  written under a temporary name, and renamed to its final one, which is not timed. All else is in sets outside batch sets.
- Just before each stream that is written, each dump and each restore as much memory is taken as that will take, and given back: a virtual machine gets memory from its host when it
  first touches it, which takes several times as long as writing to it, and else whoever comes first pays for the next.
- Reads find the data in the page cache of the backing file system, except *cold* ones: before those the file was
  synced and its pages dropped. Neither bindfs nor ckfs keeps pages of its own from one open to the next.
- Before stat and `ls -l` the kernel's names and inodes were dropped{unless_dropped}. ckfs lets the kernel cache no names, and
  of attributes only those of directories, for two ticks of its clock, so that a change on one host is seen by the next call on another; bindfs caches both for a second.
- The daemon's time is that of all its threads, on all processors (utime and stime), and its memory the most that was ever resident
  (VmHWM). *Afterwards* is what it does until it is quiet, above all for digests: what the kernel has written by itself is read once for them.
"""

_OTHERS = {
    MERGERFS: "**mergerfs** is mergerfs over one more directory, with its defaults. ",
    PASSTHROUGH_HP: "**passthrough_hp** is libfuse's example, which passes through, with its defaults; root works there. ",
}

_TARGETS = """\
## What is wanted, and what was reached

Medians of ratios, as below: **reached**, or missed; without either nothing is wanted. `-` was not measured.
"""

_CRIU = """\
## CRIU

Whole commands `criu dump` and `criu restore` (CRIU {version}), of a process with {memory} of written memory, with images in a plain directory and
in two sets of ckfs, in turns. In a batch set nothing is written by the kernel alone, for CRIU makes its images under their final names; in
a user's own set nothing is read so. Seconds, and how many times as fast as in a plain directory: the median of the ratios of each of {repetitions} repetitions,
with the lowest and the highest.
"""


_PROTECTION = """\
## What protection and the trash cost

A batch set, in which its owner makes images of 4 KiB, reads them, and removes those that two newer ones have outlived: *a few
images* has three at a time, *dumps of 24 files* three directories of 24 each. Microseconds for one call, by three policies on one
file system in turns: **with** is the default; **off** has `protection.keep = 0` and `trash.retention_days = 0`, but pins and the order
of completion are still looked at; with **no batch sets** (`sets.batch = []` besides) there is nothing to look at. All are mounted with
`passthrough=off`: in a batch set other files are passed through than elsewhere. A figure is the
median of all rounds; a ratio is the median of the ratios of each round (below 1.30: protection costs less than 30 %), with the
lowest and the highest. Written by `python -m tests.bench --only protection`.
"""


_LEDGER = """\
## What the ledger costs

A store in which the ledger counts (`[quota] mode = "ledger"`, the default, in a file of the host) against one in which nobody does
(`mode = "none"`), both mounted side by side, file by file in turns, with `passthrough=off`: who has a limit is not passed through. Microseconds for one call by four owners: where there is **{none}**,
and, where there is one, with **{free}**, with one but **{far}** (1 TiB), and writing **{near}**: the last byte that he may have is the
last that he writes. Large calls write {stream}, small ones {small} into one file, from open to close; {files} empty files are made, and
removed for good. Beside the time that the user waits, the daemon's own processor time is compared: others on the machine
disturb it less. A figure is the median of {rounds} rounds; a ratio is the median of the ratios of each round (1.05: 5 % more than
without a ledger), with the quarters of the rounds that were below and above.
Written by `python -m tests.bench --only ledger`.
"""

_ASKED = """\
How often the ledger was asked for each GiB that was written, counted by triggers on its own tables: *grants* are how often what the
mount may use grew, *posts* how often the mount said what became of it, *notes* how often it said that a file is being written. Far from a
limit a grant is 64 MiB, twice as much each time one does not last a second, and at most 1 GiB; near it, an eighth of what is free, and with less than 128 KiB free exactly what a call needs.
"""

_HOSTS = """\
### Two hosts with a ledger in PostgreSQL

Two mounts of one store on one machine, on tmpfs where that was measured, with a PostgreSQL server of their own that syncs what it
commits. They write as one owner, far from his limit and up to it: {} with large calls and {} with small ones, by one host **alone**
or half by each of **both** at once. {rounds} rounds, in turns with a store in which nobody counts, since two mounts share the machine's
processors, ledger or not. MB/s of all hosts that write, and what both wrote against one alone: the median of the ratios of each round,
with the quarters below and above.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What was run: *command* without its directories, *loads* of the machine at its beginning, and at its end."""

    command: str
    scale: Scale
    loads: Sequence[float]
    dropped: bool


def text(
    run: Run,
    reached: Sequence[Reached],
    costs: Sequence[tuple[str, list[Cost]]],
    charged: Sequence[tuple[str, Costs]],
    together: Sequence[Together],
) -> str:
    """The whole document, or the parts of it that were measured. *reached* is for each backing file system, *costs* a title
    and what protection costs there, *charged* what the ledger does, *together* what two hosts do."""
    parts: list[str] = []
    compared = [one for one in reached if one.measured]
    if compared:
        parts += [_head(run, compared), _TARGETS, targets(reached), _machine(run, compared)]
    for one in compared:
        parts += [f"## On {one.title}\n", _comparison(one.measured)]
        parts += [f"### The daemon meanwhile, on {one.title}\n", _daemon(one.measured)]
    if dumped := [(one.title, one.dumped) for one in reached if one.dumped is not None]:
        parts.append(_of_criu(dumped))
        if not compared:
            parts.append(_machine(run, compared))
    if sizes := [(one.title, one.size) for one in reached if one.size is not None]:
        parts += ["## Many sets in one store\n", _sizes(sizes)]
    if costs:
        parts.append(of_protection(costs))
    if charged:
        parts.append(of_ledger(charged, together))
    return "\n".join(parts)


def _head(run: Run, compared: Sequence[Reached]) -> str:
    there = {place for one in compared for it in one.measured for place in it.seconds}
    return _HEADER.format(
        command=run.command,
        others="".join(says for name, says in _OTHERS.items() if name in there),
        unless_dropped="" if run.dropped else " (not in this run: it was not allowed)",
    )


def _of_criu(dumped: Sequence[tuple[str, Dumped]]) -> str:
    found = next((one for _, one in dumped if one.seconds), None)
    if found is None:
        return f"## CRIU\n\nNot measured: {dumped[0][1].why_not}\n"
    repetitions = len(found.times(criu.DUMP, criu.PLAIN))
    parts = [_CRIU.format(version=found.version, memory=_size(found.memory_bytes), repetitions=repetitions)]
    for title, one in dumped:
        parts += [f"### On {title}\n", _dumps(one)]
    return "\n".join(parts)


def _dumps(dumped: Dumped) -> str:
    if not dumped.seconds:
        return f"Not measured: {dumped.why_not}\n"
    sets = (criu.OTHER, criu.BATCH)
    rows: list[tuple[str, ...]] = [
        (
            "s",
            *criu.WHERE,
            *(f"{where} ÷ plain" for where in sets),
            *(f"daemon's CPU s/GiB, {where}" for where in sets),
        )
    ]
    rows += [
        (
            what,
            *(f"{statistics.median(dumped.times(what, where)):.2f}" for where in criu.WHERE),
            *(ratio(dumped.ratios(what, where)) for where in sets),
            *(_decimal(criu.per_gib(dumped, what, where), 3) for where in sets),
        )
        for what in criu.WHAT
    ]
    return table(rows)


def _decimal(number: float | None, digits: int) -> str:
    return NOTHING if number is None else f"{number:.{digits}f}"


def of_protection(costs: Sequence[tuple[str, list[Cost]]]) -> str:
    """The section about what protection costs."""
    parts = [_PROTECTION]
    for title, measured in costs:
        parts += [f"### On {title}\n", _costs(measured)]
    return "\n".join(parts)


def of_ledger(charged: Sequence[tuple[str, Costs]], together: Sequence[Together]) -> str:
    """The section about what the ledger costs."""
    first = charged[0][1]
    stream, small, make = (charge.load for charge in first.charges[:3])
    parts = [
        _LEDGER.format(
            none=owners.NONE,
            free=owners.FREE,
            far=owners.FAR,
            near=owners.NEAR,
            stream=_size(stream.size),
            small=_size(small.size),
            files=make.calls,
            rounds=first.rounds,
        )
    ]
    for title, costs in charged:
        parts += [f"### On {title}\n", _charges(costs)]
    parts += [_ASKED, _asked(first)]
    if together:
        sizes = (_size(one.size) for one in together)
        parts += [_HOSTS.format(*sizes, rounds=first.rounds), _hosts(together)]
    return "\n".join(parts)


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // 1024} KiB"


def _charges(costs: Costs) -> str:
    rows: list[tuple[str, ...]] = [
        ("µs", "", *ledger.EVERYBODY, *(f"{who} ÷ {owners.NONE}" for who in ledger.COUNTING))
    ]
    rows += [
        (
            charge.load.title,
            what,
            *(f"{charge.microseconds(what, who):,.0f}" for who in ledger.EVERYBODY),
            *(spread(charge.ratios(what, who)) for who in ledger.COUNTING),
        )
        for charge in costs.charges
        for what in (ledger.TIME, ledger.CPU)
    ]
    return table(rows)


def _asked(costs: Costs) -> str:
    rows: list[tuple[str, ...]] = [("written", "", "grants", "posts", "notes")]
    rows += [
        (
            f"{_size(one.size)} with calls of {_size(one.call)}",
            one.who,
            *(f"{count:,.0f}" for count in (one.grants, one.posts, one.notes)),
        )
        for one in costs.asked
    ]
    return table(rows)


def _hosts(together: Sequence[Together]) -> str:
    rows: list[tuple[str, ...]] = [
        ("MB/s", *(f"{how}: alone, both" for how in HOW), *(f"both ÷ alone, {how}" for how in HOW))
    ]
    rows += [
        (
            one.title,
            *(f"{_median_mb(one.alone[how])}, {_median_mb(one.both[how])}" for how in HOW),
            *(spread(one.ratios(how)) for how in HOW),
        )
        for one in together
    ]
    return table(rows)


def _median_mb(rates: Sequence[float]) -> str:
    rate = statistics.median(rates) / 1e6
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _costs(measured: Iterable[Cost]) -> str:
    rows: list[tuple[str, ...]] = [
        ("µs", "", "no batch sets", "off", "with", "with ÷ off", "with ÷ no batch sets")
    ]
    rows += [
        (
            one.kind,
            one.step,
            *(f"{one.microseconds(policy):,.0f}" for policy in (NO_BATCH_SETS, OFF, WITH)),
            ratio(one.ratios(OFF)),
            ratio(one.ratios(NO_BATCH_SETS)),
        )
        for one in measured
    ]
    return table(rows)


def _machine(run: Run, compared: Sequence[Reached]) -> str:
    scale, loads = run.scale, run.loads
    lines = [
        f"- {os.cpu_count()} cores, {_memory_gib()} GiB of memory, {platform.machine()}, Linux {platform.release().split('-')[0]}",
        f"- Python {platform.python_version()}, pyfuse3 {pyfuse3.__version__}, trio {trio.__version__}",
        f"- {scale.repetitions} repetitions; streams of {scale.stream_bytes // MIB:,} MiB, 4 KiB writes of {scale.small_bytes / MIB:g} MiB",
        f"- load average at the start and at the end: {loads[0]:.1f}, {loads[-1]:.1f} (one worker and one daemon: 2)",
    ]
    lines += [f"- on {one.title} **the kernel passed nothing through**" for one in compared if not one.passes]
    return "This run:\n\n" + "\n".join(lines) + "\n"


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB)


def _comparison(measured: Sequence[Measured]) -> str:
    there = {place for one in measured for place in one.seconds}
    others = [name for name in _OTHERS if name in there]
    places = (PLAIN, BINDFS, *others, CKFS, BY_DAEMON)
    compared = [(CKFS, PLAIN), *((CKFS, name) for name in others), (BY_DAEMON, BINDFS), (BY_DAEMON, PLAIN)]
    rows: list[tuple[str, ...]] = [
        ("", "unit", *places, *(f"{_short(one)} ÷ {control}" for one, control in compared))
    ]
    rows += [
        (
            one.step.title,
            one.step.unit,
            *(rate(one.rate(place)) for place in places),
            *(ratio(one.ratios(place, control)) for place, control in compared),
        )
        for one in measured
    ]
    return table(rows)


def _short(place: str) -> str:
    return "daemon" if place == BY_DAEMON else place


def _daemon(measured: Iterable[Measured]) -> str:
    """Processor time for each GiB, or each file, and memory, step by step."""
    kinds = (CKFS, BY_DAEMON)
    rows: list[tuple[str, ...]] = [
        (
            "",
            "unit",
            *(f"{kind}: {when}" for kind in kinds for when in ("CPU", "and afterwards", "resident, at most")),
        )
    ]
    rows += [
        (
            one.step.title,
            "ms/file" if one.gib is None else "s/GiB",
            *(cell for kind in kinds for cell in _taken(one, kind)),
        )
        for one in measured
    ]
    return table(rows)


def _taken(one: Measured, place: str) -> tuple[str, str, str]:
    if one.gib is None:
        now, later = (per_file(one, place, later=when) for when in (False, True))
        times = [_decimal(None if number is None else number * 1000, 2) for number in (now, later)]
    else:
        times = [_decimal(per_gib(one, place, later=when), 3) for when in (False, True)]
    return times[0], times[1], megabytes(one.peak_bytes.get(place))


def _sizes(sizes: Sequence[tuple[str, Size]]) -> str:
    rows: list[tuple[str, ...]] = [("", *(f"on {title}" for title, _ in sizes))]
    every = [size for _, size in sizes]
    rows += [
        ("sets", *(f"{size.sets:,}" for size in every)),
        ("mount until it answers", *(f"{size.ready_s:.2f} s" for size in every)),
        ("first entry of the root", *(f"{size.first_entry_s * 1000:.0f} ms" for size in every)),
        ("all names of the root", *(f"{size.listed_s:.1f} s" for size in every)),
        ("`ls -l` of the root", *(f"{size.touched_s:.1f} s" for size in every)),
        ("daemon resident, just mounted", *(megabytes(size.fresh_bytes) for size in every)),
        ("daemon resident, all sets touched", *(megabytes(size.touched_bytes) for size in every)),
        ("daemon resident, kernel forgot them", *(megabytes(size.forgotten_bytes) for size in every)),
        ("daemon resident, at most", *(megabytes(size.peak_bytes) for size in every)),
    ]
    return table(rows)
