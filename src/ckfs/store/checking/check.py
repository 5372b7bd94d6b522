"""One run of fsck: what is looked at in which order, and twice before it counts.

Others may be at work on the store: a set's place is there before its name, a file before its record. So whatever looks
wrong is looked at again after a pause, and counts only if it is still wrong. Everything is looked at as a whole first, then
whatever was wrong again, one set after the other, so that what is kept in memory meanwhile is numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field

from ckfs.errors import StoreUnusable
from ckfs.names import Inode, MountId
from ckfs.policy import settings
from ckfs.policy.settings import Policy
from ckfs.store import layout
from ckfs.store.checking import leftovers, registry, shared, top
from ckfs.store.checking.areas import Area, areas
from ckfs.store.checking.below import Tree, number_of, troubles, walk_tree
from ckfs.store.checking.findings import NUMBERS, OF_RECORDS, Finding, Kind, Suspect, settled
from ckfs.store.checking.naming import Naming
from ckfs.store.checking.numbers import Numbers
from ckfs.store.checking.registry import HasDied
from ckfs.store.checking.survey import key_of, survey
from ckfs.store.checking.walking import Seen, Unread
from ckfs.store.entries import USERS
from ckfs.store.layout import Store

Progress = Callable[[int, int], None]
"""Told how many sets of how many have been looked at."""

_MASK = (1 << 64) - 1
_MOST_ROUNDS = 20


def check(
    path: str, *, repair: bool, pause: Callable[[], None], progress: Progress, has_died: HasDied
) -> Iterator[Finding]:
    """Look at all of the store at *path*, and tell each finding once, after what was done about it.

    Without *repair* nothing is changed, not even by looking. Raises StoreUnusable, NotPermitted.
    """
    layout.check_format(path)
    keeper = top.keeper_of(path)
    unopened = False
    for suspect in top.missing(path, keeper):
        finding = settled(suspect, repair=repair)
        if finding is not None:
            unopened = unopened or finding.is_left
            yield finding
    yield from _each(top.wrong(path, keeper), repair=repair)
    if unopened:
        return
    store = layout.open_store(path, keeper, read_only=not repair)
    try:
        yield from _Run(store, repair, pause, progress, has_died).all()
    finally:
        store.close()


def _each(suspects: Iterable[Suspect], *, repair: bool) -> Iterator[Finding]:
    for suspect in suspects:
        finding = settled(suspect, repair=repair)
        if finding is not None:
            yield finding


@dataclass(slots=True)
class _Run:
    store: Store
    repair: bool
    pause: Callable[[], None]
    progress: Progress
    has_died: HasDied
    seen_wrong: Numbers = field(default_factory=Numbers)
    """Of what seemed wrong at the first look: the store's inode number and the kind in one."""
    numbers: Numbers = field(default_factory=Numbers)
    """ckfs's inode number of each file, with the store's."""
    shared: set[Inode] = field(default_factory=set)
    """Numbers that seem to be those of several files."""
    users_of_links: dict[int, int] = field(default_factory=dict)
    """Of files with several links, by the store's inode numbers."""
    across: set[int] = field(default_factory=set)
    """Those that have links of several users."""

    policy: Policy = field(init=False)

    def all(self) -> Iterator[Finding]:
        yield from _each(top.policy(self.store), repair=self.repair)
        self.policy = self._policy()
        yield from self._confirmed(lambda: registry.mounts(self.store, self.has_died))
        naming = yield from self._names()
        yield from self._confirmed(lambda: self._in_each(leftovers.trash))
        mended = False
        for finding in self._below_and_shared(naming):
            mended = mended or bool(finding.done)
            yield finding
        if mended:  # what has a new record has a number that a name of it may not say
            yield from self._names()
        yield from self._confirmed(lambda: self._in_each(leftovers.staging))

    def _in_each(self, look: Callable[[Area], Iterable[Suspect]]) -> Iterator[Suspect]:
        for area in areas(self.store):
            yield from look(area)

    def _confirmed(self, look: Callable[[], Iterable[Suspect]]) -> Iterator[Finding]:
        """What *look* finds twice."""
        before = {suspect.finding.key for suspect in look()}
        if before:
            self.pause()
            again = [suspect for suspect in look() if suspect.finding.key in before]
            yield from _each(again, repair=self.repair)

    # Names and places

    def _names(self) -> Generator[Finding, None, Naming]:
        """Again until nothing more can be mended: what is mended may show what else is wrong. Returns the last look."""
        told: set[tuple[Kind, bytes]] = set()
        naming, suspects = self._judged()
        for _ in range(_MOST_ROUNDS):
            before = {suspect.finding.key for suspect in suspects}
            if before <= told:
                break
            self.pause()
            naming, suspects = self._judged()
            mended = False
            for suspect in suspects:
                if suspect.finding.key in told or suspect.finding.key not in before:
                    continue
                finding = settled(suspect, repair=self.repair)
                if finding is None:
                    continue
                mended = mended or bool(finding.done)
                if not finding.done:
                    told.add(finding.key)
                yield finding
            if not mended:
                break
            naming, suspects = self._judged()
        return naming

    def _judged(self) -> tuple[Naming, list[Suspect]]:
        naming = Naming(self.store, self.policy, survey(self.store))
        return naming, list(naming.suspects())

    def _policy(self) -> Policy:
        try:
            return self.store.read_policy()
        except StoreUnusable:  # which is a finding
            return settings.parse(settings.DEFAULT_TEXT)

    # What lies below

    def _trees(self, naming: Naming) -> Iterator[Tree]:
        for key, name in naming.found.held.items():
            with contextlib.suppress(OSError):
                entry = self.store.names.read(name)
                if key_of(entry) == key:  # else it has just been renamed
                    stored = None if entry.is_followed else entry.stored
                    area = naming.found.areas[entry.volume]
                    yield Tree(area, entry.spot.components, stored, name=name, ino=entry.ino)
        for orphan in naming.found.orphans:
            if not orphan.is_special and not naming.is_of_handover(orphan):
                yield Tree(orphan.area, (USERS, b"%d" % orphan.uid, orphan.place), orphan.stored)
        for area in areas(self.store):
            yield from leftovers.trees_in_trash(area)

    def _below_and_shared(self, naming: Naming) -> Iterator[Finding]:
        yield from self._below(naming)
        if self.shared:
            self.pause()
            yield from shared.findings(
                self.store, lambda: self._trees(naming), self.shared, repair=self.repair
            )

    def _below(self, naming: Naming) -> Iterator[Finding]:
        wrong: list[Tree] = []
        count = len(naming.found.held)
        for done, tree in enumerate(self._trees(naming)):
            self.progress(min(done, count), count)
            if self._seems_wrong(tree):
                wrong.append(tree)
        self.progress(count, count)
        if wrong:
            self.pause()
        for tree in wrong:
            yield from self._look_again(tree)

    def _seems_wrong(self, tree: Tree) -> bool:
        seems_wrong = False
        for seen in walk_tree(tree):
            if isinstance(seen, Unread):
                self.seen_wrong.put(_key(seen.number, Kind.UNREADABLE))
                seems_wrong = True
                continue
            self._remember(seen, tree)
            if seen.refused is not None:  # shows when it has been mended
                for kind in OF_RECORDS:
                    self.seen_wrong.put(_key(seen.number, kind))
            for suspect in self._troubles(seen, tree):
                self.seen_wrong.put(_key(seen.number, suspect.finding.kind))
                seems_wrong = True
        return seems_wrong

    def _troubles(self, seen: Seen, tree: Tree) -> Iterator[Suspect]:
        yield from troubles(seen, tree, self.across)
        yield from registry.left_image(self.store, tree, seen, self.policy, self._is_gone)

    def _is_gone(self, mount: MountId) -> bool:
        return registry.is_gone(self.store, self.has_died, mount)

    def _remember(self, seen: Seen, tree: Tree) -> None:
        there = seen.number
        self._remember_number(number_of(seen), there)
        if seen.status.st_nlink == 1 or seen.is_directory or tree.stored is None:
            return
        if self.users_of_links.setdefault(there, tree.stored.uid) != tree.stored.uid:
            self.across.add(there)

    def _remember_number(self, ino: Inode | None, there: int) -> None:
        if ino is not None and self.numbers.put(ino, there) not in (None, there):
            self.shared.add(ino)

    def _look_again(self, tree: Tree) -> Iterator[Finding]:
        for seen in walk_tree(tree):
            if isinstance(seen, Unread):
                if _key(seen.number, Kind.UNREADABLE) in self.seen_wrong:
                    yield Finding(Kind.UNREADABLE, seen.path, seen.error.strerror or str(seen.error))
                continue
            for suspect in self._troubles(seen, tree):
                if _key(seen.number, suspect.finding.kind) in self.seen_wrong:
                    yield from _each([suspect], repair=self.repair)
                    if tree.is_top(seen):  # a new record has the number that the set's name says
                        self._remember_number(tree.ino, seen.number)


def _key(number: int, kind: Kind) -> int:
    """Never 0, and the same for a wrong owner whether or not there are other links."""
    kind = Kind.OWNER if kind is Kind.LINKED_ACROSS else kind
    return (number << 6 | NUMBERS[kind] + 1) & _MASK
