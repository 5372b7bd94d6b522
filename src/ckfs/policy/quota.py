"""The arithmetic of quotas: what is charged, which limit holds now, how much one mount is granted at a time.

Everything is counted twice over: in bytes and in files (inodes of any kind).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ckfs.names import Uid

GRANT_BYTES = 64 << 20
"""What a mount asks for at first, beyond what it needs at once, so that it need not ask at every write."""
MOST_GRANT_BYTES = 1 << 30
_LASTS_S = 1.0
_FORGOTTEN_S = 5.0
GRANT_FILES = 64
_SHARES = 8
"""No grant takes more than this part of what is free: others want some, too."""
_EXACT = {"bytes": 128 << 10, "files": _SHARES}
"""With less than this free, nothing is granted beyond what is needed at once."""
_SOON_S = 3600.0
DEFAULT_GRACE_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes and files together: of what is used, claimed, granted, or changes."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.bytes - other.bytes, self.files - other.files)

    def __neg__(self) -> Amount:
        return Amount(-self.bytes, -self.files)

    def __bool__(self) -> bool:
        return bool(self.bytes or self.files)

    def covers(self, other: Amount) -> bool:
        """Both of it are at least those of *other*."""
        return self.bytes >= other.bytes and self.files >= other.files

    def not_below_zero(self) -> Amount:
        return Amount(max(self.bytes, 0), max(self.files, 0))


NOTHING = Amount()


class Said(enum.Enum):
    """A limit that is no number."""

    DEFAULT = "default"
    """Whatever holds for those of whom nothing is said."""
    NONE = "none"
    """No limit at all."""


Setting = int | Said


@dataclass(frozen=True, slots=True)
class Settings:
    """What an admin has said of one owner, or of all others (there ``Said.DEFAULT`` is no limit). Grace in whole seconds."""

    soft_bytes: Setting = Said.DEFAULT
    hard_bytes: Setting = Said.DEFAULT
    soft_files: Setting = Said.DEFAULT
    hard_files: Setting = Said.DEFAULT
    grace_s: Setting = Said.DEFAULT


@dataclass(frozen=True, slots=True)
class Limit:
    """Of bytes, or of files; None is no limit."""

    soft: int | None = None
    hard: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for one owner. *grace_s* is for how long a soft limit may be passed; None is for ever."""

    bytes: Limit = Limit()
    files: Limit = Limit()
    grace_s: float | None = DEFAULT_GRACE_S


UNLIMITED = Limits()


def limits_of(own: Settings, default: Settings) -> Limits:
    """The limits that hold for an owner of whom *own* is said."""

    def chosen(mine: Setting, others: Setting) -> int | None:
        value = others if mine is Said.DEFAULT else mine
        return value if isinstance(value, int) else None

    grace = default.grace_s if own.grace_s is Said.DEFAULT else own.grace_s
    grace_s: float | None = DEFAULT_GRACE_S
    if grace is not Said.DEFAULT:
        grace_s = float(grace) if isinstance(grace, int) else None
    return Limits(
        Limit(chosen(own.soft_bytes, default.soft_bytes), chosen(own.hard_bytes, default.hard_bytes)),
        Limit(chosen(own.soft_files, default.soft_files), chosen(own.hard_files, default.hard_files)),
        grace_s,
    )


@dataclass(frozen=True, slots=True)
class Over:
    """For how long a soft limit has been passed, added up so that no clock that is set back gives time again.

    *for_s* seconds until *seen_ns*, of the wall clock.
    """

    for_s: float
    seen_ns: int


@dataclass(frozen=True, slots=True)
class Account:
    """What one owner has, and may have. ``used + claimed`` never passes a hard limit, unless that was lowered."""

    uid: Uid
    used: Amount = NOTHING
    """What is at rest in the store."""
    claimed: Amount = NOTHING
    """What mounts have been granted and not settled: being written, or about to be."""
    limits: Limits = UNLIMITED
    over_bytes: Over | None = None
    over_files: Over | None = None

    @property
    def total(self) -> Amount:
        return self.used + self.claimed


