"""What a ledger is to the rest of ckfs: who uses how much, and who may have how much more.

Mounts write with what they were *granted*. A grant is taken off the owner's room when it is drawn, in the ledger, before
anything is written; what was written is *posted* later, and as much of the grant is given up with it. So at every moment
``used + claimed <= hard``, however many mounts write, and a mount that dies has at most used what was claimed for it.

Between the two a file that is being written counts with what it had when that began (its *base*), and what was added is
claimed. The ledger keeps the base of each such file (:class:`Opened`), so that a recount can tell what of the store is settled
(:mod:`ckfs.fs.recounting`).

All calls block, and may be made by any thread. They raise LedgerDown if the ledger cannot be reached in time; then nothing is
known of whether the call took place, and it may be made again: draws say what the mount has in all, posts are numbered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ckfs.ledger.reach import Reach
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Account, Amount, Settings


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a mount begins to write, or keeps open without a name. *base* is what the ledger counts it with once it has heard
    everything (:mod:`ckfs.store.shares`). If other mounts write it already, it counts for whom it does."""

    ino: Inode
    base: Amount


@dataclass(frozen=True, slots=True)
class Settled:
    """A file that a mount writes no more; it counts with *final* from now on, and did with *counted* before (None: with the base that
    is noted). *is_last*: no other mount writes it; else it goes on counting, with so much more. *goes_on*: this one, and no other, writes
    it on, and *final* is the base that is noted from now on."""

    ino: Inode
    final: Amount
    counted: Amount | None = None
    is_last: bool = True
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Spent:
    """*mounts*, which are dead, have written as much as *amount* of what they were granted, to a file of which others say what it takes.
    It is in what these say, and claimed no more."""

    mounts: tuple[MountId, ...]
    amount: Amount


@dataclass(frozen=True, slots=True)
class Posting:
    """What a mount says of one owner since its last posting. All of it happens, or nothing."""

    uid: Uid
    used: Amount = NOTHING
    """By how much what is at rest has changed, apart from what *settled* says."""
    given_up: Amount = NOTHING
    """Of the mount's grant: it was used, or is not needed."""
    settled: tuple[Settled, ...] = ()
    """Charged to whom the ledger notes as the payer of each, whoever *uid* is: it may have been handed over meanwhile. Then it
    counted with the base that is noted."""
    spent: tuple[Spent, ...] = ()
    """By dead mounts, of their grants for *uid*."""
    grown: tuple[Opened, ...] = ()
    """Files that are being written, of whatever mount, whose noted bases are more by as much: it is in *used*, and they may have been
    *settled* before."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """*total* is all that the mount has been granted for the owner and has not given up yet. *grant* tells whether that is the
    grant of before (the number is the same) or one after the ledger took the earlier one back, since the mount had been taken
    for dead. *account* is the owner's as it is now."""

    grant: int
    total: Amount
    account: Account
    others_hold: bool
    """Other mounts have grants for the owner, which they may not need."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that some mount writes, as the ledger knows it."""

    mount: MountId
    ino: Inode
    base: Amount


@dataclass(frozen=True, slots=True)
class Basis:
    """What a recount of one owner builds on. *version* changes with everything that is posted of the owner, and with every file
    that somebody begins to write."""

    version: int
    used: Amount
    files: tuple[OpenFile, ...]


class Quotas(Protocol):
    """Who may have how much, and has how much: of a ledger, or of the store's own engine (:mod:`ckfs.engines`)."""

    def account(self, uid: Uid) -> Account:
        """One of whom nothing was ever heard has used nothing, and has the default limits."""

    def accounts(self) -> list[Account]:
        """Of all owners who use something, or have limits of their own; by uid."""

    def settings(self, uid: Uid | None) -> Settings:
        """What was said of *uid*, or of all others (None)."""

    def set_limits(self, uid: Uid | None, settings: Settings) -> None:
        """Say of *uid*, or of all others (None), what holds from now on. Who is over a new limit keeps what he has. Mounts
        are asked to give back what they do not need."""

    def all_settings(self) -> dict[Uid | None, Settings]:
        """Everything that was said."""

    def asked_back(self) -> dict[MountId, set[Uid]]:
        """The mounts that have yet to give back what they do not need of their grants, and whose. An engine grants nothing."""

    def unseen(self) -> dict[MountId, set[Uid]]:
        """The mounts where somebody writes whom no limit stops before he has closed it, and for whom. An engine stops everybody."""


