"""What all calls of a mount share: the store, what the kernel knows, who this mount is, and how a call reaches a file.

State changes only in the event loop's thread. Everything read before an ``await`` may have changed after it
(docs/concurrency.md says what); store calls are given what they need and return what they found.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from ckfs.engines.engine import Engine
from ckfs.errors import BadHandle, ReadOnly, Stale, StoreDown
from ckfs.fs.aside import Aside
from ckfs.fs.charges import Charges, Hold, Uncharged
from ckfs.fs.figures import Figures
from ckfs.fs.inodes import Handle, Handles, Inodes, Node
from ckfs.fs.lateness import Lateness
from ckfs.fs.liveness import Fate, Judge
from ckfs.fs.lookup import OwnerLookup
from ckfs.fs.membership import Membership
from ckfs.fs.moved import GONE, Moved
from ckfs.fs.permits import Permits
from ckfs.fs.seen import Seen
from ckfs.fs.undigested import UndigestedImages
from ckfs.ledger.ledger import Ledger, Quotas
from ckfs.model import Caller, Owner, Record, Role
from ckfs.names import ROOT_INODE, FileHandle, Inode, MountId, SetName, Uid
from ckfs.policy.settings import Policy
from ckfs.store import writing
from ckfs.store.entries import USERS, SetEntry
from ckfs.store.gate import Gate, Release
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.locks import InodeLocks, LockKey, Looks
from ckfs.store.namelinks import NAMES
from ckfs.store.quick import QuickReader
from ckfs.store.spots import HOME, Found, Spot, Target, VolumeId

log = logging.getLogger(__name__)

T = TypeVar("T")

_SHORT_LOOK = 0.1
"""The part of op_timeout that a look may take where a change of the same directory hangs."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """*written* was as it is at *since_s*, in seconds of the event loop's clock."""

    written: object
    since_s: float


