"""Opening a store's ledger on this host: whether it may be kept here, and whether all that is in the store is in it.

Each of two ledgers would grant everybody all that he may have. So before a mount counts, it makes sure that all mounts that
live count in the same one: ``ledger.toml`` in the store says which that is (:mod:`ckfs.store.binding`), and nobody starts another,
or starts one anew, beside a mount that lives.

A ledger that is new, lost or damaged is made from the store: every owner is counted, limits come from the copy in the store.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path

from ckfs.errors import LedgerDown, LedgerUnusable, StoreInUse, StoreUnusable, UsageError
from ckfs.fs.listening import described, first_alive
from ckfs.fs.liveness import Judge
from ckfs.fs.rebuilding import rebuild
from ckfs.ledger import opening, state
from ckfs.ledger.ledger import Ledger
from ckfs.ledger.state import StoreState
from ckfs.names import shown
from ckfs.policy.enforcing import EMBEDDED, QuotaMode
from ckfs.policy.quota import Said, Settings
from ckfs.policy.settings import Policy
from ckfs.store import binding
from ckfs.store.binding import Binding, Kept
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.mounts import Registration

log = logging.getLogger(__name__)


def open_ledger(store: Store, policy: Policy, host: Host, limit_s: float) -> Ledger | None:
    """The ledger in which this host's mounts of *store* count, with everything in it; None where ckfs does not count. Each
    question to it takes *limit_s* at most. Raises StoreUnusable, with the reason and the way out."""
    if policy.quota.mode is not QuotaMode.LEDGER:
        _stop_counting(store)
        return None
    is_embedded = policy.quota.ledger == EMBEDDED
    try:
        ledger = (_Embedded if is_embedded else _Database)(store, policy, host, limit_s).opened()
        _let_keepers_be(ledger, store)
        return ledger
    except LedgerDown as error:
        raise out_of_reach(store, error) from None
    except LedgerUnusable as error:
        raise StoreUnusable(f"{shown(store.path)}: {error}") from None


def _let_keepers_be(ledger: Ledger, store: Store) -> None:
    """What holds for all others does not hold for root, nor for the account that keeps what belongs to nobody yet: unless
    somebody says so, these have no limits."""
    for uid in {ROOT.uid, store.service.uid}:
        if ledger.settings(uid) == Settings():
            ledger.set_limits(uid, Settings(Said.NONE, Said.NONE, Said.NONE, Said.NONE))


@dataclass(frozen=True, slots=True)
class Host:
    """This host, which others know as *node*; *state* is the directory in which it keeps what is its own."""

    state: Path
    node: str
    id: str

    @staticmethod
    def here(state_directory: Path, node: str) -> Host:
        return Host(state_directory, node, state.host_id(state_directory))


def out_of_reach(store: Store, error: LedgerDown) -> StoreUnusable:
    """The line for who needs the ledger now."""
    return StoreUnusable(
        f"{shown(store.path)}: the ledger of its quotas cannot be reached: {shown(str(error).strip())}:"
        " see quota.ledger in its policy.toml, and whether the database is up"
    )


def open_as_it_is(store: Store, policy: Policy, host: Host, limit_s: float) -> Ledger:
    """The ledger that the store names, for commands: nothing is made anew. Raises LedgerDown; LedgerUnusable if it is missing
    or damaged; StoreUnusable if it is on another host; UsageError if ckfs does not count in this store."""
    path = shown(store.path)
    if policy.quota.mode is not QuotaMode.LEDGER:
        raise UsageError(
            f'{path}: there is no ledger: its policy.toml says mode = "{policy.quota.mode.value}"'
        )
    if policy.quota.ledger != EMBEDDED:
        return opening.database(policy.quota.ledger, store.id, limit_s)
    check_host(store, binding.read(store.root), host)
    if (why := not_on(host, store, policy, limit_s)) is not None:
        raise LedgerUnusable(why)
    kept = state.state_of_store(host.state, store.id)
    if not kept.ledger.exists():
        raise LedgerUnusable(f"{path}: there is no ledger of its quotas yet")
    return opening.embedded(kept.ledger, store.id, limit_s)


def not_on(host: Host, store: Store, policy: Policy, limit_s: float) -> str | None:
    """Why the ledger that this *host* keeps for *store* is not in its state directory, and what to say if that is another one. None
    if it is there, or is to be made anew there: there was none yet, or it is damaged."""
    bound = binding.read(store.root)
    if (
        policy.quota.ledger != EMBEDDED
        or bound is None
        or bound.kept is not Kept.EMBEDDED
        or bound.host != host.id
    ):
        return None
    file = state.state_of_store(host.state, store.id).ledger
    path, say = shown(store.path), f"if its mounts have the option state=DIR, set {state.VARIABLE}=DIR"
    if not file.exists():
        return f"{path}: there is no ledger of its quotas on this host ({shown(str(file))}): {say}"
    try:
        with contextlib.closing(opening.embedded(file, store.id, limit_s)) as ledger:
            is_meant = ledger.counted_as() in (bound.id, None)
    except LedgerUnusable:
        return None
    return None if is_meant else f"{path}: the store does not name {shown(str(file))} as its ledger: {say}"


def not_counted(store: Store, ledger: Ledger) -> list[str]:
    """A line if the store does not name *ledger* as the one in which everything was counted."""
    bound = binding.read(store.root)
    if bound is not None and ledger.counted_as() == bound.id:
        return []
    return ["the store does not name this ledger as its own: the next mount counts everything anew"]


def upgrade(store: Store, policy: Policy, host: Host, limit_s: float) -> None:
    """Bring the ledger to the form that this ckfs knows. Raises as :func:`open_as_it_is`."""
    if policy.quota.mode is QuotaMode.LEDGER and policy.quota.ledger != EMBEDDED:
        opening.upgrade_database(policy.quota.ledger, store.id, limit_s)
    open_as_it_is(store, policy, host, limit_s).close()


def adopt(store: Store, policy: Policy, host: Host) -> str | None:
    """Let this host keep the embedded ledger from now on; returns the name of the host that did, None if it is this one.
    StoreInUse if a mount lives anywhere; that may take a lease's time to find out."""
    path = shown(store.path)
    bound = binding.read(store.root)
    if bound is None or bound.kept is not Kept.EMBEDDED:
        raise UsageError(f"{path}: no host keeps the ledger of its quotas: the next mount says where it is")
    if bound.host == host.id:
        return None
    alive = first_alive(store.mounts, Judge(store.mounts), policy.lease_s, log.info)
    if alive is not None:
        raise StoreInUse(f"{path}: {described(alive)} is alive: umount it first")
    new = Binding(Kept.EMBEDDED, str(uuid.uuid4()), host.id, host.node)
    binding.bind(store.root, store.service, new, bound)
    return bound.node


