"""The inodes that the kernel knows of this mount, and what is open of each.

All of it belongs to the event loop's thread. A node says where a file *was* last seen; whoever reaches it there checks
that it is still that file (another mount may have moved it).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import trio

from ckfs.errors import BadHandle, Stale
from ckfs.fs.hashed import Hashed
from ckfs.fs.lateness import Taken
from ckfs.fs.streams import Stream
from ckfs.model import Caller, Owner
from ckfs.names import ROOT_INODE, FileHandle, Inode, MountId, SetName, Uid, shown
from ckfs.owners.processes import Process
from ckfs.store.entries import SetEntry
from ckfs.store.gate import Release
from ckfs.store.spots import HOME, Found, OpenFile, Spot, VolumeId
from ckfs.store.syscalls import FileId

_DEEPEST = 10_000


class Through(enum.Enum):
    """Which way the reads and writes of an open file go."""

    UNDECIDED = "it is just being opened"
    DAEMON = "to the daemon"
    KERNEL = "to the store, by the kernel"
    DAEMON_BESIDE = "to the daemon, while the kernel has the file by itself for others"


@dataclass(slots=True)
class Backing:
    """A file of the store that the kernel uses by itself for an inode, by its *number*; *count* open files carry that.

    *leads_to* is which file that is; None once it is no more than a copy of what the inode has.
    """

    number: int
    leads_to: FileId | None
    count: int = 1


def busy() -> OSError:
    return OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))


class Handle:
    """An open file or directory of a mount."""

    __slots__ = (
        "_closing",
        "_is_closed",
        "_pins",
        "admitted",
        "appends",
        "direct",
        "file",
        "had",
        "has_read",
        "has_written",
        "is_near",
        "leads_to",
        "marked",
        "mount",
        "node",
        "opener",
        "process",
        "reading",
        "settled",
        "stream",
        "through",
        "writable",
        "wrote",
    )

    def __init__(self, node: Node, file: OpenFile, opener: Caller, *, writable: bool) -> None:
        self.node = node
        self.file = file
        self.opener = opener
        self.writable = writable
        self.appends = False
        """The descriptor in the store is open with O_APPEND, whatever the caller has made of his."""
        self.direct = False
        """The kernel keeps no pages for it."""
        self.through = Through.UNDECIDED
        self.is_near = False
        """It lies on this host's own disks or in its memory: the event loop may ask of it."""
        self.leads_to: FileId | None = None
        """The file of the store that it was last known to lead to; None if that is not known, or of no matter."""
        self.reading = trio.Lock()
        self.process: Process | None = None
        """Who writes through it, if that is known."""
        self.settled = False
        """Closing a descriptor of it made its image complete; others may go on to write through it."""
        self.stream = Stream()
        self.had: tuple[int, int] | None = None
        """Size and time of change when it was opened, if something may be stored through a mapping of it that nobody sees; or when set-id
        bits were given to what is written unseen."""
        self.has_read = False
        """Something was read through it."""
        self.has_written = False
        """Something was ever written through it."""
        self.wrote = False
        """Something was written through it since its image was last settled."""
        self.admitted = False
        """It may write although the store has no more than its reserve: see :mod:`ckfs.fs.reserve`."""
        self.marked = False
        """The record says that the image is being written, and carries no set-id bits of before."""
        self.mount: MountId | None = None
        """Under which registration of this mount the image was marked since it was last settled."""
        self._pins = 0
        self._closing: Release | None = None
        self._is_closed = False

    @property
    def fd(self) -> int:
        return self.file.fd

    @property
    def is_written_unseen(self) -> bool:
        """The kernel writes by itself what is written through it."""
        return self.writable and self.through is Through.KERNEL

    @property
    def is_pinned(self) -> bool:
        """A call uses the descriptor; it may be opening another one of the same file."""
        return self._pins > 0

    def pin(self) -> Release:
        """Keep the descriptor open until the returned call is made. BadHandle if it is closed: its number may be another file's."""
        if self._is_closed:
            raise BadHandle("the file has been closed meanwhile")
        self._pins += 1
        return self._unpin

    def _unpin(self) -> None:
        self._pins -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._pins == 0 and self._closing is not None and not self._is_closed:
            self._is_closed = True
            self._closing()

    def reopened(self, *, is_other: bool) -> None:
        """The descriptor was opened anew, and leads to a copy of the file now if *is_other*."""

    def close_when_unused(self, close: Release) -> None:
        """Call *close* as soon as no call uses the descriptor any more."""
        self._closing = close
        self._close_if_unused()


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a set: the names that lead to it from the set's top, none for the top itself."""

    set_name: SetName
    below: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        return self.below[-1] if self.below else self.set_name

    def inside(self, name: bytes) -> Place:
        return Place(self.set_name, (*self.below, name))

    def __str__(self) -> str:
        return shown(b"/".join((self.set_name, *self.below)))


