"""A store whose own engine enforces the quotas: what that engine has to do with the store's calls."""

from __future__ import annotations

import errno
import logging
import os
import time
from functools import partial

from ckfs.engines.engine import Engine
from ckfs.engines.opening import open_engine
from ckfs.errors import EngineFailed, FsError, StoreUnusable
from ckfs.names import Gid, Uid, shown
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.quota import Amount, room
from ckfs.store.copying import everything
from ckfs.store.door import Door
from ckfs.store.layout import Store
from ckfs.store.metering import rounded
from ckfs.store.realms import Arrangement
from ckfs.store.spots import Found, Spot

log = logging.getLogger(__name__)

_BLOCK_BYTES = 512
_COUNTS_BY_ITSELF = "statvfs"
"""The engine that needs no realms: it is only looked at."""


def engine_of(store: Store, quota: QuotaPolicy) -> Engine | None:
    """The engine that enforces the quotas of *store*, ready to; None where none has to. StoreUnusable if it cannot."""
    if quota.mode is QuotaMode.LEDGER and store.arrangement is Arrangement.REALMS:
        raise StoreUnusable(
            f"{shown(store.path)}: a store of this layout is for an engine that enforces quotas, and ckfs does not count there:"
            ' say quota.mode = "engine" or "none" in its policy.toml, or copy the images to a new store'
        )
    if quota.mode is not QuotaMode.ENGINE:
        store.names.make_realms_by(_nothing)
        return None
    if store.arrangement is not Arrangement.REALMS and quota.engine != _COUNTS_BY_ITSELF:
        raise StoreUnusable(
            f'{shown(store.path)}: its policy says quota.mode = "engine", but no engine can limit a user in a store of this layout:'
            " make a store by 'ckfs init --quota engine' and copy the images there, or say mode = \"ledger\""
        )
    try:
        engine = open_engine(store.open_users(), quota)
    except EngineFailed as error:
        raise StoreUnusable(
            f"{shown(store.path)}: quotas cannot be enforced by its engine: {error}"
        ) from None
    store.names.make_realms_by(partial(_prepare, engine))
    if engine.refuses_notes:
        store.door.refusals.note_by(engine.headroom)
    if engine.says_full:
        store.door.refusals.tell_quotas_by(partial(_is_at_limit, engine))
    return engine


def _nothing(uid: Uid, gid: Gid) -> None:
    """Somebody else counts: a plain directory will do."""


def _prepare(engine: Engine, uid: Uid, gid: Gid) -> None:
    try:
        engine.prepare(uid, gid)
    except FsError as error:
        log.error("quotas by %s: nothing can be stored for uid %d: %s", engine.name, uid, error)  # noqa: TRY400 - not a bug
        raise


def _is_at_limit(engine: Engine, uid: Uid) -> bool:
    try:
        return engine.is_at_limit(uid)
    except (OSError, FsError) as error:
        log.warning("quotas by %s: whether uid %d is at his limit is not known: %s", engine.name, uid, error)
        return False


def check_room(engine: Engine, door: Door, spot: Spot, uid: Uid) -> None:
    """OSError (EDQUOT) unless *spot* and all below it fits into what *uid* may have yet."""
    if not room(engine.account(uid), time.time_ns()).covers(_size(door, spot)):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def _size(door: Door, spot: Spot) -> Amount:
    """What a copy takes: a file with several links counts once."""
    sizes = {found.record.ino: _bytes_of(found, door.unit) for _, found in everything(door, spot)}
    return Amount(sum(sizes.values()), len(sizes))


def _bytes_of(found: Found, unit: int) -> int:
    if found.record.is_directory:
        return unit
    return min(found.stat.st_blocks * _BLOCK_BYTES, rounded(found.stat.st_size, unit))
