"""Directories: opened, read in pieces of any size, synced."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.errors import Stale
from ckfs.fs.closing import close_soon
from ckfs.fs.core import Core
from ckfs.fs.given import Given
from ckfs.fs.inodes import Handle, Node
from ckfs.fs.sets import Sets
from ckfs.model import Caller
from ckfs.names import FileHandle, Inode, SetName
from ckfs.store.entries import SetEntry
from ckfs.store.identity import ROOT
from ckfs.store.realms import Arrangement
from ckfs.store.spots import Found, OpenFile

Emit = Callable[[bytes, Found, int], bool]
"""Takes a name, what it is, and the offset after it; False when there is no room for it."""

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class _Item:
    name: bytes
    found: Found
    next_offset: int
    entry: SetEntry | None


class DirectoryHandle(Handle):
    """An open directory, with what was read of it and not yet asked for."""

    __slots__ = ("ahead", "directories", "given", "items", "position", "seek")

    def __init__(self, node: Node, file: OpenFile, caller: Caller) -> None:
        super().__init__(node, file, caller, writable=False)
        self.position = 0
        """The offset up to which the kernel has been answered."""
        self.items: list[_Item] = []
        self.ahead: list[tuple[bytes, int]] = []
        """Names read from the store, not looked at yet."""
        self.seek: int | None = None
        """Where the store's directory is to be read next, if not where it stands."""
        self.given = Given()
        self.directories = 1
        """How many directories of the store the descriptor has led to, one after the other."""

    def go_to(self, offset: int) -> None:
        """Stale if nobody knows any more where that is."""
        if offset == 0:
            self.given = Given()
        self.seek = self.given.go_to(offset)
        self.items, self.ahead, self.position = [], [], offset

    def reopened(self, *, is_other: bool) -> None:
        self.directories += 1
        self.position = -1  # the next listing seeks
        if is_other:
            self.given.directory_is_other()


@dataclass(frozen=True, slots=True)
class Listing:
    core: Core
    sets: Sets

    async def opendir(self, ino: Inode, caller: Caller) -> FileHandle:
        node = self.core.inodes.get(ino)
        self.core.check_handles(caller)
        store = self.core.store

        def work() -> OpenFile:
            if node.is_root:
                return OpenFile(store.names.open_listing())
            return store.door.open(node.spot, os.O_RDONLY | os.O_DIRECTORY, ino)

        file = await self.core.opening(node, work, undo=lambda opened: os.close(opened.fd))
        handle = DirectoryHandle(node, file, caller)
        node.with_handle(handle)
        return self.core.handles.add(handle)

    async def readdir(self, number: FileHandle, offset: int, emit: Emit) -> None:
        """Give entries from *offset* on to *emit* until it has enough, or the directory ends.

        Offsets are the store's own, so that entries that come and go meanwhile are neither skipped nor repeated; nor are they
        where the set is copied to a new owner meanwhile.
        """
        handle = self.core.handle(number)
        assert isinstance(handle, DirectoryHandle)
        emitted = False
        while await self._has_items(handle, offset):
            while handle.items:
                item = handle.items[0]
                if not self._emit(handle.node, item, emit):
                    return
                emitted = True
                handle.items.pop(0)
                handle.given.add(item.name, item.next_offset)
                handle.position = offset = item.next_offset
            if emitted and not handle.ahead:
                return  # a piece is enough for one answer

    def _emit(self, directory: Node, item: _Item, emit: Emit) -> bool:
        if not emit(item.name, item.found, item.next_offset):
            return False
        if item.name not in (b".", b".."):
            node = self.core.inodes.seen(item.found.record.ino, directory, item.name, item.entry)
            self.core.inodes.looked_up(node)
        return True

    async def _has_items(self, handle: DirectoryHandle, offset: int) -> bool:
        """Look at some more entries from *offset* on, unless some are there yet; False at the end of the directory."""
        while True:
            if offset != handle.position:
                handle.go_to(offset)
            if handle.items:
                return True
            try:
                if await self._read_on(handle, offset):
                    continue
                was_copied = self._may_be_copied and await self.sets.was_copied(handle.node, is_gone=False)
            except (Stale, FileNotFoundError):  # what is left of a directory that is removed
                if not await self.sets.was_copied(handle.node):
                    raise
                continue
            if not was_copied:
                return False

    async def _read_on(self, handle: DirectoryHandle, offset: int) -> bool:
        """False at the end of the directory; and True, without any items, where it has become another one meanwhile."""
        directories, seek, ahead, given = handle.directories, handle.seek, handle.ahead, handle.given

        def work() -> tuple[list[_Item], list[tuple[bytes, int]]] | None:
            entries = ahead or self.core.store.door.entries_from(handle.file, seek)
            new = [entry for entry in entries[:_AT_ONCE] if not given.has(entry[0])]
            return (self._examine(handle, new), entries[_AT_ONCE:]) if entries else None

        handle.position = -1  # if this fails, the next try seeks
        read = await self.core.gate.look(
            work, releases=(handle.pin(),), of_set=self.core.set_key(handle.node)
        )
        if handle.directories != directories:
            return True
        handle.position, handle.seek = offset, None
        handle.items, handle.ahead = read or ([], [])
        return read is not None

    @property
    def _may_be_copied(self) -> bool:
        """Whether sets that are given away may be copied. Where they are not it costs nothing to ask that of no set."""
        store = self.core.store
        return store.service.uid != ROOT.uid or store.arrangement is Arrangement.REALMS

    def _examine(self, handle: DirectoryHandle, entries: list[tuple[bytes, int]]) -> list[_Item]:
        items = (self._item(handle, name, next_offset) for name, next_offset in entries)
        return [item for item in items if item is not None]

    def _item(self, handle: DirectoryHandle, name: bytes, next_offset: int) -> _Item | None:
        store, node = self.core.store, handle.node
        try:
            if name in (b".", b".."):
                return _Item(name, self._itself(handle, name), next_offset, None)
            if node.is_root:
                entry, found = store.names.look(SetName(name))
                return _Item(name, found, next_offset, entry)
            return _Item(name, store.door.examine_entry(handle.file, name), next_offset, None)
        except (FileNotFoundError, Stale):
            return None  # gone meanwhile; any other failure is the caller's to see

    def _itself(self, handle: DirectoryHandle, name: bytes) -> Found:
        """The directory as an entry of its own; of ``..`` the kernel takes nothing but the number."""
        found = self.core.store.door.examine(handle.file)
        parent = handle.node.parent
        ino = parent.ino if name == b".." and parent is not None else handle.node.ino
        return Found(found.stat, found.record.with_(ino=ino))

    async def releasedir(self, number: FileHandle) -> None:
        handle = self.core.handles.remove(number)
        handle.node.without_handle(handle)
        self.core.inodes.drop_unused(handle.node)
        handle.close_when_unused(lambda: close_soon(handle.fd))

    async def fsyncdir(self, number: FileHandle, *, data_only: bool) -> None:
        handle = self.core.handle(number)
        sync = os.fdatasync if data_only else os.fsync
        await self.core.gate.transfer(lambda: sync(handle.fd), releases=(handle.pin(),))