def check_host(store: Store, bound: Binding | None, host: Host) -> None:
    """Raises StoreUnusable if the ledger is kept on another host."""
    if bound is not None and bound.kept is Kept.EMBEDDED and bound.host != host.id:
        path = shown(store.path)
        raise StoreUnusable(
            f"{path}: the ledger of its quotas is in a file of host {shown(bound.node)}, and only that host can mount it: for"
            f' several hosts say mode = "engine" or a PostgreSQL ledger under [quota] in its policy.toml; if {shown(bound.node)}'
            f" is gone for good, 'ckfs ledger adopt {path}' brings the ledger here"
        )


def check_nobody_counts(store: Store, policy: Policy, ended_boots: set[str], why: str) -> None:
    """Raises StoreUnusable, with *why*, if a mount lives that this one must not count beside."""
    boots = {boot.encode() for boot in ended_boots}
    alive = first_alive(store.mounts, Judge(store.mounts), policy.lease_s, log.info, boots)
    if alive is not None:
        raise StoreUnusable(f"{shown(store.path)}: {described(alive)} is alive, and {why}")


def _stop_counting(store: Store) -> None:
    """From now on things change of which no ledger hears: the next mount that counts begins anew."""
    bound = binding.read(store.root)
    if bound is not None:
        binding.unbind(store.root, store.service, bound)
        log.info("the policy says that no ledger counts in this store: the one that did is not used any more")


_BEGUN_ANEW = "the ledger of its quotas has to be made anew: umount it everywhere first"