@dataclass(slots=True)
class Core:
    """One mount. *policy* may be replaced while it runs."""

    store: Store
    gate: Gate
    policy: Policy
    lookup: OwnerLookup
    role: Role
    node_name: bytes
    op_timeout_s: float
    member: Membership | None = None
    """None on a read-only mount, which writes nothing."""
    reads_partial: bool = False
    """Partial images may be opened for reading."""
    ledger: Ledger | None = None
    """In which this mount counts what its writers use; None if it does not count."""
    engine: Engine | None = None
    """What enforces the quotas of the store's users, if its own file system does."""
    nothing_to_give_until: dict[tuple[Owner | None, VolumeId | None], tuple[float, int]] = field(
        default_factory=dict
    )
    """In the event loop's time: nothing was found, there or anywhere, that could give way to what this owner (as stored) writes; and how many items
    this mount had put into the trash before it was looked for."""
    judge: Judge = field(init=False)
    inodes: Inodes = field(default_factory=Inodes)
    handles: Handles = field(default_factory=Handles)
    locks: InodeLocks = field(init=False)
    quick: QuickReader = field(init=False)
    looks: Looks = field(default_factory=Looks)
    following: dict[SetName, str] = field(default_factory=dict)
    """Sets given away whose files have not all followed yet, and why not."""
    copying: dict[Inode, trio.Event] = field(default_factory=dict)
    """The sets that this mount is copying to their new owners, and what is set when each has ended."""
    others: dict[SetName, Quiet] = field(default_factory=dict)
    """What other nodes seemed to be writing in sets that wait for that, and since when it is unchanged."""
    undigested: UndigestedImages = field(default_factory=UndigestedImages)
    """Images that have become complete on this mount, and whose digests have yet to be made."""
    has_left: bool = False
    """Old files of sets that were copied may be there, and are to be removed."""
    background: trio.Nursery | None = None
    """What runs for as long as the mount does."""
    aside: Aside = field(default_factory=Aside)
    charging: Charges = field(default_factory=Uncharged)
    questions: Aside = field(init=False)
    """To whoever keeps quotas."""
    figures: Figures = field(default_factory=Figures)
    permits: Permits = field(default_factory=Permits)
    late: Lateness = field(init=False)
    seen: Seen | None = None
    """How late this mount sees what other hosts do; None as long as that is not known."""
    moved: Moved = field(init=False)

    def __post_init__(self) -> None:
        self.locks = InodeLocks(self.op_timeout_s)
        self.quick = self.store.door.quick_reader()
        self.judge = Judge(self.store.mounts)
        self.late = Lateness(is_late=not self.store.door.is_local)
        self.questions = Aside(self.op_timeout_s)
        self.moved = Moved(self.store, self.gate, self.inodes, self.op_timeout_s)
        self.gate.volume_of = self._volume_of_set
        self.reaches_others()

    def reaches_others(self) -> None:
        """Which further stores this host reaches may have changed."""
        door = self.store.door
        self.late.is_late = not (door.is_local and door.volumes.are_local)
        self.quick = door.quick_reader() if door.volumes.all() else self.quick

    def is_near(self, node: Node) -> bool:
        """Whether what *node* has lies on this host's own disks or in its memory, and answers at once."""
        entry = node.entry_above
        return self.store.door.is_near(HOME if entry is None else entry.volume)

    def _volume_of_set(self, key: int) -> VolumeId:
        node = self.inodes.known(Inode(key)) if key else None
        return HOME if node is None or node.entry is None else node.entry.volume

    @property
    def quotas(self) -> Quotas | None:
        """Who keeps quotas; None if nobody does here."""
        return self.ledger if self.ledger is not None else self.engine

    @property
    def mount_id(self) -> MountId:
        """By which images are marked that are written here. ReadOnly on a read-only mount."""
        if self.member is None:
            raise ReadOnly("the mount is read-only")
        return self.member.id

    async def assure_membership(self, held: MountId | None) -> None:
        """Before anything is written to an image that is marked as *held*; see :meth:`Membership.assure`."""
        if self.member is not None:
            await self.member.assure(self.gate, self.policy, held)

    def mark(self, mount: MountId, target: Target, ino: Inode, change: Callable[[Found], Record]) -> Found:
        """Say in the store that *mount*, this one, writes *target*, and what *change* says besides. Blocking."""
        return writing.begin(
            self.store.door, target, ino, mount, change, lambda other: self.fate(other) is Fate.GONE
        )

    def fate(self, mount: MountId) -> Fate:
        """Whether a mount of the store lives, this one included. Blocking."""
        if self.member is not None and mount == self.member.id:
            return Fate.ALIVE
        return self.judge.fate(mount, self.policy.lease_s)

    # Reaching files

    def handle(self, number: FileHandle) -> Handle:
        try:
            return self.handles.get(number)
        except KeyError:
            raise BadHandle("no such handle") from None

    async def on(
        self,
        node: Node,
        work: Callable[[Target], T],
        *,
        locked: bool = False,
        by_name: bool = False,
        hold: Hold | None = None,
    ) -> T:
        """Run *work* on the file that *node* stands for: by an open descriptor if there is one, else by its name.

        *locked* keeps other locked calls on the same inode out, until the store call is really over. *by_name* uses no
        open descriptor, since that may not be open for what *work* does. *hold*: of what is claimed for it.
        """
        try:
            return await self.moved.again(
                (node,), lambda: self._on(node, work, locked=locked, by_name=by_name, hold=hold), GONE
            )
        except Stale:
            # A network's store says so of what is open here and was removed on another host: its set was copied, perhaps.
            if by_name or not node.handles:
                raise
            with contextlib.suppress(Stale, FileNotFoundError):
                return await self._on(node, work, locked=locked, by_name=True, hold=hold)
            raise

    async def _on(
        self,
        node: Node,
        work: Callable[[Target], T],
        *,
        locked: bool,
        by_name: bool,
        hold: Hold | None,
    ) -> T:
        releases: list[Release] = [] if hold is None else [hold()]
        try:
            if locked:
                releases.append(await self.locks.acquire(node.ino))
            target = node.spot if by_name else self.target(node, releases)
        except BaseException:
            for release in releases:
                release()
            raise
        run = self.gate.call if locked else self.gate.look
        return await run(
            lambda: _as_owner_or_root(work, target), releases=releases, of_set=self.set_key(node)
        )

    def target(self, node: Node, releases: list[Release]) -> Target:
        """How to reach *node*: an open descriptor, pinned in *releases*, or its name."""
        if node.is_root:
            return self.store.names.top
        for handle in node.handles:
            releases.append(handle.pin())
            return handle.file.paid_by(node.payer)
        return node.spot

    async def below(self, directory: Node, work: Callable[[], T]) -> T:
        """Run *work*, which computes spots inside *directory* when called; again if it has moved meanwhile."""

        async def run() -> T:
            if self.locks.is_overdue(directory.ino):
                return await self.look_briefly(directory.ino, work, of_set=self.set_key(directory))
            return await self.gate.look(work, of_set=self.set_key(directory))

        return await self.moved.again((directory,), run)

    async def look_briefly(self, directory: Hashable, work: Callable[[], T], *, of_set: int = 0) -> T:
        """Run *work*, which looks into a *directory* of the store in which a change may hang.

        What is being changed is often locked: in the store, or by this host's own kernel, which lets nobody look up a
        new name in a directory while a change of it is under way. Many who meet the same change, one after the other
        since the kernel serialises them, must not wait for it once each: each waits for a moment only, and none at all
        while the look of one of them hangs.
        """
        with trio.move_on_after(self.op_timeout_s * _SHORT_LOOK):
            return await self.gate.call(work, releases=(self.looks.begin(directory),), of_set=of_set)
        raise StoreDown("an earlier change of the same directory is still under way")

    async def opening(self, node: Node, work: Callable[[], T], *, undo: Callable[[T], None]) -> T:
        """As :meth:`below`, for *work* that opens *node*; *undo* closes what came too late."""

        async def run() -> T:
            return await self.gate.call(work, undo=undo, of_set=self.set_key(node))

        return await self.moved.again((node,), run, GONE)

    async def change(
        self,
        directories: tuple[Node, ...],
        work: Callable[[], T],
        *,
        top: tuple[SetName, ...] = (),
        stored: Owner | None = None,
        undo: Callable[[T], None] | None = None,
        hold: Hold | None = None,
    ) -> T:
        """As :meth:`below`, for *work* that changes *directories*, and the names *top* of the mount's root; only one such
        call at a time has each of them. *stored* is whom a new set's files will belong to in the store; *hold* as for :meth:`on`."""
        of_set = self.set_key(directories[0]) if directories else 0
        keys = [*((ROOT_INODE, name) for name in top), *((directory.ino, b"") for directory in directories)]

        async def run() -> T:
            if top:
                await self._check_top_answers(top, stored)
            releases = await self.lock_all(keys)
            if hold is not None:
                releases.append(hold())
            return await self.gate.call(work, undo=undo, releases=releases, of_set=of_set)

        return await self.moved.again(directories, run)

    async def _check_top_answers(self, names: tuple[SetName, ...], stored: Owner | None) -> None:
        """While a change at the top hangs: StoreDown, soon, if it holds a directory of the store that these *names* need
        too. The kernel makes the changes of the mount's root wait for each other, so that a wait in each would add up;
        but sets of other users have nothing to do with it."""
        if not self.locks.is_overdue(ROOT_INODE):
            return
        await self.look_briefly(NAMES, self.store.names.look_up_nothing)
        owners = {stored} if stored is not None else set()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                owners.add((await self.read_entry(name)).stored)
        for owner in owners:
            await self.look_briefly((USERS, owner.uid), partial(self.store.names.look_up_nothing_of, owner))

    async def read_entry(self, name: SetName) -> SetEntry:
        """What a set's name says now."""
        return await self.look_briefly(NAMES, lambda: self.store.names.read(name))

    async def lock_set(self, top: Node) -> tuple[SetName, list[Release]]:
        """The locks of a set's name and of its inode. It may have another name by the time in which they are had."""
        while True:
            name = SetName(top.name)
            releases = await self.lock_all([(ROOT_INODE, name), (top.ino, b"")])
            if top.name == name:
                return name, releases
            for release in releases:
                release()

    async def lock_all(self, keys: Iterable[LockKey]) -> list[Release]:
        releases: list[Release] = []
        try:
            for ino, name in sorted(set(keys)):  # always in the same order
                releases.append(await self.locks.acquire(ino, name))
        except BaseException:
            for release in releases:
                release()
            raise
        return releases

    def set_key(self, node: Node) -> int:
        """What counts calls per set."""
        try:
            return 0 if node.is_root else node.top.ino
        except Stale:
            return 0

    def check_handles(self, caller: Caller) -> None:
        """Refuse one more open file (ENFILE) to a user who has his share, or to users when root needs the rest."""
        if caller.is_root:
            return
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self.handles) >= limit * 3 // 4 or self.handles.of(caller.uid) >= limit // 2:
            raise OSError(errno.ENFILE, "too many files are open on this mount")

    async def examine(self, node: Node) -> Found:
        """Stat and record as they are now. Stale if the file is gone, or another has its name."""
        if node.is_root:
            return await self.gate.look(lambda: self.store.door.examine(self.store.names.top))
        return await self.on(node, lambda target: self.store.door.examine(target, node.ino))

    # Owners

    def stored_as(self, owner: Owner | None) -> Owner:
        """The identity that the files of *owner* have in the store: root's and nobody's are the service account's."""
        return self.store.service if owner is None or owner.uid == ROOT.uid else owner

    @property
    def unit(self) -> int:
        """In bytes: what the store's file system gives out space in."""
        return self.store.door.unit

    def payer_of(self, node: Node) -> Uid:
        """Who is charged for *node*; of what has no name any more, who was when it was opened."""
        with contextlib.suppress(Stale):
            return self.stored_as(node.set_entry.owner).uid
        return node.was_charged_to if node.was_charged_to is not None else self.store.service.uid

    async def job_owner(self, name: SetName, caller: Caller) -> Owner | None:
        """The owner of the job that a batch set belongs to. None means unknown, also when nobody answers in time."""
        if not self.policy.is_batch(name):
            return None
        return await self.aside.ask(lambda: self.lookup.owner_of_set(name), caller.uid)


def _as_owner_or_root(work: Callable[[Target], T], target: Target) -> T:
    """A set whose files are just being chowned, on another mount too, may belong to its next owner already."""
    try:
        return work(target)
    except PermissionError:
        if not isinstance(target, Spot):
            raise
        return work(target.by(ROOT))
