"""The file system as a transport sees it: calls grouped by what they are about."""

from __future__ import annotations

from dataclasses import dataclass

from ckfs.fs.allocating import Allocating
from ckfs.fs.asking import Asking
from ckfs.fs.chores import Chores
from ckfs.fs.content import Content
from ckfs.fs.core import Core
from ckfs.fs.digesting import Digesting
from ckfs.fs.duplicating import Duplicating
from ckfs.fs.extended import Extended
from ckfs.fs.fencing import Fencing
from ckfs.fs.following import Following
from ckfs.fs.guard import Guard
from ckfs.fs.housekeeping import Chore, Housekeeping
from ckfs.fs.keeping import Keeping
from ckfs.fs.left import Left
from ckfs.fs.listing import Listing
from ckfs.fs.locking import Locking
from ckfs.fs.metadata import Metadata
from ckfs.fs.naming import Naming
from ckfs.fs.opening import Opening
from ckfs.fs.passing import Passing
from ckfs.fs.placing import Placing
from ckfs.fs.plenty import Plenty
from ckfs.fs.reserve import Reserve
from ckfs.fs.sets import Sets
from ckfs.fs.states import States
from ckfs.fs.unseen import Unseen
from ckfs.fs.writing import Writing
from ckfs.names import Inode


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One mount's file system. Everything is called in the event loop's thread."""

    core: Core
    sets: Sets
    naming: Naming
    opening: Opening
    passing: Passing
    content: Content
    metadata: Metadata
    extended: Extended
    listing: Listing
    locking: Locking
    digesting: Digesting
    housekeeping: Housekeeping

    def forget(self, ino: Inode, count: int) -> None:
        """The kernel dropped *count* of the references that look-ups and listings gave it."""
        self.core.inodes.forget(ino, count)


def _chores(core: Core, guard: Guard, left: Left) -> tuple[Chore, ...]:
    return (
        *Chores(core, guard).all(),
        Chore("settling what dead mounts left", lambda: core.policy.lease_s / 4, Fencing(core, left).steps),
    )


def filesystem(core: Core) -> Filesystem:
    guard = Guard(core)
    sets = Sets(core, Following(core), guard, Keeping(core, guard, Reserve(core)), Placing(core))
    left = Left(core, guard)
    states = States(core, sets, guard)
    plenty = Plenty(core, Asking(core))
    unseen = Unseen(core, plenty)
    passing = Passing(core, plenty, unseen)
    writing = Writing(core, sets.keeping, states, unseen)
    opening = Opening(core, sets, guard, states, left, passing)
    metadata = Metadata(core, sets, guard, unseen)
    return Filesystem(
        core=core,
        sets=sets,
        naming=Naming(core, sets, opening, guard, sets.keeping),
        opening=opening,
        passing=passing,
        content=Content(
            core, sets, states, writing, passing, Allocating(core, writing), Duplicating(core, writing)
        ),
        metadata=metadata,
        extended=Extended(core, metadata, sets, guard, left, unseen),
        listing=Listing(core, sets),
        locking=Locking(core),
        digesting=Digesting(core),
        housekeeping=Housekeeping(core, _chores(core, guard, left)),
    )
