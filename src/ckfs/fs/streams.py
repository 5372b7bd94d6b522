"""Who reads a file from end to end right now.

Through the page cache the kernel asks for a file's attributes before each read(2), to see whether another mount has
changed it. While somebody streams through the middle of a file, an answer a few milliseconds old serves as well, and
sparing the question makes such a read several times as fast. At a file's end, in a small file, and once the reader rests,
every question is answered afresh.
"""

from __future__ import annotations

ANSWER_HOLDS_S = 0.004
"""How long the kernel may take attributes for true while a stream runs; it counts in ticks of 1 to 10 ms."""

_STREAM_BYTES = 4 << 20
"""What must have been read in a row before a reader counts as streaming."""
_LARGEST_STEP_BYTES = 8 << 20
"""Read-ahead asks for several pieces at once, which arrive in any order."""
_REST_S = 0.05


class Stream:
    """The reads of one open file. Offsets and sizes in bytes, *now* in seconds of a clock that never goes back."""

    __slots__ = ("_end", "_in_a_row", "_last")

    def __init__(self) -> None:
        self._end = 0
        self._in_a_row = 0
        self._last = 0.0

    def read(self, offset: int, size: int, now: float) -> None:
        """Note that *size* bytes at *offset* were asked for."""
        if abs(offset - self._end) > _LARGEST_STEP_BYTES or now - self._last > _REST_S:
            self._in_a_row = 0
        self._in_a_row += size
        self._end, self._last = offset + size, now

    def is_running(self, file_size: int, now: float) -> bool:
        """Somebody reads on, and has not come to the end of a file of *file_size* bytes."""
        return self._in_a_row >= _STREAM_BYTES and self._end < file_size and now - self._last <= _REST_S
