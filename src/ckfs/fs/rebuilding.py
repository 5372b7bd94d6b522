"""Making a ledger from the store: what everybody has is counted, what everybody may have is in the store's copy.

Nobody writes meanwhile: no mount lives yet, or none that counts.
"""

from __future__ import annotations

import logging
import time

from ckfs.errors import FsError
from ckfs.ledger.ledger import Ledger
from ckfs.names import MountId, Uid, shown
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import counting, limits
from ckfs.store.layout import Store

log = logging.getLogger(__name__)

_SAY_EVERY_S = 5.0


def rebuild(store: Store, ledger: Ledger, *, with_limits: bool) -> None:
    """Let *ledger* say of every owner what is in *store*, and *with_limits* what he may have. An owner whose files cannot be
    counted is named in the log, and keeps what the ledger said of him. LedgerDown, StoreUnusable."""
    if with_limits:
        for uid, said in limits.read(store.root).items():
            ledger.set_limits(uid, said)
    known = {account.uid for account in ledger.accounts() if account.used or account.claimed}
    uids = sorted(counting.payers(store) | known)
    dead = list(ledger.mounts())
    began_s = said_s = time.monotonic()
    total = NOTHING
    for number, uid in enumerate(uids):
        if time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            log.info(
                "counting what is in the store: %d of %d owners, %d files", number, len(uids), total.files
            )
        total += _count(store, ledger, uid, dead)
    for mount in dead:
        ledger.forget(mount)
    log.info(
        "counted what is in the store: owners %d, files %d, bytes %d, in %.1f s",
        len(uids),
        total.files,
        total.bytes,
        time.monotonic() - began_s,
    )


def _count(store: Store, ledger: Ledger, uid: Uid, dead: list[MountId]) -> Amount:
    try:
        counted = counting.count(store, uid, store.door.unit)
    except (OSError, FsError, RecursionError) as error:
        log.error(  # noqa: TRY400 - not a bug
            "what uid %d has cannot be counted: %s; 'ckfs fsck' says more, 'ckfs quota check --repair' counts again",
            uid,
            shown(str(error)),
        )
        return NOTHING
    ledger.recounted(uid, None, counted, dead)
    return counted
