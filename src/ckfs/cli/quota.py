"""``ckfs quota``: how owners stand by their quotas, and what holds for them.

A mount's daemon is asked where there is one: it knows which ledger is its own. root may name a store instead.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ckfs.cli.keeping import opened_quotas
from ckfs.cli.mounted import device_for_user, mount_meant
from ckfs.cli.standings import print_json, print_table
from ckfs.cli.users import uid_of, user_name
from ckfs.control.client import ask, made
from ckfs.control.protocol import Values
from ckfs.daemon import logs
from ckfs.daemon.mounting import is_dead
from ckfs.errors import CkfsError, NotPermitted, UsageError
from ckfs.fs.standing import (
    Keepers,
    Standing,
    default_limits,
    described,
    held_up,
    keep_copy,
    kept_until_given_back,
    known_accounts,
    say,
    standings,
)
from ckfs.ledger.ledger import Quotas
from ckfs.names import ROOT_UID, Uid
from ckfs.owners.processes import login_uid_of
from ckfs.policy import limits
from ckfs.policy.enforcing import QuotaMode
from ckfs.policy.quota import Limit, Limits, Settings
from ckfs.store.layout import Store

log = logging.getLogger(__name__)

_OPTIONS = {
    "soft_bytes": "soft",
    "hard_bytes": "hard",
    "soft_files": "files_soft",
    "hard_files": "files_hard",
    "grace_s": "grace",
}


class Keeper(Protocol):
    """Who keeps quotas, as whoever calls may see and change them."""

    def show(self, uids: Sequence[int]) -> tuple[list[Standing], Limits | None]:
        """How *uids* stand, or all; and what holds by default, for root."""

    def say(self, uid: int | None, said: Mapping[str, str]) -> str:
        """Returns what holds then."""


def show(arguments: argparse.Namespace) -> int:
    """``ckfs quota [USER…]``. Returns the exit status; raises CkfsError."""
    uids = list(dict.fromkeys(map(uid_of, arguments.users)))
    with _keeper(arguments) as keeper:
        rows, default = keeper.show(uids)
    (print_json if arguments.json else print_table)(sorted(rows, key=lambda row: row.uid), default)
    return 0


def say_of_user(arguments: argparse.Namespace) -> int:
    """``ckfs quota set USER …``."""
    uid, said = uid_of(arguments.user), _said(arguments)
    if not said:
        raise UsageError("nothing to set: give --soft, --hard, --files-soft, --files-hard or --grace")
    with _keeper(arguments) as keeper:
        print(f"{user_name(uid)}: {keeper.say(uid, said)}")
    return 0


def say_of_others(arguments: argparse.Namespace) -> int:
    """``ckfs quota default …``; without anything to set it shows what holds."""
    said = _said(arguments)
    with _keeper(arguments) as keeper:
        print(f"default: {keeper.say(None, said)}")
    return 0


def _said(arguments: argparse.Namespace) -> dict[str, str]:
    """What is to be set, refused here if it is no limit: before anybody is asked."""
    if os.geteuid() != ROOT_UID:
        raise NotPermitted("only root sets quotas; 'ckfs quota' shows your own")
    given = {field: getattr(arguments, option) for field, option in _OPTIONS.items()}
    said = {field: text for field, text in given.items() if text is not None}
    limits.settings_said(Settings(), said)
    return said


@contextlib.contextmanager
def _keeper(arguments: argparse.Namespace) -> Iterator[Keeper]:
    """Of the mount or store that is named, or of what is mounted on this host."""
    path: str | None = arguments.store
    if os.geteuid() != ROOT_UID:
        yield _Asked(device_for_user(path))
        return
    mount = mount_meant(path)
    if mount is not None and not is_dead(os.fsdecode(mount.path)):
        yield _Asked(mount.device)
        return
    store_path = str(path) if mount is None else os.fsdecode(mount.source)
    with opened_quotas(store_path, arguments.state) as (store, quotas):
        yield _OnStore(store, quotas)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Through a mount's daemon."""

    device: str

    def show(self, uids: Sequence[int]) -> tuple[list[Standing], Limits | None]:
        rows: list[Standing] = []
        default: Limits | None = None
        for said in ask(self.device, "quota", {"uids": [str(uid) for uid in uids]}):
            match dict(said):
                case {"owner": dict(owner)}:
                    rows.append(made(Standing, owner))
                case {"default": dict(holds)}:
                    default = _limits(holds)
        return rows, default

    def say(self, uid: int | None, said: Mapping[str, str]) -> str:
        who = {} if uid is None else {"uid": str(uid)}
        for answer in ask(self.device, "quota-set", {**who, **said}):
            return str(answer.get("holds"))
        raise CkfsError("the mount's daemon is of another version of ckfs")


def _limits(said: Values) -> Limits:
    match dict(said):
        case {"bytes": dict(of_bytes), "files": dict(of_files), **rest}:
            return made(Limits, {**rest, "bytes": made(Limit, of_bytes), "files": made(Limit, of_files)})
    raise CkfsError("the mount's daemon is of another version of ckfs")


@dataclass(frozen=True, slots=True)
class _OnStore:
    """For root, on the store itself."""

    store: Store
    quotas: Quotas

    def show(self, uids: Sequence[int]) -> tuple[list[Standing], Limits | None]:
        accounts = [self.quotas.account(Uid(uid)) for uid in uids] if uids else known_accounts(self.quotas)
        rows = [row for row in standings(accounts, self.store.trash) if row is not None]
        return rows, default_limits(self.quotas)

    def say(self, uid: int | None, said: Mapping[str, str]) -> str:
        of_whom = None if uid is None else Uid(uid)
        holds, keepers = say(self.quotas, of_whom, said), Keepers()
        if said:
            if self.store.read_policy().quota.mode is QuotaMode.LEDGER:
                keep_copy(self.store, self.quotas.all_settings())
            logs.set_up(in_front=False, log_file=None)
            log.info("%s", described(of_whom, said, login_uid_of(os.getpid())))
            keepers = kept_until_given_back(self.quotas, of_whom)
        return limits.described(holds) + held_up(self.store.mounts, keepers)
