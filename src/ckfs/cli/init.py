"""``ckfs init``: a directory becomes a store."""

from __future__ import annotations

import argparse
import os

from ckfs.daemon.keeper import account_of
from ckfs.engines.opening import detect, mounted_on
from ckfs.model import Owner
from ckfs.policy import settings
from ckfs.policy.enforcing import QuotaMode
from ckfs.store import layout
from ckfs.store.realms import Arrangement


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument(
        "--service-user", metavar="NAME", help="account that keeps it, where root is squashed"
    )
    command.add_argument(
        "--quota",
        choices=["ledger", "engine", "none"],
        default="ledger",
        help="who enforces quotas: ckfs, by its ledger; the store's own file system; or nobody (default: %(default)s)",
    )
    command.add_argument(
        "--for",
        dest="home",
        metavar="HOME",
        help="make a further store of the store HOME, for files of its sets, which only some hosts reach",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    path = arguments.store
    if arguments.home is not None:
        return _further(path, arguments.home, account_of(arguments.service_user))
    mode = QuotaMode(arguments.quota)
    arrangement = Arrangement.REALMS if mode is QuotaMode.ENGINE else Arrangement.SHARED
    policy = settings.default_text(mode)
    if layout.initialise(path, account_of(arguments.service_user), arrangement, policy):
        print(f"{path}: a new store; its policy is in {os.path.join(path, 'policy.toml')}")
    else:
        print(f"{path}: is a store already; nothing changed")
    if mode is QuotaMode.ENGINE:
        print(f"{path}: its quotas are left to {_engine_under(path)}; docs/quotas.md says what that needs")
    _warn_of_users(path)
    return 0


def _warn_of_users(path: str) -> None:
    if layout.reachable_by_users(path):
        print(
            f"{path}: users can reach it around ckfs: put it below a local directory of root with mode 0700"
        )


def _further(path: str, home: str, service: Owner) -> int:
    is_new, identifier = layout.initialise_further(path, layout.id_of(home), service)
    print(
        f"{path}: {'a new further store' if is_new else 'is a further store already'} of {home}, id {identifier}"
    )
    print(f"Let {os.path.join(home, 'policy.toml')} name it, and the hosts that reach it:")
    print(f'[[stores]]\nname = "..."\npath = "{path}"\nid = "{identifier}"\nhosts = ["*"]')
    _warn_of_users(path)
    return 0


def _engine_under(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = mounted_on(fd).kind
    finally:
        os.close(fd)
    return f"its file system, {kind}, by the engine {detect(kind)}"
