"""The digest of an image's content, as it is kept with the image in an attribute of its own, readable with getfattr.

For example::

    user.ckfs.digest="1;a=xxh3-128;h=99aa06d3014798d86001c324468d497f;z=10737418240;c=17979cfe362a0000"

It says of which completion of the image it is, by the number that the record has of that (``c``), and how long the content
was (``z``, bytes). Content changes only under another number, so that a digest whose number or size is not the image's is
out of date, and as good as none: nobody has to remove it in time.

It finds damage. It is no proof against anybody who writes to the store: whoever can change an image there can change this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import xxhash

from ckfs.policy import lifecycle
from ckfs.store.spots import Found

ATTRIBUTE = b"user.ckfs.digest"
ALGORITHM = "xxh3-128"

_MOST_HOLES_BYTES = 1 << 40
"""Whoever makes a digest reads holes as if they were there, and anybody makes them for nothing: one file of 8 EiB would keep all
others from ever getting theirs."""
_VERSION = b"1"
_HEX = re.compile(r"[0-9a-f]{8,128}")
_NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Digest:
    """*value* in hexadecimal, of the *size_bytes* that an image had when it was completed for the *completed*-th time."""

    algorithm: str
    value: str
    size_bytes: int
    completed: int

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"

    @property
    def is_known(self) -> bool:
        """This ckfs can make one of the same kind, and compare."""
        return self.algorithm == ALGORITHM

    def fits(self, found: Found) -> bool:
        """It is of what *found* is: a complete image, not written since."""
        return (
            has_digest(found)
            and self.completed == found.record.completed
            and self.size_bytes == found.stat.st_size
        )


def has_digest(found: Found) -> bool:
    """It is something of which a digest is kept: a complete image with content, of which no more than a TiB is holes."""
    size_bytes, allocated_bytes = found.stat.st_size, found.stat.st_blocks * 512
    return (
        found.record.is_regular
        and lifecycle.is_complete(found.record)
        and size_bytes > 0
        and size_bytes - allocated_bytes <= _MOST_HOLES_BYTES
    )


def new_hash() -> xxhash.xxh3_128:
    """What takes an image's content, piece by piece."""
    return xxhash.xxh3_128()


def encode(digest: Digest) -> bytes:
    return b"%s;a=%s;h=%s;z=%d;c=%x" % (
        _VERSION,
        digest.algorithm.encode(),
        digest.value.encode(),
        digest.size_bytes,
        digest.completed,
    )


def decode(raw: bytes) -> Digest | None:
    """The digest in *raw*; None if it is of no version that this ckfs knows, or damaged. Fields that it does not know do not
    matter."""
    version, *pairs = raw.split(b";")
    fields = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    try:
        if version != _VERSION:
            return None
        algorithm, value = fields[b"a"].decode("ascii"), fields[b"h"].decode("ascii")
        size_bytes, completed = int(fields[b"z"]), int(fields[b"c"], 16)
    except (KeyError, ValueError):
        return None
    if not (_NAME.fullmatch(algorithm) and _HEX.fullmatch(value)) or min(size_bytes, completed) < 0:
        return None
    return Digest(algorithm, value, size_bytes, completed)
