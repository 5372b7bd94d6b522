"""``ckfs ledger``: the ledger of a store's quotas itself, for root. It works on the store, whatever is mounted."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Callable

from ckfs.cli.host import host_of
from ckfs.cli.stores import check_is_no_mount, prepare_for_stores, service_of
from ckfs.errors import CkfsError, LedgerDown, LedgerUnusable, NotPermitted
from ckfs.fs import ledgers
from ckfs.fs.ledgers import Host
from ckfs.names import shown
from ckfs.policy.settings import Policy
from ckfs.store.layout import Store, open_store

_LIMIT_S = 10.0


def add_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    for name, meaning in (
        ("check", "say what is wrong with it"),
        ("upgrade", "bring it to the form that this ckfs knows"),
        ("adopt", "let this host keep it, since the one that did is gone"),
    ):
        action = actions.add_parser(name, help=meaning, allow_abbrev=False)
        action.add_argument("store", metavar="STORE", help="the store's directory")
        action.add_argument(
            "--state", metavar="DIR", help="where this host keeps its ledgers, if the mounts are told so too"
        )
        action.set_defaults(run=_run, action=name)


def _run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises CkfsError."""
    path = arguments.store
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(path)}: only root looks after a store's ledger")
    logging.basicConfig(format="ckfs: %(message)s", level=logging.INFO)  # what takes time, on standard error
    prepare_for_stores()
    check_is_no_mount(path)
    act: Callable[[Store, Policy, Host], int] = {"check": _check, "upgrade": _upgrade, "adopt": _adopt}[
        arguments.action
    ]
    with contextlib.closing(open_store(path, service_of(path))) as store:
        host = host_of(store, arguments.state)
        try:
            return act(store, store.read_policy(), host)
        except LedgerDown as error:
            raise ledgers.out_of_reach(store, error) from None


def _check(store: Store, policy: Policy, host: Host) -> int:
    try:
        with contextlib.closing(ledgers.open_as_it_is(store, policy, host, _LIMIT_S)) as ledger:
            wrong = [*ledgers.not_counted(store, ledger), *ledger.check()]
    except LedgerUnusable as error:
        wrong = [f"{error}; the next mount makes it anew"]
    for line in wrong:
        print(line)
    if not wrong:
        print(f"{shown(store.path)}: nothing is wrong with the ledger of its quotas")
    return CkfsError.exit_status if wrong else 0


def _upgrade(store: Store, policy: Policy, host: Host) -> int:
    ledgers.upgrade(store, policy, host, _LIMIT_S)
    print(f"{shown(store.path)}: the ledger of its quotas has the form that this ckfs knows")
    return 0


def _adopt(store: Store, policy: Policy, host: Host) -> int:
    before = ledgers.adopt(store, policy, host)
    if before is None:
        print(f"{shown(store.path)}: this host keeps the ledger of its quotas already; nothing changed")
    else:
        print(
            f"{shown(store.path)}: this host keeps the ledger of its quotas from now on, no more {shown(before)};"
            " the next mount here counts what is in the store"
        )
    return 0
