"""The results as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence

import pyfuse3
import trio

from tests.bench.compare import Measured
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


def text(
    scale: Scale,
    results: Sequence[tuple[str, list[Measured], Size]],
    costs: Sequence[tuple[str, list[Cost]]],
    loads: Sequence[float],
    *,
    dropped: bool,
) -> str:
    """The whole document. *results* are a title, the comparison and the sizes for each backing file system, *costs* a title
    and what protection costs there."""
    parts = [_HEADER.format(unless_dropped="" if dropped else " (not in this run: it was not allowed)")]
    parts.append(_machine(scale, loads))
    for title, measured, _ in results:
        parts += [f"## On {title}\n", _comparison(measured)]
    parts += ["## Many sets in one store\n", _sizes([(title, size) for title, _, size in results])]
    parts.append(of_protection(costs))
    return "\n".join(parts)


def of_protection(costs: Sequence[tuple[str, list[Cost]]]) -> str:
    """The section about what protection costs."""
    parts = [_PROTECTION]
    for title, measured in costs:
        parts += [f"### On {title}\n", _costs(measured)]
    return "\n".join(parts)


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
