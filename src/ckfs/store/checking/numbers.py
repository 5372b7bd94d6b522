"""Many numbers in little room: fsck looks at every file of a store, of which there may be tens of millions."""

from __future__ import annotations

from array import array

_SMALLEST = 1 << 10
_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: neighbours end up far apart


class Numbers:
    """A map from positive to other numbers, both below 2**64: about 32 bytes each, where a dict takes five times that."""

    def __init__(self) -> None:
        self._count = 0
        self._keys = array("Q", bytes(8 * _SMALLEST))
        self._values = array("Q", bytes(8 * _SMALLEST))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        return self._keys[self._slot(key)] == key

    def put(self, key: int, value: int = 0) -> int | None:
        """Keep *value* for *key*, unless there is one already, which is returned then."""
        slot = self._slot(key)
        if self._keys[slot] == key:
            return self._values[slot]
        self._keys[slot], self._values[slot] = key, value
        self._count += 1
        if 2 * self._count > len(self._keys):
            self._grow()
        return None

    def _slot(self, key: int) -> int:
        """Where *key* is, or belongs."""
        size = len(self._keys)
        slot = (key * _SPREAD & _MASK) % (size - 1)
        while self._keys[slot] not in (0, key):
            slot = (slot + 1) % size
        return slot

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._keys = array("Q", bytes(16 * len(keys)))
        self._values = array("Q", bytes(16 * len(keys)))
        for key, value in zip(keys, values, strict=True):
            if key:
                slot = self._slot(key)
                self._keys[slot], self._values[slot] = key, value
