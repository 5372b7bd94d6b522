"""How owners stand by their quotas, and saying what holds for them: what commands show and change. Blocking.

Used by a mount's daemon and by root's commands on a store itself alike.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ckfs.errors import FsError
from ckfs.fs.listening import described as described_mount
from ckfs.ledger.ledger import Quotas
from ckfs.names import MountId, Uid, shown
from ckfs.policy import limits
from ckfs.policy.quota import NOTHING, Account, Amount, Limit, Limits, Said, Settings, grace_left_s, limits_of
from ckfs.store import limits as copied_limits
from ckfs.store.choosing import Entry
from ckfs.store.layout import Store
from ckfs.store.mounts import Mounts
from ckfs.store.trash import Trash

GIVEN_BACK_WITHIN_S = 2.0
"""For so long whoever sets a limit waits for mounts to give back what they were granted, which look four times a second."""
LOOK_S = 0.05
_NOTHING_LIMITS = Settings(Said.NONE, Said.NONE, Said.NONE, Said.NONE)
"""As for root, and for the account that keeps what belongs to nobody."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An owner, in bytes, files and seconds. A limit of None is none; so is a grace time left of one who is not over a soft limit.
    *trash_bytes* lie in his trash, and count as used."""

    uid: int
    state: str
    used_bytes: int
    claimed_bytes: int
    trash_bytes: int
    soft_bytes: int | None
    hard_bytes: int | None
    grace_bytes_s: int | None
    used_files: int
    claimed_files: int
    soft_files: int | None
    hard_files: int | None
    grace_files_s: int | None


def standings(accounts: Iterable[Account], trash: Trash) -> Iterator[Standing | None]:
    """A row for each; None between, after each item of somebody's trash, so that a long look can be made in pieces."""
    for account in accounts:
        in_trash = 0
        for entry in trash.items(account.uid):
            in_trash += charge_of(trash, entry).bytes
            yield None
        yield _standing(account, in_trash)


def known_accounts(quotas: Quotas) -> list[Account]:
    """Of all who have something, or limits of their own; not of those who once had, nor of those whom nothing limits."""
    limited = {uid for uid, said in quotas.all_settings().items() if said != _NOTHING_LIMITS}
    return [account for account in quotas.accounts() if account.total or account.uid in limited]


def charge_of(trash: Trash, entry: Entry) -> Amount:
    """What an item of the trash is charged with; nothing for what has just gone, or cannot be read."""
    with contextlib.suppress(OSError, FsError, RecursionError):
        return trash.charge_at(entry.spot)
    return NOTHING


def _standing(account: Account, trash_bytes: int) -> Standing:
    holds = account.limits
    return Standing(
        uid=account.uid,
        state=limits.state(account),
        used_bytes=account.used.bytes,
        claimed_bytes=account.claimed.bytes,
        trash_bytes=trash_bytes,
        soft_bytes=holds.bytes.soft,
        hard_bytes=holds.bytes.hard,
        grace_bytes_s=_whole(grace_left_s(account.over_bytes, holds)),
        used_files=account.used.files,
        claimed_files=account.claimed.files,
        soft_files=holds.files.soft,
        hard_files=holds.files.hard,
        grace_files_s=_whole(grace_left_s(account.over_files, holds)),
    )


def _whole(left_s: float | None) -> int | None:
    return None if left_s is None else int(left_s)


def default_limits(quotas: Quotas) -> Limits:
    """What holds for those of whom nothing is said."""
    return limits_of(Settings(), quotas.settings(None))


def say(quotas: Quotas, uid: Uid | None, said: Mapping[str, str]) -> Limits:
    """Let what is *said* (:func:`ckfs.policy.limits.settings_said`) hold for *uid*, or for all others (None). Returns what holds
    then. UsageError, with nothing changed, for what is no limit or cannot stand."""
    default = quotas.settings(None)
    after = limits.settings_said(default if uid is None else quotas.settings(uid), said)
    if uid is None:
        default = after
    if said:
        limits.check(after, default)
        quotas.set_limits(uid, after)
    return limits_of(after, default)


@dataclass(frozen=True, slots=True)
class Keepers:
    """The mounts where a new limit does not hold yet: those that have not given back what they were *granted* before, so that more is
    claimed than may be, and those where somebody writes *unseen*."""

    granted: frozenset[MountId] = frozenset()
    unseen: frozenset[MountId] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.granted or self.unseen)


def keeping(quotas: Quotas, uid: Uid | None) -> Keepers:
    """Where a limit that was said of *uid*, or of all others (None), does not hold yet."""
    asked, unseen = quotas.asked_back(), quotas.unseen()
    if not (asked or unseen):
        return Keepers()
    accounts = quotas.accounts() if uid is None else [quotas.account(uid)]
    over = {account.uid for account in accounts if limits.state(account) == "over"}
    limited = {account.uid for account in accounts if account.limits.bytes != Limit()}
    return Keepers(_of(asked, over), _of(unseen, limited))


def _of(mounts: Mapping[MountId, set[Uid]], uids: set[Uid]) -> frozenset[MountId]:
    return frozenset(mount for mount, owners in mounts.items() if owners & uids)


def kept_until_given_back(quotas: Quotas, uid: Uid | None) -> Keepers:
    """As :func:`keeping`, once mounts have had the time to answer. Blocking."""
    until_s = time.monotonic() + GIVEN_BACK_WITHIN_S
    while (keepers := keeping(quotas, uid)) and time.monotonic() < until_s:
        time.sleep(LOOK_S)
    return keepers


def held_up(registered: Mounts, keepers: Keepers) -> str:
    """On which mounts a new limit does not hold yet, and why, for the end of a line; nothing if there are none."""
    return "".join(
        f"; not yet on {', '.join(_named(registered, mount) for mount in sorted(mounts))}: {why}"
        for mounts, why in (
            (keepers.granted, "what was granted there before has not been given back"),
            (
                keepers.unseen,
                "what the kernel is writing there by itself counts, and is not stopped before it is closed",
            ),
        )
        if mounts
    )


def _named(registered: Mounts, mount: MountId) -> str:
    with contextlib.suppress(OSError):
        if registration := registered.read(mount):
            return described_mount(registration)
    return f"mount {shown(mount)}"


def keep_copy(store: Store, everything: Mapping[Uid | None, Settings]) -> None:
    """Have *everything* that was said in the store, too, from which a lost ledger is made anew. Where that fails it is done later
    (:mod:`ckfs.fs.reclaiming`)."""
    with contextlib.suppress(OSError, FsError):
        copied_limits.write(store.root, store.service, everything)


def described(uid: Uid | None, said: Mapping[str, str], login_uid: int | None) -> str:
    """What root has said, for the log; *login_uid* is who logged in before he became root, if that is known."""
    whose = "the default quota" if uid is None else f"the quota of uid {uid}"
    what = ", ".join(f"{field.removesuffix('_s').replace('_', ' ')} {text}" for field, text in said.items())
    by = "uid 0" if login_uid in (None, 0) else f"uid 0, logged in as uid {login_uid}"
    return f"{whose}: {what}, says {by}"