@dataclass(frozen=True, slots=True)
class _Embedded:
    store: Store
    policy: Policy
    host: Host
    limit_s: float

    def opened(self) -> Ledger:
        kept = state.state_of_store(self.host.state, self.store.id)
        with kept.locked(_say_waiting):
            bound = binding.read(self.store.root)
            check_host(self.store, bound, self.host)
            ended = kept.boots() - {state.boot_id()}
            ledger = self._usable(kept, bound)
            try:
                if ledger is None:
                    ledger = self._new(kept, bound, ended)
                else:
                    self._check_is_the_only_one(kept, ended)
                    if self._had_a_crash(kept):
                        log.info(
                            "mounts of this host ended without a word with an earlier kernel: counting anew"
                        )
                        rebuild(self.store, ledger, with_limits=False)
                kept.note_boot()
            except BaseException:
                if ledger is not None:
                    ledger.close()
                raise
        return ledger

    def _usable(self, kept: StoreState, bound: Binding | None) -> Ledger | None:
        """The ledger that is there, if it is the one that *bound* means; None if it has to be made anew."""
        if bound is None or bound.kept is not Kept.EMBEDDED:
            return None
        if not kept.ledger.exists():
            log.info("the ledger of this store is missing on this host (%s)", shown(str(kept.ledger)))
            return None
        try:
            ledger = opening.embedded(kept.ledger, self.store.id, self.limit_s)
        except LedgerUnusable as error:
            log.error("the ledger %s is damaged: %s", shown(str(kept.ledger)), shown(str(error)))  # noqa: TRY400 - not a bug
            return None
        if wrong := ledger.damage():
            log.error("the ledger %s is damaged: %s", shown(str(kept.ledger)), shown(wrong[0]))
        elif ledger.counted_as() != bound.id:
            log.info("the ledger %s is not the one that the store names", shown(str(kept.ledger)))
        else:
            return ledger
        ledger.close()
        return None

    def _new(self, kept: StoreState, bound: Binding | None, ended: set[str]) -> Ledger:
        check_nobody_counts(self.store, self.policy, ended, _BEGUN_ANEW)
        if kept.ledger.exists():
            log.info("the ledger that was there is kept as %s", shown(str(kept.put_damaged_aside())))
        ledger = opening.embedded(kept.ledger, self.store.id, self.limit_s)
        new = Binding(Kept.EMBEDDED, str(uuid.uuid4()), self.host.id, self.host.node)
        try:
            binding.bind(self.store.root, self.store.service, new, bound)
            rebuild(self.store, ledger, with_limits=True)
            ledger.all_counted(new.id)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _check_is_the_only_one(self, kept: StoreState, ended: set[str]) -> None:
        """A copy of this machine, which has the same id, counts in another file."""
        here = {state.boot_id(), *ended}
        if any(one.boot.decode("ascii", "replace") not in here for one in self.store.mounts.all()):
            check_nobody_counts(
                self.store,
                self.policy,
                here,
                f"not on this host, though that has the same id ({self.host.id[:8]}…): give one of the machines another"
                " /etc/machine-id (systemd-machine-id-setup)",
            )

    def _had_a_crash(self, kept: StoreState) -> bool:
        """Whether the kernel, or the power, failed under mounts of this host: the ledger's last words may be lost."""
        if state.boot_id() in kept.boots():
            return False
        return any(_boot_of(one) != state.boot_id() for one in self.store.mounts.all())


def _boot_of(one: Registration) -> str:
    return one.boot.decode("ascii", "replace")


@dataclass(frozen=True, slots=True)
class _Database:
    store: Store
    policy: Policy
    host: Host
    limit_s: float

    def opened(self) -> Ledger:
        connection = self.policy.quota.ledger
        ledger = opening.database(connection, self.store.id, self.limit_s)
        try:
            with opening.database_locked(connection, self.store.id, self.limit_s, _say_waiting):
                bound = binding.read(self.store.root)
                if bound is None or bound.kept is not Kept.POSTGRESQL or ledger.counted_as() != bound.id:
                    self._begin(ledger, bound)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _begin(self, ledger: Ledger, bound: Binding | None) -> None:
        check_nobody_counts(self.store, self.policy, set(), _BEGUN_ANEW)
        new = Binding(Kept.POSTGRESQL, str(uuid.uuid4()))
        ledger.all_counted(None)
        binding.bind(self.store.root, self.store.service, new, bound)
        rebuild(self.store, ledger, with_limits=True)
        ledger.all_counted(new.id)


def _say_waiting() -> None:
    log.info("another mount is opening the ledger of this store: waiting for it")