@dataclass(frozen=True, slots=True)
class Unwritten:
    """What a write left out of what it was given, and why. Who called write(2) learns of it by the number of bytes; when the kernel
    writes back what was stored in a shared mapping, it takes all for written."""

    begin: int
    end: int
    errno: int

    def after(self, begin: int, end: int) -> Unwritten | None:
        """What is left of it when all from *begin* to *end* was written."""
        if not begin <= self.begin < end:
            return self
        return replace(self, begin=end) if end < self.end else None


class Node:
    """An inode that the kernel knows. *entry* is a set's, for its top; None below it and for the mount's root."""

    __slots__ = (
        "backing",
        "entry",
        "failed",
        "handles",
        "hashed",
        "ino",
        "killed",
        "lookups",
        "name",
        "parent",
        "reached",
        "removed",
        "renewals",
        "renewing",
        "taken",
        "truncated",
        "truncating",
        "unsettled",
        "unsynced",
        "unwritten",
        "was_charged_to",
    )

    def __init__(self, ino: Inode, parent: Node | None, name: bytes, entry: SetEntry | None = None) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.entry = entry
        self.reached = entry
        """Of a set's top: where what is open here of the set was opened."""
        self.was_charged_to: Uid | None = None
        """Who was charged for it when it was opened last."""
        self.lookups = 0
        self.handles: tuple[Handle, ...] = ()
        self.failed = False
        """Something that was written on this mount may be lost: the image is partial until it is truncated."""
        self.killed = False
        """A writer was killed since the image was last truncated."""
        self.unsynced = False
        """Something was written on this mount since the last fsync began: times alone may not tell."""
        self.taken = Taken()
        self.backing: Backing | None = None
        """What the kernel has of it by itself."""
        self.hashed: Hashed | None = None
        """What is known of its content from making and writing it here; None for nothing."""
        self.unwritten: Unwritten | None = None
        """The end of a write, for which there was no room."""
        self.unsettled = False
        """Its last writer has ended, but the store could not be told, or does not know of it: that is tried again."""
        self.truncating = 0
        """How many are opening it to overwrite it."""
        self.renewals = 0
        """How often another file took the place of it in the store."""
        self.renewing: trio.Event | None = None
        """While that happens: set when it is done."""
        self.truncated: trio.Event | None = None
        """Set when none is any more."""
        self.removed: Found | None = None
        """What it was when its last name went; some process may still stand in it, or hold it by O_PATH."""

    @property
    def is_root(self) -> bool:
        return self.ino == ROOT_INODE

    @contextlib.contextmanager
    def being_truncated(self) -> Iterator[None]:
        """Within the block somebody opens it to overwrite it."""
        self.truncating += 1
        try:
            yield
        finally:
            self.truncating -= 1
            if not self.truncating and self.truncated is not None:
                self.truncated.set()
                self.truncated = None

    @contextlib.contextmanager
    def being_renewed(self) -> Iterator[None]:
        """Within the block another file takes its place in the store, of the same number: who opens it now opens it once more."""
        self.renewing = done = trio.Event()
        try:
            yield
        finally:
            self.renewals += 1
            done.set()
            if self.renewing is done:
                self.renewing = None

    def check_access(self, access: int) -> None:
        """OSError (ETXTBSY) if it cannot be opened for *access* beside what is written unseen: what is open for both can be mapped, and
        nobody would see what is stored there."""
        if access == os.O_RDWR and any(handle.is_written_unseen for handle in self.handles):
            raise busy()

    def check_keeps_place(self) -> None:
        """OSError (ETXTBSY) if no other file of the store can take its place, since the kernel cannot be led there."""
        if self.backing is not None:
            raise busy()

    async def until_truncated(self) -> None:
        """Wait until nobody opens it to overwrite it."""
        while self.truncating:
            if self.truncated is None:
                self.truncated = trio.Event()
            await self.truncated.wait()

    @property
    def top(self) -> Node:
        """The top of the set that this is in. Stale for the root, and for what lost its name."""
        return self._climb()[0]

    @property
    def set_name(self) -> SetName:
        return SetName(self.top.name)

    @property
    def place(self) -> Place:
        """The set that this is in, and the way below it. Stale as for :attr:`top`."""
        top, below = self._climb()
        return Place(SetName(top.name), tuple(reversed(below)))

    @property
    def set_entry(self) -> SetEntry:
        entry = self.top.entry
        assert entry is not None
        return entry

    @property
    def entry_above(self) -> SetEntry | None:
        """What the name of the set says that this is in; None as :attr:`set_entry` is Stale."""
        node = self
        for _ in range(_DEEPEST):
            if node.entry is not None or node.parent is None:
                return node.entry
            node = node.parent
        return None

    @property
    def payer(self) -> Uid | None:
        """Who is charged with it, if that is not whom it belongs to in the store (:class:`Spot`)."""
        with contextlib.suppress(Stale):
            return None if self.is_root else self.set_entry.spot.payer
        return None

    @property
    def spot(self) -> Spot:
        """Where it was last seen. Stale if it has no name any more."""
        top, below = self._climb()
        assert top.entry is not None
        spot = top.entry.spot
        if not below:
            return spot
        assert self.parent is not None
        return spot.below(*reversed(below), within=self.parent.ino)

    def _climb(self) -> tuple[Node, list[bytes]]:
        """The set's top, and the names below it from here upwards."""
        below: list[bytes] = []
        node = self
        while node.entry is None:
            # Directories that other mounts moved may look like a ring from here, until they are looked up again.
            if node.parent is None or len(below) > _DEEPEST:
                raise Stale("the file has no name any more")
            below.append(node.name)
            node = node.parent
        return node, below

    def inside(self, name: bytes) -> Spot:
        """Where *name* in this directory lies."""
        return self.spot.below(name, within=self.ino)

    def with_handle(self, handle: Handle) -> None:
        self.handles = (*self.handles, handle)

    def without_handle(self, handle: Handle) -> None:
        self.handles = tuple(other for other in self.handles if other is not handle)


