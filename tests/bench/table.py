"""The results as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence

import pyfuse3
import trio

from tests.bench import ledger, owners
from tests.bench.compare import Measured
from tests.bench.hosts import HOW, Together
from tests.bench.ledger import Costs
from tests.bench.manysets import Size
from tests.bench.protection import OFF, PLAIN, WITH, Cost
from tests.bench.workloads import GIB, MIB, Scale

_HEADER = """\
# Performance

Written by `python -m tests.bench --write docs/performance.md`: do not edit by hand, run it again.

**plain** is a directory of the backing file system, **bindfs** is bindfs with its defaults over another such directory, **ckfs** is a
mount of a store on the same file system, its set owned by the user who works in it. All three take turns within
one run; every step runs in a new process of a user who is not root. A rate is the median of all repetitions; a ratio is the
median of the ratios of each repetition (above 1.00: ckfs is faster), with the lowest and the highest.

- Writes are timed from open to close of a new file; only where fsync is named must the data reach the disk.
- Reads find the data in the page cache of the backing file system, except *cold* ones: before those the file was
  synced and its pages dropped. Neither bindfs nor ckfs keeps pages of its own from one open to the next.
- Before stat and `ls -l` the kernel's names and inodes were dropped{unless_dropped}. ckfs lets the kernel cache no names and no
  attributes, so that a change on one host is seen by the next call on another; bindfs caches both for a second.
"""


_PROTECTION = """\
## What protection and the trash cost

A batch set, in which its owner makes images of 4 KiB, reads them, and removes those that two newer ones have outlived: *a few
images* has three at a time, *dumps of 24 files* three directories of 24 each. Microseconds for one call, by three policies on one
file system in turns: **with** is the default; **off** has `protection.keep = 0` and `trash.retention_days = 0`, but pins and the order
of completion are still looked at; with **no batch sets** (`sets.batch = []` besides) there is nothing to look at. A figure is the
median of all rounds; a ratio is the median of the ratios of each round (below 1.30: protection costs less than 30 %), with the
lowest and the highest. Written by `python -m tests.bench --only protection`.
"""


_LEDGER = """\
## What the ledger costs

A store in which the ledger counts (`[quota] mode = "ledger"`, the default, in a file of the host) against one in which nobody does
(`mode = "none"`), both mounted side by side, file by file in turns. Microseconds for one call by four owners: where there is **{none}**,
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


def text(
    scale: Scale,
    results: Sequence[tuple[str, list[Measured], Size]],
    costs: Sequence[tuple[str, list[Cost]]],
    charged: Sequence[tuple[str, Costs]],
    together: Sequence[Together],
    loads: Sequence[float],
    *,
    dropped: bool,
) -> str:
    """The whole document. *results* are a title, the comparison and the sizes for each backing file system, *costs* a title
    and what protection costs there, *charged* what the ledger does,
    *together* what two hosts do."""
    parts = [_HEADER.format(unless_dropped="" if dropped else " (not in this run: it was not allowed)")]
    parts.append(_machine(scale, loads))
    for title, measured, _ in results:
        parts += [f"## On {title}\n", _comparison(measured)]
    parts += ["## Many sets in one store\n", _sizes([(title, size) for title, _, size in results])]
    parts += [of_protection(costs), of_ledger(charged, together)]
    return "\n".join(parts)


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
            *(_spread(charge.ratios(what, who)) for who in ledger.COUNTING),
        )
        for charge in costs.charges
        for what in (ledger.TIME, ledger.CPU)
    ]
    return _table(rows)


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
    return _table(rows)


def _hosts(together: Sequence[Together]) -> str:
    rows: list[tuple[str, ...]] = [
        ("MB/s", *(f"{how}: alone, both" for how in HOW), *(f"both ÷ alone, {how}" for how in HOW))
    ]
    rows += [
        (
            one.title,
            *(f"{_median_mb(one.alone[how])}, {_median_mb(one.both[how])}" for how in HOW),
            *(_spread(one.ratios(how)) for how in HOW),
        )
        for one in together
    ]
    return _table(rows)


def _median_mb(rates: Sequence[float]) -> str:
    rate = statistics.median(rates) / 1e6
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _spread(ratios: Sequence[float]) -> str:
    """The median, and the quarters below and above."""
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"**{_short(statistics.median(ratios))}** ({_short(lower)} to {_short(upper)})"


def _costs(measured: Iterable[Cost]) -> str:
    rows: list[tuple[str, ...]] = [
        ("µs", "", "no batch sets", "off", "with", "with ÷ off", "with ÷ no batch sets")
    ]
    rows += [
        (
            one.kind,
            one.step,
            *(f"{one.microseconds(policy):,.0f}" for policy in (PLAIN, OFF, WITH)),
            _ratio(one.ratios(OFF)),
            _ratio(one.ratios(PLAIN)),
        )
        for one in measured
    ]
    return _table(rows)


def _machine(scale: Scale, loads: Sequence[float]) -> str:
    lines = [
        f"- {os.cpu_count()} cores, {_memory_gib()} GiB of memory, {platform.machine()}, Linux {platform.release().split('-')[0]}",
        f"- Python {platform.python_version()}, pyfuse3 {pyfuse3.__version__}, trio {trio.__version__}",
        f"- {scale.repetitions} repetitions; streams of {scale.stream_bytes // MIB:,} MiB, 4 KiB writes of {scale.small_bytes / MIB:g} MiB",
        f"- load average at the start and at the end: {loads[0]:.1f}, {loads[-1]:.1f} (one worker and one daemon: 2)",
    ]
    return "This run:\n\n" + "\n".join(lines) + "\n"


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB)


def _comparison(measured: Iterable[Measured]) -> str:
    rows: list[tuple[str, ...]] = [("", "unit", "plain", "bindfs", "ckfs", "ckfs ÷ bindfs", "ckfs ÷ plain")]
    rows += [
        (
            one.step.title,
            one.step.unit,
            *(_rate(one.rate(place)) for place in ("plain", "bindfs", "ckfs")),
            _ratio(one.ratios("ckfs", "bindfs")),
            _ratio(one.ratios("ckfs", "plain")),
        )
        for one in measured
    ]
    return _table(rows)


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"


def _ratio(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"**{_short(statistics.median(ratios))}** ({_short(min(ratios))} to {_short(max(ratios))})"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def _sizes(sizes: Sequence[tuple[str, Size]]) -> str:
    rows: list[tuple[str, ...]] = [("", *(f"on {title}" for title, _ in sizes))]
    every = [size for _, size in sizes]
    rows += [
        ("sets", *(f"{size.sets:,}" for size in every)),
        ("mount until it answers", *(f"{size.ready_s:.2f} s" for size in every)),
        ("first entry of the root", *(f"{size.first_entry_s * 1000:.0f} ms" for size in every)),
        ("all names of the root", *(f"{size.listed_s:.1f} s" for size in every)),
        ("`ls -l` of the root", *(f"{size.touched_s:.1f} s" for size in every)),
        ("daemon resident, just mounted", *(_megabytes(size.fresh_bytes) for size in every)),
        ("daemon resident, all sets touched", *(_megabytes(size.touched_bytes) for size in every)),
        ("daemon resident, kernel forgot them", *(_megabytes(size.forgotten_bytes) for size in every)),
        ("daemon resident, at most", *(_megabytes(size.peak_bytes) for size in every)),
    ]
    return _table(rows)


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f} MB"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    line = "|" + "---|" + "---:|" * (len(head) - 1)
    return "\n".join(
        ["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in body), ""]
    )
