"""The file system as a transport sees it: calls grouped by what they are about."""

from __future__ import annotations

from dataclasses import dataclass

from ckfs.fs.content import Content
from ckfs.fs.core import Core
from ckfs.fs.digesting import Digesting
from ckfs.fs.extended import Extended
from ckfs.fs.following import Following
from ckfs.fs.guard import Guard
from ckfs.fs.keeping import Keeping
from ckfs.fs.listing import Listing
from ckfs.fs.metadata import Metadata
from ckfs.fs.naming import Naming
from ckfs.fs.sets import Sets
from ckfs.fs.states import States
from ckfs.names import Inode


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One mount's file system. Everything is called in the event loop's thread."""

    core: Core
    sets: Sets
    naming: Naming
    content: Content
    metadata: Metadata
    extended: Extended
    listing: Listing
    digesting: Digesting

    def forget(self, ino: Inode, count: int) -> None:
        """The kernel dropped *count* of the references that look-ups and listings gave it."""
        self.core.inodes.forget(ino, count)


def filesystem(core: Core) -> Filesystem:
    guard = Guard(core)
    sets = Sets(core, Following(core), guard, Keeping(core, guard))
    content = Content(core, sets, guard, States(core, sets, guard))
    metadata = Metadata(core, sets, guard)
    return Filesystem(
        core=core,
        sets=sets,
        naming=Naming(core, sets, content, guard, sets.keeping),
        content=content,
        metadata=metadata,
        extended=Extended(core, metadata, sets, guard),
        listing=Listing(core),
        digesting=Digesting(core),
    )