def told_ns(account: Account) -> int:
    """As of when *account* is told, by the clock of whoever keeps it, which may be minutes off from this host's; 0 if no time is in it."""
    return max(
        (over.seen_ns for over in (account.over_bytes, account.over_files) if over is not None), default=0
    )


def at(account: Account, now_ns: int) -> Account:
    """*account* with its grace times as they are at *now_ns*, in ns since the epoch."""
    limits, total = account.limits, account.total
    over_bytes = _over(account.over_bytes, limits.bytes, total.bytes, now_ns)
    over_files = _over(account.over_files, limits.files, total.files, now_ns)
    if over_bytes == account.over_bytes and over_files == account.over_files:
        return account  # asked for with every draw, and for most owners
    return replace(account, over_bytes=over_bytes, over_files=over_files)


def _over(before: Over | None, limit: Limit, total: int, now_ns: int) -> Over | None:
    if limit.soft is None or total <= limit.soft:
        return None
    if before is None:
        return Over(0.0, now_ns)
    return Over(before.for_s + max(0, now_ns - before.seen_ns) / 1e9, now_ns)


def grace_left_s(over: Over | None, limits: Limits) -> float | None:
    """Seconds until a passed soft limit becomes a hard one; None if it is not passed, or never does."""
    if over is None or limits.grace_s is None:
        return None
    return max(0.0, limits.grace_s - over.for_s)


@dataclass(frozen=True, slots=True)
class Room:
    """What an owner may have yet; None is any amount."""

    bytes: int | None
    files: int | None

    def covers(self, wanted: Amount) -> bool:
        return (self.bytes is None or self.bytes >= wanted.bytes) and (
            self.files is None or self.files >= wanted.files
        )


def room(account: Account, now_ns: int) -> Room:
    """What *account*'s owner may have yet at *now_ns*."""
    account = at(account, now_ns)
    limits, total = account.limits, account.total
    return Room(
        _left(limits.bytes, total.bytes, grace_left_s(account.over_bytes, limits)),
        _left(limits.files, total.files, grace_left_s(account.over_files, limits)),
    )


def _left(limit: Limit, total: int, grace_s: float | None) -> int | None:
    if grace_s == 0.0:
        return 0
    return None if limit.hard is None else max(0, limit.hard - total)


def next_grant(before: int, since_s: float) -> int:
    """How many bytes beyond what it needs a mount asks for, which asked for *before* as many *since_s* seconds ago: what lasts it
    about a second, so that the ledger is asked about once a second by each that writes, however fast."""
    if since_s > _FORGOTTEN_S:
        return GRANT_BYTES
    return min(2 * before, MOST_GRANT_BYTES) if since_s < _LASTS_S else before


def grant(account: Account, least: Amount, wanted: Amount, now_ns: int) -> Amount:
    """How much of *wanted* (at least as much as *least*) is granted to one mount: all while there is plenty, less near a
    limit, then exactly *least*, and what there is if that is less. Never so much beyond *least* that a soft limit is passed for it."""
    account = at(account, now_ns)
    limits, total, left = account.limits, account.total, room(account, now_ns)
    return Amount(
        _granted(
            "bytes",
            left.bytes,
            _soft(limits.bytes, account.over_bytes, limits),
            total.bytes,
            least.bytes,
            wanted.bytes,
        ),
        _granted(
            "files",
            left.files,
            _soft(limits.files, account.over_files, limits),
            total.files,
            least.files,
            wanted.files,
        ),
    )


def _soft(limit: Limit, over: Over | None, limits: Limits) -> int | None:
    """The soft limit that bounds grants. One that is passed does not, until its grace ends soon: what was granted before could be
    spent after that."""
    left_s = grace_left_s(over, limits)
    is_passed_for_long = over is not None and (left_s is None or left_s > _SOON_S)
    return None if is_passed_for_long else limit.soft


def _granted(kind: str, left: int | None, soft: int | None, total: int, least: int, wanted: int) -> int:
    if left is not None and left <= least:
        return left
    bounds = [] if left is None else [left - least]
    if soft is not None:
        bounds.append(max(0, soft - total - least))
    if not bounds:
        return wanted
    rest = min(bounds)
    return least if rest < _EXACT[kind] else least + min(wanted - least, rest // _SHARES)
