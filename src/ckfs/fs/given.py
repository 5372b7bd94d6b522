"""What one pass over a directory has given, by which it goes on where the directory's set was copied to a new owner meanwhile.

Offsets are those of one directory of the store, and mean nothing in its copy. There a pass begins anew, and leaves out what it has
given before.
"""

from __future__ import annotations

from array import array

from ckfs.errors import Stale

_MOST = 16_384
"""Names of a pass that are remembered, at 16 bytes each: users may have many directories open, of any size."""


class Given:
    """The names that one pass over an open directory has given, in order, and the offset after each.

    Of a name its hash, which nobody outside can foresee (Python keys it), is enough: that two of a directory's are equal happens
    once in millions of years.
    """

    __slots__ = ("_before", "_begin", "_is_known", "_is_left", "_names", "_offsets")

    def __init__(self) -> None:
        self._names = array("q")
        self._offsets = array("q")
        self._begin = 0
        """How many of them were given before the directory that is open now took the place of another."""
        self._before: frozenset[int] = frozenset()
        """The names of these."""
        self._is_known = True
        """False if there were too many of them."""
        self._is_left = False
        """Nobody knows how to go on."""

    def add(self, name: bytes, next_offset: int) -> None:
        if not self._is_known:
            return
        if len(self._names) == _MOST:
            self._forget()
            return
        self._names.append(hash(name))
        self._offsets.append(next_offset)

    def _forget(self) -> None:
        self._names, self._offsets, self._is_known = array("q"), array("q"), False

    def has(self, name: bytes) -> bool:
        """Whether the pass has given *name* already, from another directory."""
        return bool(self._before) and hash(name) in self._before

    def directory_is_other(self) -> None:
        """The directory is another one from now on, with offsets of its own."""
        if self._is_known:
            self._begin = len(self._names)
        else:
            self._is_left = True

    def go_to(self, offset: int) -> int:
        """Go on after the name that *offset* was given with. Returns the offset to seek in the directory that is open now. Stale if
        it is another one than before, and there were too many names."""
        if offset == 0:
            return 0
        if self._is_left:
            raise Stale("the directory was copied to a new owner while it was listed")
        count = self._count_up_to(offset)
        if count is None:  # remembered from an earlier pass, or one of very many
            self._forget()
            return offset
        del self._names[count:], self._offsets[count:]
        if count > self._begin:
            return offset
        self._begin, self._before = count, frozenset(self._names)
        return 0

    def _count_up_to(self, offset: int) -> int | None:
        """How many names were given when *offset* was; the latest, should several directories have it."""
        for count in range(len(self._offsets), 0, -1):
            if self._offsets[count - 1] == offset:
                return count
        return None
