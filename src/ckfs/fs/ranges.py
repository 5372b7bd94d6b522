"""Which parts of a file were written: what is written twice is charged once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Ranges:
    """Disjoint half-open ranges of offsets, none of which touches another."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._begins)

    def add(self, begin: int, end: int) -> None:
        if begin >= end:
            return
        if self._ends and self._ends[-1] == begin:  # as most files are written
            self._ends[-1] = end
            return
        first = bisect_left(self._ends, begin)
        after = bisect_right(self._begins, end)
        if first < after:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[after - 1])
        self._begins[first:after] = [begin]
        self._ends[first:after] = [end]

    def missing(self, begin: int, end: int) -> int:
        """How much between *begin* and *end* is in no range."""
        if not self._ends or self._ends[-1] <= begin:
            return end - begin
        return end - begin - sum(upto - since for since, upto in self._within(begin, end))

    def reach(self, begin: int, end: int, amount: int) -> int:
        """The furthest offset up to *end* so that no more than *amount* is missing between *begin* and it."""
        at = begin
        for since, upto in self._within(begin, end):
            if since - at > amount:
                break
            amount -= since - at
            at = upto
        return min(end, at + amount)

    def touches(self, begin: int, end: int) -> bool:
        """Whether *begin* to *end* would make some range longer, or is in one."""
        first = bisect_left(self._ends, begin)
        return first < len(self._begins) and self._begins[first] <= end

    def cut(self, end: int) -> None:
        """Forget what lies beyond *end*."""
        keep = bisect_left(self._begins, end)
        del self._begins[keep:], self._ends[keep:]
        if self._ends and self._ends[-1] > end:
            self._ends[-1] = end

    def _within(self, begin: int, end: int) -> list[tuple[int, int]]:
        parts = []
        for at in range(bisect_right(self._ends, begin), len(self._begins)):
            if self._begins[at] >= end:
                break
            parts.append((max(begin, self._begins[at]), min(end, self._ends[at])))
        return parts
