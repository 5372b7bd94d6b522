"""Finding what was left behind in a store, and moving it to the trash. When something counts as left says
:mod:`ckfs.policy.leftovers`.

Everything is looked at again right before it is moved, by one rename: whoever dies on the way, or comes twice, leaves or finds
either of two states. Blocking; raises as the door does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ckfs.errors import Stale, Unreached
from ckfs.model import JobFate, Owner, State
from ckfs.names import Gid, Inode, SetName, Uid, shown
from ckfs.policy import leftovers
from ckfs.policy.leftovers import Kind, SetFacts
from ckfs.policy.settings import Policy
from ckfs.store import walks
from ckfs.store.entries import USERS, SetEntry
from ckfs.store.layout import Store
from ckfs.store.realms import Arrangement
from ckfs.store.record import new_inode
from ckfs.store.removed import ATTRIBUTE, Item, Note, decode
from ckfs.store.spots import Found, Spot, VolumeId

log = logging.getLogger(__name__)

PROGRAM = b"ckfs gc"
"""What the trash names as the program that removed something."""
_BEING_COPIED = (b"~copy", b"~old")
_UNFINISHED = b"file-"


class Writers(Protocol):
    """Who may be writing what, beyond what times say."""

    def is_live(self, spot: Spot, found: Found) -> bool:
        """Whether somebody may still be writing the image *found* at *spot*. Blocking."""


Where = tuple[VolumeId, tuple[bytes, ...]]
"""A volume, and the way to a place in it."""


def _where(place: Spot) -> Where:
    return place.volume, place.components


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something at *spot* that was left behind: all of *name*, or with *path* something in it. *name* is that of a set; of a
    place or an unfinished file the name in the store, under which it would come back as a set."""

    kind: Kind
    name: SetName
    path: bytes
    spot: Spot
    ino: Inode
    owner: Owner | None
    touched_ns: int
    size_bytes: int

    def __str__(self) -> str:
        return shown(b"/".join(filter(None, (self.name, self.path))))


@dataclass(frozen=True, slots=True)
class Look:
    """A batch set as it was found: its facts, and what is left behind in it."""

    facts: SetFacts
    top: Leftover
    """The set as a whole; the kind is for :func:`leftovers.of_set` to say."""
    temporaries: tuple[Leftover, ...]


