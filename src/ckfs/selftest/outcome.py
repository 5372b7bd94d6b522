"""What a check found: a verdict, one line of what was seen, and one of what mends it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckfs.selftest.place import Place

Figure = int | float | str
Figures = Mapping[str, Figure]
"""What a check measured; the unit is the end of the name (``_s``, ``_bytes``)."""


class Verdict(enum.Enum):
    OK = "ok"
    WARN = "warn"
    """ckfs works, with less than it could have."""
    FAIL = "fail"
    """ckfs must not be used like this."""
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A line of the table. *check* never changes its meaning between versions; *mend* is empty where nothing has to be done."""

    check: str
    verdict: Verdict
    says: str
    mend: str = ""
    figures: Figures = field(default_factory=dict)


def ok(check: str, says: str, **figures: Figure) -> Outcome:
    return Outcome(check, Verdict.OK, says, "", figures)


def warn(check: str, says: str, mend: str, **figures: Figure) -> Outcome:
    return Outcome(check, Verdict.WARN, says, mend, figures)


def fail(check: str, says: str, mend: str = "", **figures: Figure) -> Outcome:
    return Outcome(check, Verdict.FAIL, says, mend, figures)


def not_tried(check: str, why: str, mend: str = "") -> Outcome:
    return Outcome(check, Verdict.NOT_TRIED, why, mend)


@dataclass(frozen=True, slots=True)
class Check:
    """What is run in a process of its own, and answers all of *ids* in that order. *patience* is how many times the common limit it
    may take: those that talk to other hosts need longer."""

    ids: tuple[str, ...]
    run: Callable[[Place], list[Outcome]]
    patience: int = 1


def encoded(outcome: Outcome) -> dict[str, object]:
    """For the way from the process of a check, and for ``--json``."""
    return asdict(outcome) | {"verdict": outcome.verdict.value, "figures": dict(outcome.figures)}


def decoded(values: Mapping[str, object]) -> Outcome:
    figures = values["figures"]
    assert isinstance(figures, dict)
    return Outcome(
        str(values["check"]), Verdict(values["verdict"]), str(values["says"]), str(values["mend"]), figures
    )
