"""How calls speak of charging, whether or not anybody charges (:mod:`ckfs.fs.charging`), and what is known of a file that is written."""

from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from ckfs.fs.inodes import Handle, Node
from ckfs.fs.ranges import Ranges
from ckfs.names import Inode, Uid
from ckfs.policy.quota import Amount
from ckfs.store.entries import SetEntry


class Session:
    """A file that this mount is writing. The ledger has noted what it counted with when that began."""

    __slots__ = (
        "base",
        "claims",
        "ended",
        "entry",
        "held",
        "idle",
        "ino",
        "is_left",
        "is_ours_to_bury",
        "is_told",
        "payer",
        "ranges",
        "under_way",
    )

    def __init__(self, ino: Inode, payer: Uid, base: Amount, entry: SetEntry | None = None) -> None:
        self.ino = ino
        self.payer = payer
        self.entry = entry
        """What the name of its set said when *payer* was read from it; None if it had no name any more."""
        self.base = base
        """What the file counted with when this began."""
        self.is_told = False
        """The ledger has noted it, or is away."""
        self.ranges = Ranges()
        """What was written or is about to be, in whole units: all of it is claimed."""
        self.held = 0
        """In bytes, of the payer's purse."""
        self.under_way = 0
        """Writes that were claimed for, and are not over in the store, whether or not anybody waits for them."""
        self.claims = 0
        """How many writes were claimed for."""
        self.is_left = False
        """Its writers have ended, while a write that was given up had yet to happen."""
        self.idle: trio.Event | None = None
        """Set when none is under way any more."""
        self.is_ours_to_bury = False
        """It has no name any more, and nobody else tells the ledger."""
        self.ended = False


@dataclass(slots=True)
class Handover:
    """A set is being given away. *is_done* once its entry names the new owner, by this call."""

    is_done: bool = False


class Charges(Protocol):
    """What calls tell, and ask, of what they add to the store and take from it."""

    @property
    def to_recount(self) -> set[Uid]:
        """Owners of whom only a recount tells what they use. Who has recounted one takes him out (:mod:`ckfs.fs.reclaiming`)."""

    @property
    def fell_short(self) -> int:
        """How often somebody did not get what he asked for, since the limit was reached by what mounts have been granted; they may be dead."""

    async def run(self) -> None:
        """For the life of the mount."""

    def leave(self) -> None:
        """Blocking; the last that a mount says. Raises LedgerDown."""

    def claimed(
        self, payer: Uid, amount: Amount, of: Inode | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Within the block *amount* is claimed for something new, or for what the file *of* grows by. OSError (EDQUOT) if there is
        not as much."""

    async def begun(self, handle: Handle) -> None:
        """The file was emptied, and marked as being written by this mount: from now on others leave it to this one to tell what
        becomes of it. Of one that was just made, the first write tells."""

    async def claim(self, handle: Handle, offset: int, count: int) -> tuple[Session | None, int]:
        """Claim for a write of *count* bytes at *offset*. Returns what :meth:`done` takes when the write is over, however late
        that is, and of how many bytes it may be: at least one. OSError (EDQUOT) if not even that."""

    def done(self, session: Session | None) -> None: ...

    async def settle(self, handle: Handle) -> None:
        """Who wrote through *handle* has ended: unless others write on, count what the file takes in the store now. While it is
        marked as being written by this mount."""

    async def unmarked(self, handle: Handle) -> None:
        """The file is not marked as being written by this mount any more: who removes it tells of that from now on."""

    async def told(self) -> None:
        """Something was changed of a file that other mounts may begin to write: from now on the ledger has heard of it."""

    async def settle_now(self, node: Node) -> None:
        """As :meth:`settle`, whoever writes on: what he writes begins anew. Before the file becomes another's, or another."""

    def cut(self, node: Node, size: int) -> None:
        """What lies beyond *size* was cut off: writing there again needs new room."""

    def closed(self, node: Node) -> None:
        """A handle of *node* is gone."""

    def handed_over(self, top: Node, taker: Uid) -> AbstractAsyncContextManager[Handover]:
        """Within the block the set *top* is given to an owner for whom *taker* pays. It is claimed for him first: OSError
        (EDQUOT) if there is no room; and his at the end, if it is done."""


class Uncharged:
    """Nobody counts, or the store's own engine does."""

    @property
    def to_recount(self) -> set[Uid]:
        return set()

    @property
    def fell_short(self) -> int:
        return 0

    async def run(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def claimed(
        self, payer: Uid, amount: Amount, of: Inode | None = None
    ) -> AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def begun(self, handle: Handle) -> None:
        pass

    async def claim(self, handle: Handle, offset: int, count: int) -> tuple[Session | None, int]:
        return None, count

    def done(self, session: Session | None) -> None:
        pass

    async def settle(self, handle: Handle) -> None:
        pass

    async def unmarked(self, handle: Handle) -> None:
        pass

    async def told(self) -> None:
        pass

    async def settle_now(self, node: Node) -> None:
        pass

    def cut(self, node: Node, size: int) -> None:
        pass

    def closed(self, node: Node) -> None:
        pass

    def handed_over(self, top: Node, taker: Uid) -> AbstractAsyncContextManager[Handover]:
        return contextlib.nullcontext(Handover())
