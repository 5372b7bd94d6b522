"""Who keeps a store's quotas, for root's commands that work on the store itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ckfs.cli.host import host_of
from ckfs.cli.stores import check_is_no_mount, prepare_for_stores, service_of
from ckfs.errors import CkfsError, FsError, StoreUnusable, UsageError
from ckfs.fs import ledgers
from ckfs.fs.enforced import engine_of
from ckfs.fs.ledgers import open_ledger
from ckfs.ledger.ledger import Ledger, Quotas
from ckfs.names import shown
from ckfs.policy.enforcing import QuotaMode
from ckfs.policy.settings import Policy
from ckfs.store.layout import Store, open_store

_LIMIT_S = 10.0


@contextlib.contextmanager
def opened_quotas(path: str, state: str | None) -> Iterator[tuple[Store, Quotas]]:
    """The store at *path*, and who keeps its quotas; *state* as for :func:`state_directory`. Raises CkfsError, also for what the
    block meets of them."""
    with _opened(path) as (store, policy):
        engine = engine_of(store, policy.quota)
        if engine is not None:
            with contextlib.closing(engine):
                yield store, engine
            return
        with contextlib.closing(_ledger(store, policy, state)) as ledger:
            yield store, ledger


@contextlib.contextmanager
def opened_ledger(path: str, state: str | None) -> Iterator[tuple[Store, Ledger]]:
    """As :func:`opened_quotas`; UsageError where the store's engine keeps them."""
    with _opened(path) as (store, policy):
        if policy.quota.mode is QuotaMode.ENGINE:
            raise UsageError(
                f"{shown(path)}: its own file system counts, so there is nothing to count anew: 'ckfs quota' shows what it says"
            )
        with contextlib.closing(_ledger(store, policy, state)) as ledger:
            yield store, ledger


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Store, Policy]]:
    prepare_for_stores()
    check_is_no_mount(path)
    with contextlib.closing(open_store(path, service_of(path))) as store:
        policy = store.read_policy()
        if policy.quota.mode is QuotaMode.NONE:
            raise UsageError(f'{shown(path)}: quotas are off: its policy.toml says mode = "none" in [quota]')
        try:
            yield store, policy
        except FsError as error:
            raise CkfsError(f"{shown(path)}: {error}") from None


def _ledger(store: Store, policy: Policy, state: str | None) -> Ledger:
    host = host_of(store, state)
    why = ledgers.not_on(host, store, policy, _LIMIT_S)
    if why is not None:  # else another one would be made, from which no mount counts
        raise StoreUnusable(f"{why}; if it is lost, a mount makes it anew")
    ledger = open_ledger(store, policy, host, _LIMIT_S)
    assert ledger is not None
    return ledger
