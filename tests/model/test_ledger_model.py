"""Random calls of several mounts on one ledger, against a small store of which the truth is known.

Two things hold after every step. What an owner has used, and what is claimed for him, does not pass his hard limit, unless that was
lowered below it; and what the ledger says he has used is what a recount of the store would find, once the mounts have posted what
they have to say.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ckfs.ledger import postgres, sqlite
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Opened, Posting, Settled
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from tests.support.examples import PHASES, examples
from tests.support.postgres import Server, running, skip_unless_installed

OWNERS = [Uid(2101), Uid(2102), Uid(2103)]
MOUNTS = [0, 1, 2]
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 5000))
STORE = "a store"


@dataclass(eq=False)
class File:
    """A file in the store, as it is."""

    ino: Inode
    owner: Uid
    bytes: int = 0
    has_name: bool = True
    writers: set[int] = field(default_factory=set)
    """The mounts that have it open, or have not posted yet that they have no more."""
    counted: Amount = NOTHING
    """While it is being written: what the ledger counts it with, as its marks say."""

    @property
    def amount(self) -> Amount:
        """What it counts with once it is at rest."""
        return Amount(self.bytes, 1) if self.has_name or self.writers else NOTHING


@dataclass
class Mount:
    """What a mount knows."""

    id: MountId
    posts: int = 0
    moves: int = 0
    balance: dict[Uid, Amount] = field(default_factory=dict)
    """Granted, and neither used nor given up."""
    held: dict[Inode, tuple[Uid, int]] = field(default_factory=dict)
    """Bytes of grants that were used in a file that is being written: whose, and how many."""
    closed: list[File] = field(default_factory=list)
    made: dict[Uid, int] = field(default_factory=dict)
    """Files whose making is not posted yet."""

    def has(self, uid: Uid) -> Amount:
        return self.balance.get(uid, NOTHING)


class LedgerMachine(RuleBasedStateMachine):
    make: ClassVar[Callable[[], tuple[Book, Callable[[], None]]]]
    """Gives a ledger, and what ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.end_ledger = type(self).make()
        self.files: list[File] = []
        self.mounts = [self._new_mount() for _ in MOUNTS]
        self.hard: dict[Uid, int] = {}
        self.most: dict[Uid, int] = {}
        """What an owner may have while a limit that was lowered is below it."""

    def teardown(self) -> None:
        self._post_all()
        for uid in OWNERS:
            assert self._recount(uid) == self.ledger.account(uid).used
        for mount in self.mounts:
            self.ledger.end(mount.id)
        assert [account.claimed for account in self.ledger.accounts()] == [NOTHING] * len(
            self.ledger.accounts()
        )
        assert self.ledger.mounts() == {}
        self.end_ledger()

    # What mounts do

    @initialize(hard=st.lists(st.integers(0, 20_000), min_size=3, max_size=3))
    def begin(self, hard: list[int]) -> None:
        for uid, number in zip(OWNERS, hard, strict=True):
            self.set_limit(uid, number)

    @rule(which=st.sampled_from(MOUNTS), uid=st.sampled_from(OWNERS), least=SIZES, more=SIZES)
    def draw(self, which: int, uid: Uid, least: int, more: int) -> None:
        self._draw(which, uid, Amount(least, 1), Amount(least + more, 3))

    @rule(which=st.sampled_from(MOUNTS), uid=st.sampled_from(OWNERS))
    def create(self, which: int, uid: Uid) -> None:
        mount = self.mounts[which]
        if self._take(which, uid, Amount(0, 1)):
            self.files.append(File(Inode(secrets.randbits(63)), uid))
            mount.made[uid] = mount.made.get(uid, 0) + 1

    @precondition(lambda self: self.files)
    @rule(which=st.sampled_from(MOUNTS), data=st.data())
    def open(self, which: int, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self.files))
        if not file.has_name or which in file.writers:
            return
        self._post_makers()
        if not file.writers:
            file.counted = Amount(file.bytes, 1)
        self._draw(which, file.owner, NOTHING, NOTHING, Opened(file.ino, file.counted))
        self.mounts[which].held[file.ino] = (file.owner, 0)
        file.writers.add(which)

    @precondition(lambda self: self._written())
    @rule(data=st.data(), size=SIZES)
    def write(self, data: st.DataObject, size: int) -> None:
        file, which = data.draw(st.sampled_from(self._written()))
        mount = self.mounts[which]
        payer, held = mount.held[file.ino]
        self._take(which, payer, Amount(size))
        size = min(size, mount.has(payer).bytes)
        mount.balance[payer] = mount.has(payer) - Amount(size)
        mount.held[file.ino] = (payer, held + size)
        file.bytes += size

    @precondition(lambda self: self._written())
    @rule(data=st.data(), size=SIZES)
    def truncate(self, data: st.DataObject, size: int) -> None:
        """What was claimed for it stays so until the file is settled."""
        file, _ = data.draw(st.sampled_from(self._written()))
        file.bytes = min(file.bytes, size)

    @precondition(lambda self: self.files)
    @rule(which=st.sampled_from(MOUNTS), data=st.data(), size=SIZES)
    def truncate_by_name(self, which: int, data: st.DataObject, size: int) -> None:
        file = data.draw(st.sampled_from(self.files))
        freed = file.bytes - min(file.bytes, size)
        if not file.has_name or not freed:
            return
        self._post_makers()
        file.bytes -= freed
        if not file.writers:
            self._post(which, [Posting(file.owner, Amount(-freed))])

    @precondition(lambda self: self._written())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        file, which = data.draw(st.sampled_from(self._written()))
        self.mounts[which].closed.append(file)

    @precondition(lambda self: self.files)
    @rule(which=st.sampled_from(MOUNTS), data=st.data())
    def unlink(self, which: int, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self.files))
        if not file.has_name:
            return
        self._post_makers()
        before = Amount(file.bytes, 1)
        file.has_name = False
        if not file.writers:
            self._post(which, [Posting(file.owner, -before)])
        self._remove_what_is_gone()

    @rule(which=st.sampled_from(MOUNTS))
    def post(self, which: int) -> None:
        mount = self.mounts[which]
        postings = []
        for uid, number in mount.made.items():
            postings.append(Posting(uid, Amount(0, number), Amount(0, number)))
        for file in mount.closed:
            payer, held = mount.held.pop(file.ino)
            file.writers.discard(which)
            counted, is_last = file.counted, not file.writers
            final = counted + Amount(held)
            if is_last:
                final = Amount(file.bytes, 1) if file.has_name else NOTHING
            file.counted = final
            if payer != file.owner:
                self.most[file.owner] += held
            settled = Settled(file.ino, final, counted, is_last=is_last)
            postings.append(Posting(payer, given_up=Amount(held), settled=(settled,)))
        mount.made, mount.closed = {}, []
        self._post(which, postings)
        self._remove_what_is_gone()

    @rule(which=st.sampled_from(MOUNTS), uid=st.sampled_from(OWNERS), asked_by=st.sampled_from(MOUNTS))
    def give_back(self, which: int, uid: Uid, asked_by: int) -> None:
        asking, mount = self.mounts[asked_by], self.mounts[which]
        self.ledger.recall(asking.id, uid)
        if uid not in self.ledger.recalled(mount.id):
            return
        self._post(which, [Posting(uid, given_up=mount.has(uid))])
        mount.balance[uid] = NOTHING
        self.ledger.answer(mount.id, uid)
        assert uid not in self.ledger.recalled(mount.id)

    @rule(which=st.sampled_from(MOUNTS), giver=st.sampled_from(OWNERS), taker=st.sampled_from(OWNERS))
    def move(self, which: int, giver: Uid, taker: Uid) -> None:
        self._post_makers()
        files = [file for file in self.files if file.owner == giver]
        moved = sum((Amount(file.bytes, 1) for file in files), NOTHING)
        if giver == taker or not self._take(which, taker, moved):
            return
        self.mounts[which].balance[taker] -= Amount(moved.bytes)
        mount = self.mounts[which]
        mount.moves += 1
        for _ in range(2):
            opened = [Opened(file.ino, Amount(file.bytes, 1)) for file in files]
            self.ledger.move(giver, mount.id, taker, moved, opened, mount.moves)
        for file in files:
            file.owner, file.counted = taker, Amount(file.bytes, 1)

    # What admins and others do

    @rule(uid=st.sampled_from(OWNERS), hard=st.integers(0, 20_000))
    def set_limit(self, uid: Uid, hard: int) -> None:
        self.ledger.set_limits(uid, Settings(hard_bytes=hard))
        self.hard[uid] = self.most[uid] = hard
        self.most[uid] = max(hard, self.ledger.account(uid).total.bytes)

    @rule(which=st.sampled_from(MOUNTS))
    def die(self, which: int) -> None:
        """The others recount everybody with whom the mount had to do, and another takes its place."""
        dead = self.mounts[which]
        for file in self.files:
            payer, held = dead.held.get(file.ino, (file.owner, 0))
            if payer != file.owner:
                self.most[file.owner] += held
            file.writers.discard(which)
        self.mounts[which] = self._new_mount()
        self._remove_what_is_gone()
        self._post_all()
        for uid in self.ledger.mounts().get(dead.id, set()):
            basis = self.ledger.basis(uid)
            bases = self._new_bases(uid, dead.id)
            counted = self._recount(uid, dead.id, bases)
            assert self.ledger.recounted(uid, basis.version, counted, [dead.id], bases)
        self.ledger.forget(dead.id)
        assert dead.id not in self.ledger.mounts()

    @rule(uid=st.sampled_from(OWNERS))
    def recount(self, uid: Uid) -> None:
        """It finds what the ledger says."""
        self._post_all()
        basis = self.ledger.basis(uid)
        counted = self._recount(uid)
        assert counted == basis.used
        assert self.ledger.recounted(uid, basis.version, counted)

    @invariant()
    def no_limit_is_passed(self) -> None:
        for account in self.ledger.accounts():
            hard = self.hard[account.uid]
            assert account.total.bytes <= self.most[account.uid]
            self.most[account.uid] = max(hard, account.total.bytes)
            true = sum(file.amount.bytes for file in self.files if file.owner == account.uid)
            assert true <= account.total.bytes + self._astray(account.uid)

    @invariant()
    def all_adds_up(self) -> None:
        assert self.ledger.check() == []

    # Steps of these

    def _astray(self, uid: Uid) -> int:
        """Bytes in files of his that were claimed for whoever had them before: a mount that goes on writing when another one
        gives the file away hears of that only when it has settled it. That much he may be over his limit for it."""
        owners = {file.ino: file.owner for file in self.files}
        return sum(
            held
            for mount in self.mounts
            for ino, (payer, held) in mount.held.items()
            if owners.get(ino) == uid != payer
        )

    def _new_mount(self) -> Mount:
        return Mount(MountId(secrets.token_hex(8).encode()))

    def _written(self) -> list[tuple[File, int]]:
        """Files that are open, with the mounts."""
        return [
            (file, which)
            for file in self.files
            for which in sorted(file.writers)
            if file not in self.mounts[which].closed
        ]

    def _draw(self, which: int, uid: Uid, least: Amount, wanted: Amount, *opened: Opened) -> None:
        mount = self.mounts[which]
        before = self._granted(mount, uid)
        drawn = self.ledger.draw(mount.id, uid, least, wanted, opened)
        mount.balance[uid] = mount.has(uid) + drawn.total - before
        assert mount.balance[uid].covers(NOTHING)

    @staticmethod
    def _granted(mount: Mount, uid: Uid) -> Amount:
        held = sum(number for payer, number in mount.held.values() if payer == uid)
        return mount.has(uid) + Amount(held, mount.made.get(uid, 0))

    def _take(self, which: int, uid: Uid, wanted: Amount) -> bool:
        """Have so much of the balance, which is taken off it if it is files; whether there is enough."""
        mount = self.mounts[which]
        missing = (wanted - mount.has(uid)).not_below_zero()
        if missing:
            self._draw(which, uid, missing, missing)
        if not mount.has(uid).covers(wanted):
            return False
        mount.balance[uid] = mount.has(uid) - Amount(0, wanted.files)
        return True

    def _post(self, which: int, postings: list[Posting]) -> None:
        """Twice, as if the first answer had been lost."""
        mount = self.mounts[which]
        mount.posts += 1
        for _ in range(2):
            self.ledger.post(mount.id, mount.posts, postings)

    def _post_makers(self) -> None:
        """A mount says at once of what others come across that it has made it."""
        for which in MOUNTS:
            if self.mounts[which].made:
                self.post(which)

    def _post_all(self) -> None:
        for which in MOUNTS:
            self.post(which)

    def _remove_what_is_gone(self) -> None:
        self.files = [file for file in self.files if file.has_name or file.writers]

    def _new_bases(self, uid: Uid, dead: MountId) -> list[Opened]:
        """Of files that the dead mount wrote together with one that lives. Nobody claims any more what the dead one has added: they
        count with all that they have, until the other has settled them. What that one has added is claimed beside."""
        notes = self.ledger.basis(uid).files
        shared = {note.ino for note in notes if note.mount == dead}
        shared &= {note.ino for note in notes if note.mount != dead}
        files = [file for file in self.files if file.ino in shared]
        for file in files:
            file.counted = Amount(file.bytes, 1)
            self.most[uid] += sum(mount.held[file.ino][1] for mount in self.mounts if file.ino in mount.held)
        return [Opened(file.ino, Amount(file.bytes, 1)) for file in files]

    def _recount(self, uid: Uid, dead: MountId | None = None, new: Sequence[Opened] = ()) -> Amount:
        """What is in the store, but for files that a living mount writes, which count with their bases."""
        bases = {file.ino: file.base for file in self.ledger.basis(uid).files if file.mount != dead}
        bases |= {file.ino: file.base for file in new}
        at_rest = [file.amount for file in self.files if file.owner == uid and file.ino not in bases]
        return sum((*at_rest, *bases.values()), NOTHING)


