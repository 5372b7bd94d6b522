"""Whether a user's next checkpoint would find room: within his limits, and in the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ckfs.fs.standing import charge_of
from ckfs.fs.superseded import Superseded
from ckfs.model import Owner
from ckfs.policy import quota
from ckfs.policy.quota import NOTHING, Account, Amount
from ckfs.store.trash import Trash


@dataclass(frozen=True, slots=True)
class Lack:
    """What is too small: a ``hard`` limit, a ``soft`` one whose grace has ended, the limit of ``files``, the ``store``, its
    ``inodes``. By *short*, in bytes or files; *limit* is the one that is met, or what is kept in reserve."""

    of: str
    short: int
    limit: int


@dataclass(frozen=True, slots=True)
class Answer:
    """*own_bytes* are left by the user's limits (None: he has none), *store_bytes* in the store. Both count what would give way to
    him, if that was looked at: *giving_bytes*, which are his own."""

    fits: bool
    own_bytes: int | None
    store_bytes: int
    giving_bytes: int
    lacks: tuple[Lack, ...]


@dataclass(frozen=True, slots=True)
class StoreRoom:
    """What the store has yet for a user, once *reserve_bytes* are kept back."""

    free: Amount
    reserve_bytes: int = 0

    @classmethod
    def of(cls, room: os.statvfs_result, reserve_bytes: int) -> StoreRoom:
        # A store that counts no inodes (btrfs) says that it has none at all.
        files = room.f_favail if room.f_files else 1 << 62
        return cls(Amount(room.f_bavail * room.f_frsize, files), reserve_bytes)


@dataclass(frozen=True, slots=True)
class GivingWay:
    """What would go for a user's next write: of his *own*, and of *others*' trash where the store itself is full."""

    own: Amount = NOTHING
    others: Amount = NOTHING


def answer(
    wanted: Amount, account: Account | None, store: StoreRoom, giving: GivingWay, now_ns: int
) -> Answer:
    """Whether *wanted* fits for the owner of *account* (None: nobody limits him)."""
    own = None
    lacks: list[Lack] = []
    if account is not None:
        account = quota.at(replace(account, used=(account.used - giving.own).not_below_zero()), now_ns)
        own = quota.room(account, now_ns)
        lacks += _own_lacks(wanted, account, own)
    free = store.free + giving.own + giving.others
    left = free.bytes - store.reserve_bytes
    if left < wanted.bytes:
        lacks.append(Lack("store", wanted.bytes - left, store.reserve_bytes))
    if free.files < wanted.files:
        lacks.append(Lack("inodes", wanted.files - free.files, 0))
    return Answer(not lacks, None if own is None else own.bytes, max(0, left), giving.own.bytes, tuple(lacks))


def _own_lacks(wanted: Amount, account: Account, own: quota.Room) -> Iterator[Lack]:
    limits, total = account.limits, account.total
    if own.bytes is not None and own.bytes < wanted.bytes:
        ended = quota.grace_left_s(account.over_bytes, limits) == 0
        of, limit = ("soft", limits.bytes.soft) if ended else ("hard", limits.bytes.hard)
        assert limit is not None
        yield Lack(of, total.bytes + wanted.bytes - limit, limit)
    if own.files is not None and own.files < wanted.files:
        ended = quota.grace_left_s(account.over_files, limits) == 0
        limit = limits.files.soft if ended else limits.files.hard
        assert limit is not None
        yield Lack("files", total.files + wanted.files - limit, limit)


def of_his_own(stored: Owner, trash: Trash, superseded: Superseded) -> Iterator[Amount]:
    """What *stored* himself has that would give way to what he writes, piece by piece. Blocking."""
    for entry in trash.items(stored.uid):
        yield charge_of(trash, entry)
    yield from superseded.charges(stored)


def of_others(stored: Owner, trash: Trash) -> Iterator[Amount]:
    """What lies in the trash of all but *stored*, piece by piece. Blocking."""
    for entry in trash.items():
        is_his = entry.spot.identity.uid == stored.uid
        yield NOTHING if is_his else charge_of(trash, entry)
