"""Several files with one inode number, as ``cp -a`` inside of a store leaves them: one keeps it, the others get new ones.

The one keeps it whose set's name says it; else, of those in sets before those in the trash, the one that was made first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from ckfs.errors import Stale
from ckfs.model import Record
from ckfs.names import Inode
from ckfs.store import syscalls
from ckfs.store.checking import mending, records
from ckfs.store.checking.below import Tree, number_of, walk_tree
from ckfs.store.checking.findings import Finding, Kind, Suspect, settled
from ckfs.store.checking.walking import Seen, Unread, reach
from ckfs.store.layout import Store
from ckfs.store.record import new_inode

Claim = tuple[int, int, int]
"""The smallest has the best right: rank, when it was made, the store's inode number."""


def findings(
    store: Store, trees: Callable[[], Iterable[Tree]], suspected: set[Inode], *, repair: bool
) -> Iterator[Finding]:
    """What of *suspected* is still the number of several files."""
    claims: dict[Inode, dict[int, Claim]] = {}
    concerned: list[Tree] = []
    for tree in trees():
        known = len(concerned)
        for seen, ino in _numbered(tree, suspected):
            claims.setdefault(ino, {})[seen.number] = _claim(seen, tree, ino)
            if len(concerned) == known:
                concerned.append(tree)
    keeps = {ino: min(rivals.values())[2] for ino, rivals in claims.items() if len(rivals) > 1}
    for tree in concerned:
        for seen, ino in _numbered(tree, set(keeps)):
            if seen.number == keeps[ino]:
                continue
            suspect = Suspect(
                Finding(Kind.NUMBER_SHARED, seen.path, f"{ino:x}"), _renumbering(store, seen, tree)
            )
            finding = settled(suspect, repair=repair)
            if finding is not None:
                yield finding


def _numbered(tree: Tree, wanted: set[Inode]) -> Iterator[tuple[Seen, Inode]]:
    for seen in walk_tree(tree):
        ino = None if isinstance(seen, Unread) else number_of(seen)
        if ino in wanted:
            assert isinstance(seen, Seen)
            assert ino is not None
            yield seen, ino


def _claim(seen: Seen, tree: Tree, ino: Inode) -> Claim:
    is_named = tree.is_top(seen) and tree.ino == ino
    rank = 0 if is_named else 2 if tree.area.arrangement.is_trash(tree.components) else 1
    directory = seen.directory
    born = reach(directory.owner, lambda: syscalls.birth_time_ns(directory.fd, seen.name))
    return rank, born or seen.status.st_ctime_ns, seen.number


def _renumbering(store: Store, seen: Seen, tree: Tree) -> Callable[[], str]:
    def renumber() -> str:
        known = records.reading(seen.raw, seen.status)
        if not isinstance(known, Record):
            raise Stale("it has no record any more")
        new = mending.put_record(seen, known.with_(ino=new_inode()))
        if tree.is_top(seen) and tree.name is not None:
            said = store.names.read(tree.name)
            store.names.change(tree.name, said, dataclasses.replace(said, ino=new.ino))
        return f"has the number {new.ino:x} now"

    return renumber
