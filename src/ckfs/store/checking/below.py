"""What must hold of every file below a place, and of what lies in the trash."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.model import Owner, Record
from ckfs.names import Inode, SetName
from ckfs.store.checking import mending, records
from ckfs.store.checking.areas import Area
from ckfs.store.checking.findings import Finding, Kind, Mend, Suspect
from ckfs.store.checking.records import Trouble
from ckfs.store.checking.walking import Seen, Unread, is_usable, look, owner_of, walk
from ckfs.store.spots import Spot


@dataclass(frozen=True, slots=True)
class Tree:
    """A place, or an item of the trash: *components* of the *area* lead to it, and *stored* is whose its files must be.

    *stored* None: they are just changing hands. *ino* is the number that the set's name says, if it has one.
    """

    area: Area
    components: tuple[bytes, ...]
    stored: Owner | None
    any_group: bool = False
    name: SetName | None = None
    ino: Inode | None = None

    def is_top(self, seen: Seen) -> bool:
        return len(seen.trail) == 1

    def spot(self, seen: Seen, owner: Owner) -> Spot:
        """Where *seen* lies, as *owner* reaches it."""
        components = (*self.components[:-1], *seen.trail[1:], seen.name)
        return Spot(owner, components, volume=self.area.volume)


def walk_tree(tree: Tree) -> Iterator[Seen | Unread]:
    *above, name = tree.components
    try:
        with tree.area.root() as root, root.inside(*above) as directory:
            yield from walk(directory, name, tree.area.path(*above))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield Unread(tree.area.path(*tree.components), 0, error)


def troubles(seen: Seen, tree: Tree, across: set[int]) -> Iterator[Suspect]:
    """What is wrong with a file, in the order in which it is to be mended. *across*: files with links of several users."""
    if not (seen.is_regular or seen.is_directory):
        yield Suspect(Finding(Kind.SPECIAL, seen.path))
        return
    is_said = False
    if (owner := _other_owner(seen, tree)) is not None:
        is_said = True
        detail = f"but to {seen.status.st_uid}:{seen.status.st_gid}"
        if seen.number in across:
            yield Suspect(Finding(Kind.LINKED_ACROSS, seen.path, detail))
        else:
            yield Suspect(Finding(Kind.OWNER, seen.path, detail), _giving(seen, owner))
    if not is_usable(seen.status):
        is_said = True
        detail = f"{stat.S_IMODE(seen.status.st_mode):04o}"
        yield Suspect(Finding(Kind.MODE, seen.path, detail), _opening(seen))
    if seen.refused is not None:  # until it was mended, in this moment
        with contextlib.suppress(OSError):
            seen = look(seen.directory, seen.name, seen.trail)
    if seen.refused is not None:
        if not is_said:
            yield Suspect(Finding(Kind.UNREADABLE, seen.path, seen.refused.strerror or ""))
        return
    known = records.reading(seen.raw, seen.status)
    if known is Trouble.NEWER:
        yield Suspect(Finding(Kind.RECORD_NEWER, seen.path))
    elif isinstance(known, Trouble):
        kind = Kind.RECORD_MISSING if known is Trouble.MISSING else Kind.RECORD_DAMAGED
        yield Suspect(Finding(kind, seen.path), _recording(seen, tree))
    elif stat.S_ISLNK(known.mode) and seen.status.st_size == 0:
        yield Suspect(Finding(Kind.LINK_EMPTY, seen.path))


def _other_owner(seen: Seen, tree: Tree) -> Owner | None:
    """Whom it must be given to; None if it is his. A file with names in sets of several groups can only have one of these."""
    status, stored = seen.status, tree.stored
    if stored is None:
        return None
    any_group = tree.any_group or (seen.is_regular and status.st_nlink > 1)
    if status.st_uid == stored.uid and (any_group or status.st_gid == stored.gid):
        return None
    return stored


def _giving(seen: Seen, owner: Owner) -> Mend:
    def give() -> str:
        mending.give(seen, owner)
        return f"given to {owner.uid}:{owner.gid}"

    return give


def _opening(seen: Seen) -> Mend:
    def open_up() -> str:
        mending.open_up(seen)
        return Kind.MODE.mending

    return open_up


def _recording(seen: Seen, tree: Tree) -> Mend:
    """A set's own file or directory keeps the number that its name says."""

    def put() -> str:
        owner = tree.stored or owner_of(seen.status)
        mending.put_record(seen, records.made_up(seen.status, owner, tree.ino if tree.is_top(seen) else None))
        return Kind.RECORD_MISSING.mending

    return put


def number_of(seen: Seen) -> Inode | None:
    """Its own inode number, if it can be read."""
    known = records.reading(seen.raw, seen.status) if seen.is_regular or seen.is_directory else None
    return known.ino if isinstance(known, Record) else None
