"""How calls speak of charging, whether or not anybody charges (:mod:`ckfs.fs.charging`), and what is known of a file that is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from ckfs.fs.inodes import Handle, Node
from ckfs.fs.ranges import Ranges
from ckfs.names import Inode, Uid
from ckfs.policy.quota import Amount
from ckfs.store.entries import SetEntry
from ckfs.store.gate import Release

Hold = Callable[[], Release]
"""Called for each call of the store that something is claimed for: what it returns is to be one of the releases of that call, which may
end long after its caller was answered."""


class Session:
    """A file that this mount is writing."""

    __slots__ = (
        "appending",
        "base",
        "counts",
        "ended",
        "entry",
        "held",
        "idle",
        "ino",
        "is_counted",
        "is_gone",
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
        self.ranges = Ranges()
        """What was written or is about to be, in whole units: all of it is claimed."""
        self.held = 0
        """In bytes, of the payer's purse."""
        self.under_way = 0
        """Writes that were claimed for, and are not over in the store, whether or not anybody waits for them."""
        self.appending = 0
        """Those of them of which nobody knows yet where they write."""
        self.idle: trio.Event | None = None
        """Set when none is under way any more."""
        self.is_counted = False
        """What the file takes is just being looked at: nothing may be claimed for it."""
        self.counts = 0
        """How often it was looked at, or cut, so far: what was seen of the file before holds no more."""
        self.is_gone = False
        """It has no name any more, which the store does not say of an open file."""
        self.is_told = False
        """The ledger has noted it, or is away."""
        self.ended = False


class Claim:
    """For one write, of *count* bytes. It is over when *session* is told so (:meth:`Charges.done`), however late that is."""

    __slots__ = ("appended", "count", "only_at", "session")

    def __init__(
        self, session: Session | None, count: int, appended: int | None = None, only_at: int | None = None
    ) -> None:
        self.session = session
        self.count = count
        self.appended = appended
        """So many bytes are claimed for what is written to the file's end, wherever that is by then; None: for a place that is known."""
        self.only_at = only_at
        """To its end, if that is here, and no other mount writes the file."""


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

    def claimed(self, payer: Uid, amount: Amount) -> AbstractAsyncContextManager[Hold]:
        """Within the block *amount* is claimed for something new, and for as long after it as a call of the store holds it. OSError
        (EDQUOT) if there is not as much."""

    def created(self, node: Node) -> None:
        """The file was just made, empty, and marked as being written by this mount."""

    async def begun(self, handle: Handle) -> None:
        """The file was emptied or cut, and marked as being written by this mount."""

    async def claim(self, handle: Handle, offset: int, count: int) -> Claim:
        """Claim for a write of *count* bytes at *offset*, or to the file's end; at least for one byte of it. OSError (EDQUOT) if
        not even that."""

    async def claim_all(self, handle: Handle, offset: int, count: int) -> Claim:
        """Claim for all of the *count* bytes at *offset*, which may be none; OSError (EDQUOT) if there is not as much."""

    def claim_at_once(self, node: Node, offset: int, count: int) -> Claim | None:
        """As :meth:`claim`, for a place that is known; None if that has to wait for anything, or there is not as much."""

    def done(self, claim: Claim) -> None: ...

    def appended(self, claim: Claim, begin: int, end: int) -> None:
        """What was claimed for the file's end was written from *begin* to *end*."""

    async def settled(self) -> None:
        """Who wrote a file here has ended: what the door saw of it then is in the ledger from now on."""

    async def told(self) -> None:
        """Something was changed of a file that other mounts may begin to write: from now on the ledger has heard of it."""

    async def settle_now(self, node: Node) -> None:
        """Count what the file takes in the store now, if no other mount writes it: what is written on begins anew. Before it becomes
        another's, or another; and after it was cut."""

    def paused(self, node: Node) -> AbstractAsyncContextManager[None]:
        """Within the block nothing is written of the file here: another takes its place."""

    def cut(self, node: Node, size: int) -> None:
        """What lies beyond *size* was cut off: writing there again needs new room."""

    def is_said_unseen(self, payer: Uid) -> bool:
        """Whether it is known to whoever sets a limit, and will be for a while, that the kernel may write here by itself what *payer* pays for."""

    async def say_unseen(self, payer: Uid) -> bool:
        """Let it be known. False if nobody could be told: then the kernel may not."""

    def written_unseen(self) -> None:
        """The kernel has begun to write something by itself: nobody claims for it, and what is there is counted now and then."""

    def closed(self, handle: Handle) -> None:
        """*handle*, which its node has no more, is to be closed."""

    def handed_over(self, top: Node, taker: Uid) -> AbstractAsyncContextManager[Handover]:
        """Within the block the set *top* is given to an owner for whom *taker* pays. It is claimed for him first: OSError
        (EDQUOT) if there is no room; and his at the end, if it is done."""


def _hold_nothing() -> Release:
    return lambda: None


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

    def claimed(self, payer: Uid, amount: Amount) -> AbstractAsyncContextManager[Hold]:
        return contextlib.nullcontext(_hold_nothing)

    def created(self, node: Node) -> None:
        pass

    async def begun(self, handle: Handle) -> None:
        pass

    async def claim(self, handle: Handle, offset: int, count: int) -> Claim:
        return Claim(None, count)

    def claim_at_once(self, node: Node, offset: int, count: int) -> Claim | None:
        return Claim(None, count)

    async def claim_all(self, handle: Handle, offset: int, count: int) -> Claim:
        return Claim(None, count)

    def done(self, claim: Claim) -> None:
        pass

    def appended(self, claim: Claim, begin: int, end: int) -> None:
        pass

    async def settled(self) -> None:
        pass

    async def told(self) -> None:
        pass

    async def settle_now(self, node: Node) -> None:
        pass

    def paused(self, node: Node) -> AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def cut(self, node: Node, size: int) -> None:
        pass

    def is_said_unseen(self, payer: Uid) -> bool:
        return True

    async def say_unseen(self, payer: Uid) -> bool:
        return True

    def written_unseen(self) -> None:
        pass

    def closed(self, handle: Handle) -> None:
        pass

    def handed_over(self, top: Node, taker: Uid) -> AbstractAsyncContextManager[Handover]:
        return contextlib.nullcontext(Handover())
