"""What an NFS client remembers of its server, and for how long: attributes, names, who may search, users' attributes, and what
was written and has not been sent yet.

As Linux does it: a directory's names hold as long as the directory looks the same, and how that looks is asked again when its
attributes have expired. So with attributes that never expire, what other clients do is never seen.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import trio

Look = tuple[int, int, int]
"""mtime and ctime in ns, and size: what a client takes for a sign that a file has not changed."""


def look_of(status: os.stat_result) -> Look:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


@dataclass(frozen=True)
class _Seen:
    status: os.stat_result
    at: float


@dataclass
class Cache:
    """Of one client. *attributes_s*: for how long attributes hold; 0 remembers nothing at all, as ``noac,lookupcache=none``.

    *negative*: whether it remembers that there is no such name (``lookupcache=all``, the default of NFS).
    """

    attributes_s: float
    negative: bool
    _attributes: dict[int, _Seen] = field(default_factory=dict)
    _names: dict[tuple[int, bytes], tuple[Look, int | None]] = field(default_factory=dict)
    _searchers: dict[tuple[int, int, int], Look] = field(default_factory=dict)
    _values: dict[tuple[int, bytes], tuple[Look, bytes]] = field(default_factory=dict)

    @property
    def is_on(self) -> bool:
        return self.attributes_s > 0

    def expire(self) -> None:
        """As if the time had passed."""
        self._attributes.clear()

    def saw(self, status: os.stat_result) -> None:
        if self.is_on:
            self._attributes[status.st_ino] = _Seen(status, time.monotonic())

    def status(self, ino: int) -> os.stat_result | None:
        seen = self._attributes.get(ino)
        if seen is None or time.monotonic() >= seen.at + self.attributes_s:
            return None
        return seen.status

    def changed(self, *inodes: int) -> None:
        """This client changed them itself."""
        for ino in inodes:
            self._attributes.pop(ino, None)

    def forget(self, ino: int) -> None:
        self.changed(ino)
        for key in [key for key in self._values if key[0] == ino]:
            del self._values[key]

    def knows(self, parent: os.stat_result, name: bytes) -> bool:
        look, ino = self._names.get((parent.st_ino, name), (None, None))
        return look == look_of(parent) and (ino is not None or self.negative)

    def name(self, parent: os.stat_result, name: bytes) -> int | None:
        """The inode behind a name that it :meth:`knows`; None if there is none."""
        return self._names[parent.st_ino, name][1]

    def found(self, parent: os.stat_result, name: bytes, ino: int | None) -> None:
        if self.is_on:
            self._names[parent.st_ino, name] = look_of(parent), ino

    def may_search(self, directory: os.stat_result, who: tuple[int, int]) -> bool:
        return self._searchers.get((directory.st_ino, *who)) == look_of(directory)

    def let_search(self, directory: os.stat_result, who: tuple[int, int]) -> None:
        self._searchers[directory.st_ino, *who] = look_of(directory)

    def value(self, file: os.stat_result, name: bytes) -> bytes | None:
        look, value = self._values.get((file.st_ino, name), (None, None))
        return value if look == look_of(file) else None

    def read_value(self, file: os.stat_result, name: bytes, value: bytes) -> None:
        if self.is_on:
            self._values[file.st_ino, name] = look_of(file), value


@dataclass
class Unsent:
    """What was written to a file, and acknowledged, before the server heard of it; and what the server then had against it.

    An error is said once to each open file, by fsync, and by close and by a write that meets it unless it was said to somebody already (the kernel's
    errseq_t).
    """

    chunks: list[tuple[int, int, bytes]] = field(default_factory=list)
    """By which handle, at which offset, and what; in the order of the writes."""
    sending: trio.Lock = field(default_factory=trio.Lock)
    errors: int = 0
    errno: int = 0
    is_said: bool = True

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(len(data) for _, _, data in self.chunks)

    @property
    def end(self) -> int:
        """Where the file ends at least, in bytes."""
        return max((offset + len(data) for _, offset, data in self.chunks), default=0)

    def failed(self, number: int) -> None:
        self.errors, self.errno, self.is_said = self.errors + 1, number, False

    def sample(self) -> int:
        """From where on errors count for who asks later: what nobody was told counts, too."""
        return self.errors if self.is_said else self.errors - 1

    def over(self, data: bytes, offset: int, size: int) -> bytes:
        """*data*, read from the server at *offset* where *size* bytes were asked for, as this client sees it."""
        seen = bytearray(data)
        seen.extend(bytes(max(0, min(size, self.end - offset) - len(seen))))
        for _, at, chunk in self.chunks:
            begin, end = max(at, offset), min(at + len(chunk), offset + len(seen))
            if begin < end:
                seen[begin - offset : end - offset] = chunk[begin - at : end - at]
        return bytes(seen)
