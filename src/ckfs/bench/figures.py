"""What was measured, as a table and as JSON have it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ckfs.bench.plan import GIB, Step, Unit


@dataclass(slots=True)
class Measured:
    """*seconds* of each place, the mount first, a number for each round; *cpu_s* what the mount's daemon took in the mount's.
    *why_not*, if it was not measured."""

    step: Step
    seconds: tuple[list[float], ...]
    cpu_s: list[float] = field(default_factory=list)
    why_not: str = ""

    def median_s(self, place: int) -> float | None:
        times = self.seconds[place] if place < len(self.seconds) else []
        return statistics.median(times) if times else None

    def rate(self, place: int) -> float | None:
        """Bytes, or files, for each second."""
        median_s = self.median_s(place)
        amount = self.step.size_bytes if self.step.unit is Unit.BYTES else self.step.files
        return None if median_s is None else amount / max(median_s, 1e-9)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the control the mount was, in each round."""
        if len(self.seconds) < 2:
            return []
        return [
            control / max(mount, 1e-9)
            for mount, control in zip(self.seconds[0], self.seconds[1], strict=False)
        ]

    @property
    def cpu_s_per_gib(self) -> float | None:
        if not self.cpu_s:
            return None
        return sum(self.cpu_s) / (len(self.cpu_s) * self.step.size_bytes / GIB)


def described(one: Measured) -> dict[str, object]:
    """For JSON."""
    ratios = one.ratios
    return {
        "workload": one.step.key,
        "size_bytes": one.step.size_bytes,
        "files": one.step.files,
        "ckfs": _place(one, 0),
        "control": _place(one, 1),
        "ratio": None
        if not ratios
        else {
            "median": round(statistics.median(ratios), 4),
            "lowest": round(min(ratios), 4),
            "highest": round(max(ratios), 4),
        },
        "daemon_cpu_s_per_gib": _rounded(one.cpu_s_per_gib),
        "not_measured": one.why_not or None,
    }


def _place(one: Measured, place: int) -> dict[str, object] | None:
    median_s = one.median_s(place)
    if median_s is None:
        return None
    median_s = max(median_s, 1e-9)
    return {
        "seconds": [round(took_s, 6) for took_s in one.seconds[place]],
        "median_s": round(median_s, 6),
        "bytes_per_s": round(one.step.size_bytes / median_s),
        "files_per_s": round(one.step.files / median_s, 3) if one.step.unit is Unit.FILES else None,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


_HEAD = ("", "UNIT", "CKFS", "CONTROL", "RATIO", "LOWEST TO HIGHEST", "DAEMON'S CPU")


def table(measured: Sequence[Measured], *, control: bool) -> list[str]:
    """Lines. Without a *control* there are no ratios."""
    rows = [_HEAD, *map(_row, measured)]
    columns = [at for at in range(len(_HEAD)) if control or _HEAD[at] not in _HEAD[3:6]]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
    lines = []
    for row, of in zip(rows, [None, *measured], strict=True):
        if of is not None and of.why_not:
            lines.append(f"{row[0]:<{widths[0]}}  not measured: {of.why_not}")
            continue
        cells = [f"{row[at]:<{widths[at]}}" if at < 2 else f"{row[at]:>{widths[at]}}" for at in columns]
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(one: Measured) -> tuple[str, ...]:
    ratios, cpu = one.ratios, one.cpu_s_per_gib
    return (
        one.step.title,
        one.step.unit.value,
        _shown_rate(one, 0),
        _shown_rate(one, 1),
        _shown_ratio(statistics.median(ratios)) if ratios else "-",
        f"{_shown_ratio(min(ratios))} to {_shown_ratio(max(ratios))}" if ratios else "-",
        "-" if cpu is None else f"{cpu:.2f} s/GiB",
    )


def _shown_ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def _shown_rate(one: Measured, place: int) -> str:
    rate = one.rate(place)
    if rate is None:
        return "-"
    scaled = rate / 1e6 if one.step.unit is Unit.BYTES else rate
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"