class Ledger(Quotas, Protocol):
    """One store's ledger."""

    @property
    def kind(self) -> str:
        """``sqlite`` or ``postgresql``."""

    @property
    def reach(self) -> Reach:
        """Whether it answered whoever asked it last, of this process. Asks nothing, and waits for nobody."""

    @property
    def asked_ns(self) -> int:
        """When somebody of this process asked it last, since the epoch."""

    @property
    def last_failure(self) -> Reach | None:
        """As it was when it was away the last time."""

    # Mounts

    def draw(
        self, mount: MountId, uid: Uid, least: Amount, wanted: Amount, opened: Sequence[Opened] = ()
    ) -> Drawn:
        """Grant *mount* up to *wanted* more for *uid* (:func:`ckfs.policy.quota.grant`), in one step with noting the files
        *opened* (which are noted whether or not anything is granted; one that is noted already stays as it is).

        A draw of nothing asks how things stand.
        """

    def post(self, mount: MountId, number: int, postings: Iterable[Posting]) -> None:
        """Take up *postings*. Numbers of a mount's posts grow from 1; one that was taken up already is passed over.

        What is given up beyond what the mount has is passed over: the ledger took it back when the mount had been taken for
        dead. What one mount has freed may be posted before another mount posts that it was made, which is claimed meanwhile:
        ``used`` may be less than nothing then, and is shown as nothing.
        """

    def move(
        self,
        giver: Uid,
        mount: MountId,
        taker: Uid,
        moved: Amount,
        files: Sequence[Opened],
        number: int | None = None,
    ) -> None:
        """*moved* is *taker*'s from now on, and no more *giver*'s, in one step; *mount* has drawn as much for the taker, and
        gives that up. The open *files* among it, of whatever mount, are in *moved* with their new bases, and count with them for
        the taker; the giver is relieved of the bases that they had.

        *number* is unlike that of any other move of the mount, in any order, and apart from the numbers of posts: a move that
        was taken up already is passed over, so that it may be said again.
        """

    def recall(self, mount: MountId, uid: Uid) -> None:
        """Ask all mounts but *mount* to give back what they do not need of their grants for *uid*."""

    def recalled(self, mount: MountId) -> set[Uid]:
        """The owners for whom *mount* is asked to give back what it does not need. Quick: asked a few times a second."""

    def answer(self, mount: MountId, uid: Uid) -> None:
        """*mount* has posted what it does not need."""

    def say_unseen(self, mount: MountId, uid: Uid, *, is_so: bool) -> None:
        """Whether the kernel of *mount* writes something by itself for *uid*, of which nobody hears."""

    def waits_for(self, mount: MountId, uid: Uid) -> bool:
        """Whether some other mount has yet to answer a recall for *uid*."""

    def end(self, mount: MountId) -> None:
        """*mount* has posted everything, and ends: its grants are given up."""

    # Recounts

    def mounts(self) -> dict[MountId, set[Uid]]:
        """The mounts that have not ended, with the owners for whom each has, or had, a grant."""

    def basis(self, uid: Uid) -> Basis: ...

    def recounted(
        self,
        uid: Uid,
        version: int | None,
        counted: Amount,
        dead: Iterable[MountId] = (),
        bases: Sequence[Opened] = (),
    ) -> bool:
        """Let *uid* have used *counted*, if nothing was posted since *version* (None: whatever was), and say whether.

        In the same step the mounts *dead* lose their grants for him, and their notes of files; *bases* are the new bases of
        files that mounts still write.
        """

    def forget(self, mount: MountId) -> None:
        """*mount* is dead, and all its owners were recounted. If it has returned, and has drawn since, it stays known."""

    # The ledger itself

    def counted_as(self) -> str | None:
        """The id by which the store knows this ledger, since everybody was counted; None: what is in the store may not be in it."""

    def all_counted(self, id: str | None) -> None:  # noqa: A002 - its name everywhere
        """Everybody was counted, and the store knows this ledger by *id*; None takes that back."""

    def damage(self) -> list[str]:
        """What the database finds wrong with its own tables, a line each: then nothing in it can be relied on."""

    def check(self) -> list[str]:
        """What is wrong with it, a line each: a version that this ckfs does not know, damage, sums that do not add up."""

    def close(self) -> None: ...
