"""Sizes, numbers of files and spans of time, as admins write them and as they are shown.

K, M, G, T, P and E are powers of 1024 for bytes, as in quota tools (``400G`` and ``400GiB`` are the same), and k, m and g are
powers of 1000 for files, as there too. ``GB`` is refused, since half of the world means one and half the other.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ckfs.errors import UsageError
from ckfs.names import shown

LARGEST = 1 << 62
"""Sums of two such still fit into what file systems and databases count with."""

_UNITS = "KMGTPE"
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,18})?) ?(?:([KMGTPE])(?:iB)?|B?)", re.ASCII | re.IGNORECASE)
_DECIMAL = re.compile(r"[0-9.]+ ?[KMGTPE]B", re.ASCII | re.IGNORECASE)
_COUNT = re.compile(r"([0-9]{1,19})([kmg]?)", re.ASCII | re.IGNORECASE)
_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def size_of(text: str) -> int:
    """Bytes; a part of one is left out. UsageError for what is no size, or none that a file system has."""
    match = _SIZE.fullmatch(text)
    if match is None and _DECIMAL.fullmatch(text):
        raise UsageError(
            f"{shown(text)}: powers of 1000 or of 1024? G and GiB are powers of 1024: write one of them"
        )
    if match is None or ("." in match[1] and not match[2]):
        raise UsageError(
            f"{shown(text)}: not a size: give bytes, or a number with K, M, G, T or P (powers of 1024), for example 400G"
        )
    power = _UNITS.index(match[2].upper()) + 1 if match[2] else 0
    return _bounded(text, int(Fraction(match[1]) * 1024**power))


def count_of(text: str) -> int:
    """A number of files. UsageError for what is none."""
    match = _COUNT.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{shown(text)}: not a number of files: give a whole number, or one with k, m or g (powers of 1000)"
        )
    power = "kmg".index(match[2].lower()) + 1 if match[2] else 0
    number: int = int(match[1]) * 1000**power
    return _bounded(text, number)


def span_of(text: str) -> int:
    """Seconds. UsageError for what is no span of time."""
    span_ns = ns_in(text)
    if span_ns is None:
        raise UsageError(f"{shown(text)}: not a span of time: a number and s, m, h, d or w, for example 7d")
    return span_ns // 1_000_000_000


def ns_in(text: str) -> int | None:
    """Nanoseconds; None for what is no span of time."""
    match = _SPAN.fullmatch(text)
    return None if match is None else int(Fraction(match[1]) * _UNITS_S[match[2]] * 1_000_000_000)


def _bounded(text: str, number: int) -> int:
    if number > LARGEST:
        raise UsageError(f"{shown(text)}: more than any store has: 4E is the most, 'none' is no limit")
    return number


def shown_size(size_bytes: int) -> str:
    """*size_bytes* in the largest unit that it fills, to two places: what :func:`size_of` took is shown as it was written."""
    if size_bytes < 0:
        return f"-{shown_size(-size_bytes)}"
    power = min(max(0, size_bytes.bit_length() - 1) // 10, len(_UNITS))
    if power and power < len(_UNITS) and _hundredths(size_bytes, power) == 1024_00:  # 1023.999M is 1G
        power += 1
    if not power:
        return str(size_bytes)
    whole, part = divmod(_hundredths(size_bytes, power), 100)
    return f"{whole}.{part:02}".rstrip("0").rstrip(".") + _UNITS[power - 1]


def _hundredths(size_bytes: int, power: int) -> int:
    """Of the unit, rounded to the nearest."""
    unit: int = 1024**power
    return (size_bytes * 100 + unit // 2) // unit


def shown_span(span_s: float) -> str:
    """The two largest units of a span of time: ``6d23h``, ``59m``, ``0s``."""
    left, parts = int(span_s), list[str]()
    for unit in ("d", "h", "m", "s"):
        number, left = divmod(left, _UNITS_S[unit])
        if number:
            parts.append(f"{number}{unit}")
        elif parts:
            break
    return "".join(parts[:2]) or "0s"