class Leftovers:
    """*policy* as of the moment; *clock* gives ns since the epoch."""

    def __init__(
        self, store: Store, policy: Policy, writers: Writers, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._store = store
        self._policy = policy
        self._writers = writers
        self._clock = clock

    # In sets

    def sets(self) -> list[SetName]:
        """The batch sets that there are."""
        return [name for name in self._store.names.all() if self._policy.is_batch(name)]

    def look(self, name: SetName) -> Look | None:
        """Look at all of a set; None if it is gone, or no batch set."""
        if not self._policy.is_batch(name):
            return None
        try:
            entry, top = self._store.names.examine(name)
        except (FileNotFoundError, Stale, Unreached):
            return None
        now_ns = self._clock()
        of_top = _touched(top, now_ns)
        is_moving = self._is_moving(name, entry, top)
        whole = Leftover(Kind.JOB_GONE, name, b"", entry.spot, top.record.ino, entry.owner, of_top, 0)
        facts = SetFacts(name, entry.owner, of_top, leftovers.keeps_set(top.record), is_moving, False)
        temporaries = []
        for path, spot, found in self._all_in(entry, top):
            touched_ns = _touched(found, now_ns)
            is_live = self._is_live(spot, found)
            facts = dataclasses.replace(
                facts,
                touched_ns=max(facts.touched_ns, touched_ns),
                is_pinned=facts.is_pinned or leftovers.keeps_set(found.record),
                is_written=facts.is_written or is_live,
            )
            if found.record.is_regular:
                whole = dataclasses.replace(whole, size_bytes=whole.size_bytes + found.stat.st_size)
            if (
                path
                and b"/" not in path
                and not is_moving
                and not is_live
                and self._is_temporary(path, found)
            ):
                temporaries.append(
                    Leftover(
                        Kind.TEMPORARY,
                        name,
                        path,
                        spot,
                        found.record.ino,
                        entry.owner,
                        touched_ns,
                        found.stat.st_size,
                    )
                )
        whole = dataclasses.replace(whole, touched_ns=facts.touched_ns)
        return Look(facts, whole, tuple(temporaries))

    def _all_in(self, entry: SetEntry, top: Found) -> Iterator[tuple[bytes, Spot, Found]]:
        if not top.record.is_directory:
            yield b"", entry.spot, top
            return
        for path, found in walks.everything(self._store.door, entry.spot):
            within = top.record.ino if b"/" not in path else None
            yield path, entry.spot.below(*path.split(b"/"), within=within), found

    def _is_moving(self, name: SetName, entry: SetEntry, top: Found) -> bool:
        names = self._store.names
        return (
            entry.is_followed
            or entry.ino in names.copy_locks.locked()
            or (not top.record.is_directory and top.stat.st_nlink > 1)
            or bool(names.twins(name))
        )

    def _is_live(self, spot: Spot, found: Found) -> bool:
        is_torn = found.record.state in (State.WRITING, State.PARTIAL)
        return found.record.is_regular and is_torn and self._may_be_live(spot, found)

    def _may_be_live(self, spot: Spot, found: Found) -> bool:
        try:
            return self._writers.is_live(spot, found)
        except (FileNotFoundError, Stale):  # it is just being renamed, or removed: somebody is there
            return True

    def _is_temporary(self, name: bytes, found: Found) -> bool:
        now_ns = self._clock()
        touched_ns = _touched(found, now_ns)
        return found.stat.st_nlink == 1 and leftovers.is_left_temporary(
            self._policy, name, found.record, touched_ns, now_ns
        )

    def depends_on_job(self, look: Look) -> bool:
        return leftovers.depends_on_job(self._policy, look.facts, self._clock())

    def judge(self, look: Look, fate: JobFate) -> list[Leftover]:
        """What is left behind of a set: all of it, or some files in it."""
        kind = leftovers.of_set(self._policy, look.facts, fate, self._clock())
        return list(look.temporaries) if kind is None else [dataclasses.replace(look.top, kind=kind)]

    # Outside of sets

    def places(self) -> list[Leftover]:
        """Empty places that no name refers to: a mount died before it gave them their name."""
        known = self._known_places()
        if known is None:
            return []
        spots, inodes = known
        return [
            left
            for place in self._all_places()
            if _where(place) not in spots and (left := self._left_place(place, inodes)) is not None
        ]

    def _known_places(self) -> tuple[set[Where], set[Inode]] | None:
        """The places, and the inodes, that names refer to; None if one of them cannot be read: it may refer to anything."""
        spots, inodes = set(), set()
        for name in self._store.names.all():
            try:
                entry = self._store.names.read(name)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.info("places without a name are not looked for: set %s: %s", shown(name), error)
                return None
            spots.add(_where(entry.spot))
            inodes.add(entry.ino)
        return spots, inodes

    def _users(self, volume: VolumeId) -> Iterator[Spot]:
        """The directories of users' sets, each to be reached as its user."""
        door, top = self._store.door, Spot(self._store.service, (USERS,), volume=volume)
        for user in door.names_at(top):
            with contextlib.suppress(FileNotFoundError, Stale):
                status = door.status(top.below(user))
                if b"%d" % status.st_uid == user and stat.S_ISDIR(status.st_mode):
                    yield top.at(USERS, user, identity=Owner(Uid(status.st_uid), Gid(status.st_gid)))

    def _all_places(self) -> Iterator[Spot]:
        """In the store and all further ones that this host reaches."""
        for volume in self._store.volumes.ids():
            arrangement = self._store.arrangement.of(volume)
            with contextlib.suppress(Unreached):
                for directory in self._users(volume):
                    with contextlib.suppress(FileNotFoundError, Stale):
                        for name in self._store.door.names_at(directory):
                            if arrangement.is_place(name):
                                yield directory.below(name)

    def _left_place(self, place: Spot, inodes: set[Inode]) -> Leftover | None:
        name = place.components[-1]
        if name.endswith(_BEING_COPIED):
            return None
        left = self._left_unfinished(place, Kind.PLACE)
        return None if left is None or left.ino in inodes else left

    def _left_unfinished(self, spot: Spot, kind: Kind) -> Leftover | None:
        """What is at *spot*, if nobody is at it any more; a place only if it is empty."""
        door = self._store.door
        try:
            if not leftovers.is_left_unfinished(door.status(spot).st_ctime_ns, self._clock()):
                return None
            found = door.examine(spot)
            if kind is Kind.PLACE and not self._is_empty(spot, found):
                return None
        except (FileNotFoundError, Stale):
            return None
        if not found.record.is_directory and (not found.record.is_regular or found.stat.st_nlink > 1):
            return None
        # Looking may have given it a record, which makes it young: then it goes the next time.
        name, touched_ns = SetName(spot.components[-1]), door.status(spot).st_ctime_ns
        return Leftover(
            kind, name, b"", spot, found.record.ino, spot.identity, touched_ns, found.stat.st_size
        )

    def _is_empty(self, spot: Spot, found: Found) -> bool:
        """Also without a note but that of one who died here: a set that was just being restored is somebody's."""
        door = self._store.door
        if ATTRIBUTE in door.list_attributes(spot, found.record.ino):
            note = decode(door.get_attribute(spot, found.record.ino, ATTRIBUTE))
            if note is None or note.program != PROGRAM or note.set_name != spot.components[-1]:
                return False
        if found.record.is_directory:
            return not door.names_at(spot)
        return found.stat.st_size == 0

    def unfinished(self) -> list[Leftover]:
        """Files that were being made in a staging directory, and were not linked into place."""
        return [
            left
            for spot in self._staged()
            if (left := self._left_unfinished(spot, Kind.UNFINISHED)) is not None
        ]

    def _staged(self) -> Iterator[Spot]:
        for volume in self._store.volumes.ids():
            arrangement = self._store.arrangement.of(volume)
            if arrangement is Arrangement.REALMS:
                for directory in self._users(volume):
                    staging = arrangement.staging(directory.identity.uid)
                    yield from self._staged_in(directory.at(*staging))
            else:
                staging = arrangement.staging(self._store.service.uid)
                yield from self._staged_in(Spot(self._store.service, staging, volume=volume))

    def _staged_in(self, directory: Spot) -> Iterator[Spot]:
        door, names = self._store.door, list[bytes]()
        with contextlib.suppress(FileNotFoundError, Stale, Unreached):
            names = door.names_at(directory)
        for name in names:
            if not name.startswith(_UNFINISHED):
                continue
            with contextlib.suppress(FileNotFoundError, Stale, Unreached):
                status = door.status(directory.below(name))
                if stat.S_ISREG(status.st_mode):
                    owner = Owner(Uid(status.st_uid), Gid(status.st_gid))
                    yield directory.at(*directory.components, name, identity=owner)

    # To the trash

    def take(self, left: Leftover, fate: JobFate, node: bytes) -> Item | None:
        """Move *left* to the trash, if it is still left behind; *fate* is what is known now of its set's job."""
        try:
            item = self._take(left, fate, node)
        except (FileNotFoundError, Stale):  # somebody is at it
            return None
        if item is not None:
            log.info(
                "gc: %s to the trash, item %s: %s", left, item.token, left.kind.value, extra={"always": True}
            )
        return item

    def _take(self, left: Leftover, fate: JobFate, node: bytes) -> Item | None:
        if left.kind in (Kind.JOB_GONE, Kind.UNCLAIMED):
            return self._take_set(left, fate, node)
        if not self._is_still_left(left):
            return None
        item = self._store.trash.put(left.spot, self._note(left, node))
        if left.kind is Kind.TEMPORARY and self._is_live(item.spot, self._store.door.examine(item.spot)):
            self._store.trash.restore(item)  # its writer has come back in that very moment
            return None
        if (
            left.kind is Kind.UNFINISHED
        ):  # it was to take the place, and has the number, of a file that is still there
            self._store.door.amend(item.spot, left.ino, lambda found: found.record.with_(ino=new_inode()))
        return item

    def _take_set(self, left: Leftover, fate: JobFate, node: bytes) -> Item | None:
        look = self.look(left.name)
        if look is None or look.top.ino != left.ino:
            return None
        if left.kind not in [one.kind for one in self.judge(look, fate)]:
            return None

        def note(entry: SetEntry, _: Found) -> Note:
            return self._note(dataclasses.replace(left, owner=entry.owner), node)

        return self._store.trash.put_set(left.name, left.ino, note)

    def _is_still_left(self, left: Leftover) -> bool:
        if left.kind is Kind.TEMPORARY:
            found = self._store.door.examine(left.spot, left.ino)
            return self._is_temporary(left.path, found) and not self._is_live(left.spot, found)
        if left.kind is Kind.PLACE:
            known = self._known_places()
            return (
                known is not None
                and _where(left.spot) not in known[0]
                and self._left_place(left.spot, known[1]) == left
            )
        return self._left_unfinished(left.spot, left.kind) == left

    def _note(self, left: Leftover, node: bytes) -> Note:
        return Note(
            uid=Uid(0),
            when_ns=self._clock(),
            node=node,
            program=PROGRAM,
            set_name=left.name,
            path=left.path,
            owner=left.owner,
            ino=left.ino,
        )


def _touched(found: Found, now_ns: int) -> int:
    return leftovers.touched(found.stat.st_ctime_ns, found.stat.st_mtime_ns, now_ns)