def in_sqlite() -> tuple[Book, Callable[[], None]]:
    # In memory where that is to be had: hundreds of new files would wait for the disk, each for itself.
    directory = tempfile.mkdtemp(prefix="ckfs-ledger-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    book = sqlite.create(os.fsencode(directory) + b"/ledger", STORE)

    def end() -> None:
        book.close()
        shutil.rmtree(directory)

    return book, end


def in_postgres(connection: str) -> tuple[Book, Callable[[], None]]:
    """One database for all runs: each has a store of its own there."""
    book = postgres.open_ledger(connection, secrets.token_hex(8), 60.0)
    return book, book.close


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    skip_unless_installed()
    with running() as started:
        yield started


RUNS = settings(
    stateful_step_count=50,
    phases=PHASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


class InSqlite(LedgerMachine):
    make = in_sqlite


def test_no_limit_is_passed_and_a_recount_finds_what_the_ledger_says() -> None:
    run_state_machine_as_test(InSqlite, settings=settings(RUNS, max_examples=examples(40)))


def test_the_same_in_postgresql(server: Server) -> None:
    class InPostgres(LedgerMachine):
        make = partial(in_postgres, server.connection)

    run_state_machine_as_test(InPostgres, settings=settings(RUNS, max_examples=examples(4)))
