"""What all calls of a mount share: the store, what the kernel knows, who this mount is, and how a call reaches a file.

State changes only in the event loop's thread. Everything read before an ``await`` may have changed after it
(docs/concurrency.md says what); store calls are given what they need and return what they found.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from ckfs.errors import BadHandle, Stale
from ckfs.fs.aside import Aside
from ckfs.fs.inodes import Handle, Handles, Inodes, Node
from ckfs.model import Caller, Owner, Role
from ckfs.names import FileHandle, SetName
from ckfs.policy.settings import Policy
from ckfs.store.door import Found, Target
from ckfs.store.gate import Gate, Release
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.locks import InodeLocks

log = logging.getLogger(__name__)

T = TypeVar("T")

_FOLLOWING_LOOKS = 50
_FOLLOWING_LOOK_S = 0.02


class OwnerLookup(Protocol):
    """Who owns the job of a batch set, and who a user is. Blocking; asked aside from the store's threads."""

    def owner_of_set(self, name: SetName) -> Owner | None:
        """The owner of the job that *name* belongs to; None if unknown."""

    def owner_named(self, name: str) -> Owner | None:
        """The user of that name or number; None if there is none."""

    def name_of(self, uid: int) -> str | None:
        """A user's name; None if there is none, or nobody knows in time."""


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
    inodes: Inodes = field(default_factory=Inodes)
    handles: Handles = field(default_factory=Handles)
    locks: InodeLocks = field(init=False)
    following: set[SetName] = field(default_factory=set)
    """Sets given away whose files have not all followed yet."""
    aside: Aside = field(default_factory=Aside)

    def __post_init__(self) -> None:
        self.locks = InodeLocks(self.op_timeout_s)

    # Reaching files

    def handle(self, number: FileHandle) -> Handle:
        try:
            return self.handles.get(number)
        except KeyError:
            raise BadHandle("no such handle") from None

    async def on(
        self, node: Node, work: Callable[[Target], T], *, locked: bool = False, by_name: bool = False
    ) -> T:
        """Run *work* on the file that *node* stands for: by an open descriptor if there is one, else by its name.

        *locked* keeps other locked calls on the same inode out, until the store call is really over. *by_name* uses no
        open descriptor, since that may not be open for what *work* does.
        """
        try:
            return await self._on(node, work, locked=locked, by_name=by_name)
        except (Stale, FileNotFoundError, PermissionError):
            if not await self._reachable_again(node):
                raise
            return await self._on(node, work, locked=locked, by_name=by_name)

    async def _on(self, node: Node, work: Callable[[Target], T], *, locked: bool, by_name: bool) -> T:
        releases: list[Release] = []
        try:
            if locked:
                releases.append(await self.locks.acquire(node.ino))
            target = node.spot if by_name else self.target(node, releases)
        except BaseException:
            for release in releases:
                release()
            raise
        return await self.gate.call(lambda: work(target), releases=releases, of_set=self.set_key(node))

    def target(self, node: Node, releases: list[Release]) -> Target:
        """How to reach *node*: an open descriptor, pinned in *releases*, or its name."""
        if node.is_root:
            return self.store.names.top
        for handle in node.handles:
            releases.append(handle.pin())
            return handle.file
        return node.spot

    async def below(self, directory: Node, work: Callable[[], T]) -> T:
        """Run *work*, which computes spots inside *directory* when called; again if it has moved meanwhile."""
        return await self._again_if_moved(
            (directory,), lambda: self.gate.call(work, of_set=self.set_key(directory))
        )

    async def opening(self, node: Node, work: Callable[[], T], *, undo: Callable[[T], None]) -> T:
        """As :meth:`below`, for *work* that opens *node*; *undo* closes what came too late."""
        return await self._again_if_moved(
            (node,), lambda: self.gate.call(work, undo=undo, of_set=self.set_key(node))
        )

    async def change(
        self, directories: tuple[Node, ...], work: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        """As :meth:`below`, for *work* that changes *directories*; only one such call at a time has each of them."""

        async def run() -> T:
            releases = await self._lock_all(directories)
            return await self.gate.call(
                work, undo=undo, releases=releases, of_set=self.set_key(directories[0])
            )

        return await self._again_if_moved(directories, run)

    async def _lock_all(self, directories: tuple[Node, ...]) -> list[Release]:
        releases: list[Release] = []
        try:
            for ino in sorted({directory.ino for directory in directories}):  # always in the same order
                releases.append(await self.locks.acquire(ino))  # noqa: PERF401 - what was got is given back on failure
        except BaseException:
            for release in releases:
                release()
            raise
        return releases

    async def _again_if_moved(self, directories: tuple[Node, ...], run: Callable[[], Awaitable[T]]) -> T:
        try:
            return await run()
        except (Stale, PermissionError):
            found = [await self._reachable_again(directory) for directory in directories]
            if not any(found):
                raise
            return await run()

    async def _reachable_again(self, node: Node) -> bool:
        """Whether trying once more may help: the set has moved, or has changed hands meanwhile."""
        if node.is_root:
            return False
        with contextlib.suppress(Stale):
            if await self.has_changed_hands(SetName(node.top.name)):
                await self.find_again(node)
                return True
        return await self.find_again(node)

    async def has_changed_hands(self, name: SetName) -> bool:
        """Wait, for a while, until the files of a set that is just being given away have followed; False if it is not."""
        for waited in range(_FOLLOWING_LOOKS):
            try:
                entry = await self.gate.call(lambda: self.store.names.read(name))
            except OSError:
                return False
            if not entry.is_followed:
                return waited > 0
            await trio.sleep(_FOLLOWING_LOOK_S)
        return False

    async def find_again(self, node: Node) -> bool:
        """Whether another mount has moved the set that *node* is in, or *node* within it; then it is known where to."""
        if node.is_root:
            return False
        try:
            top = node.top
            entry = await self.gate.call(lambda: self.store.names.read(SetName(top.name)))
            if top.entry is None or entry.ino != top.entry.ino:
                return False
            if entry != top.entry:
                top.entry = entry
                return True
            return node is not top and await self._find_below(top, node)
        except (Stale, OSError):
            return False

    async def _find_below(self, top: Node, node: Node) -> bool:
        spot = top.spot
        path = await self.gate.call(lambda: self.store.door.find_below(spot, node.ino), of_set=top.ino)
        parent = top
        for name, ino in path:
            inner = node if ino == node.ino else self.inodes.known(ino) or Node(ino, parent, name)
            inner.parent, inner.name, inner.entry = parent, name, None
            parent = inner
        return bool(path)

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
            return await self.gate.call(lambda: self.store.door.examine(self.store.names.top))
        return await self.on(node, lambda target: self.store.door.examine(target, node.ino))

    # Owners

    def stored_as(self, owner: Owner | None) -> Owner:
        """The identity that the files of *owner* have in the store: root's and nobody's are the service account's."""
        return self.store.service if owner is None or owner.uid == ROOT.uid else owner

    async def job_owner(self, name: SetName, caller: Caller) -> Owner | None:
        """The owner of the job that a batch set belongs to. None means unknown, also when nobody answers in time."""
        if not self.policy.is_batch(name):
            return None
        return await self.aside.ask(lambda: self.lookup.owner_of_set(name), caller.uid)