def place_of(node: Node) -> Place | None:
    """Where *node* is; None for the mount's root, and for what has no name any more."""
    with contextlib.suppress(Stale):
        return None if node.is_root else node.place
    return None


def stored_owner(node: Node) -> Owner | None:
    """Whose trash gives way first for what is written to *node*."""
    return node.set_entry.stored if place_of(node) is not None else None


def volume_of(node: Node) -> VolumeId:
    """Where *node* lies; home, too, for the mount's root, and for what has no name any more."""
    with contextlib.suppress(Stale):
        return HOME if node.is_root else node.set_entry.volume
    return HOME


class Inodes:
    """Nodes by number."""

    def __init__(self) -> None:
        self.root = Node(ROOT_INODE, None, b"")
        self._nodes: dict[Inode, Node] = {ROOT_INODE: self.root}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, ino: Inode) -> Node:
        """Stale if the kernel should not know it."""
        try:
            return self._nodes[ino]
        except KeyError:
            raise Stale("no such inode") from None

    def known(self, ino: Inode) -> Node | None:
        return self._nodes.get(ino)

    def seen(self, ino: Inode, parent: Node, name: bytes, entry: SetEntry | None = None) -> Node:
        """The node of a file that was just found under *name* in *parent*; *entry* if that is the top of a set."""
        node = self._nodes.get(ino)
        if node is None:
            node = self._nodes[ino] = Node(ino, parent, name, entry)
        elif node is not parent:
            node.parent, node.name, node.entry, node.removed = parent, name, entry, None
        return node

    def lost_name(self, found: Found) -> None:
        """One name of a file was removed; *found* is what the file was before."""
        node = self._nodes.get(found.record.ino)
        if node is not None and (found.record.is_directory or found.stat.st_nlink == 1):
            node.removed = replace(found, removed=True)

    def unsettled(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.unsettled]

    def looked_up(self, node: Node) -> None:
        """The kernel got one more reference."""
        node.lookups += 1

    def forget(self, ino: Inode, count: int) -> None:
        """The kernel dropped *count* references."""
        node = self._nodes.get(ino)
        if node is None or node.is_root:
            return
        node.lookups = max(0, node.lookups - count)
        self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        if node.lookups == 0 and not node.handles and not node.is_root and not node.unsettled:
            self._nodes.pop(node.ino, None)


class Handles:
    """Open handles by number, which is never used twice."""

    def __init__(self) -> None:
        self._handles: dict[FileHandle, Handle] = {}
        self._next = 1
        self._of: Counter[int] = Counter()

    def of(self, uid: int) -> int:
        """How many *uid* has open."""
        return self._of[uid]

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle) -> FileHandle:
        number = FileHandle(self._next)
        self._next += 1
        self._handles[number] = handle
        self._of[handle.opener.uid] += 1
        return number

    def get(self, number: FileHandle) -> Handle:
        return self._handles[number]

    def find(self, number: FileHandle) -> Handle | None:
        return self._handles.get(number)

    def all(self) -> Iterable[Handle]:
        return self._handles.values()

    def numbers(self) -> list[FileHandle]:
        return list(self._handles)

    def remove(self, number: FileHandle) -> Handle:
        handle = self._handles.pop(number)
        self._of[handle.opener.uid] -= 1
        if not self._of[handle.opener.uid]:
            del self._of[handle.opener.uid]
        return handle
