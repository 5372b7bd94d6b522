"""Tables of Markdown, and how ratios are shown in them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

NOTHING = "-"
"""What was not measured."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head. All columns but the first are for numbers."""
    head, *body = rows
    line = "|" + "---|" + "---:|" * (len(head) - 1)
    return "\n".join(
        ["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in body), ""]
    )


def rate(number: float | None) -> str:
    return NOTHING if number is None else f"{number:,.0f}"


def ratio(ratios: Sequence[float]) -> str:
    """The median, with the lowest and the highest."""
    if not ratios:
        return NOTHING
    return f"**{short(statistics.median(ratios))}** ({short(min(ratios))} to {short(max(ratios))})"


def spread(ratios: Sequence[float]) -> str:
    """The median, and the quarters below and above."""
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"**{short(statistics.median(ratios))}** ({short(lower)} to {short(upper)})"


def short(number: float) -> str:
    return f"{number:.2f}" if number >= 0.1 else f"{number:.3f}"


def megabytes(count: float | None) -> str:
    return NOTHING if count is None else f"{count / 1e6:.0f} MB"


def merged(old: str, new: str) -> str:
    """The document *old* with the sections (``## ``) of *new*, and its head if it has one: those that exist are replaced, others come
    after the one before them in *new*, and all that *new* has not stay."""
    (old_head, *kept), (new_head, *made) = (
        re.split(r"^(?=## )", text, flags=re.MULTILINE) for text in (old, new)
    )
    titles, place = [_title(section) for section in kept], 0
    for section in made:
        if (title := _title(section)) in titles:
            place = titles.index(title)
            kept[place] = section
        else:
            kept.insert(place, section)
            titles.insert(place, title)
        place += 1
    parts = [new_head if new_head.strip() else old_head, *kept]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part.strip())


def _title(section: str) -> str:
    return section.partition("\n")[0]
