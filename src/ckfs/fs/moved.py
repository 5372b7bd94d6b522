"""Calls go to where a file is now: its set may have been moved, or given away, by another mount since it was looked up.

In the event loop's thread, as all of :mod:`ckfs.fs.core`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ckfs.errors import Stale
from ckfs.fs.inodes import Inodes, Node
from ckfs.names import Inode, SetName
from ckfs.store import walks
from ckfs.store.entries import SetEntry
from ckfs.store.gate import Gate
from ckfs.store.layout import Store

T = TypeVar("T")

NOT_THERE = (Stale, PermissionError)
GONE = (*NOT_THERE, FileNotFoundError)
"""What a file that was known to be there answers when its set has just moved."""
_TRIES = 2
"""How often a set may move, or change hands, under one call."""
_LONGEST_SEARCH = 0.25
"""The part of op_timeout that a search for a moved file may take: a large set on a slow store does not make it *down*."""
_FOLLOWING_LOOKS = 50
_FOLLOWING_LOOK_S = 0.02


class Moved:
    """What has moved under calls of one mount."""

    def __init__(self, store: Store, gate: Gate, inodes: Inodes, op_timeout_s: float) -> None:
        self._store = store
        self._gate = gate
        self._inodes = inodes
        self._op_timeout_s = op_timeout_s

    async def again(
        self,
        nodes: tuple[Node, ...],
        run: Callable[[], Awaitable[T]],
        failures: tuple[type[Exception], ...] = NOT_THERE,
    ) -> T:
        """What *run* returns, which is run again where it raises one of *failures* since a set of one of *nodes* has moved meanwhile."""
        for _ in range(_TRIES):
            tried = [_entry_of(node) for node in nodes]
            try:
                return await run()
            except failures:
                found = [
                    await self._reachable_again(node, entry) for node, entry in zip(nodes, tried, strict=True)
                ]
                if not any(found):
                    raise
        return await run()

    async def _reachable_again(self, node: Node, tried: SetEntry | None) -> bool:
        """Whether trying once more may help: the set has moved, or has changed hands, since *tried* was known of it.

        Another task may have noticed it first.
        """
        if node.is_root:
            return False
        with contextlib.suppress(Stale):
            if await self.has_changed_hands(SetName(node.top.name)):
                await self.find_again(node)
                return True
        return await self.find_again(node) or _entry_of(node) != tried

    async def has_changed_hands(self, name: SetName) -> bool:
        """Wait, for a while, until the files of a set that is just being given away have followed; False if it is not."""
        for waited in range(_FOLLOWING_LOOKS):
            try:
                entry = await self._gate.call(lambda: self._store.names.read(name))
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
            entry = await self._gate.call(lambda: self._store.names.read(SetName(top.name)))
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
        limit_s = self._op_timeout_s * _LONGEST_SEARCH

        def work() -> list[tuple[bytes, Inode]]:
            return walks.find(self._store.door, spot, node.ino, time.monotonic() + limit_s)

        path = await self._gate.call(work, of_set=top.ino)
        parent = top
        for name, ino in path:
            inner = node if ino == node.ino else self._inodes.known(ino) or Node(ino, parent, name)
            inner.parent, inner.name, inner.entry = parent, name, None
            parent = inner
        return bool(path)


def _entry_of(node: Node) -> SetEntry | None:
    """Of the set that *node* is in; None for the mount's root and for what has no name any more."""
    with contextlib.suppress(Stale):
        return None if node.is_root else node.top.entry
    return None
