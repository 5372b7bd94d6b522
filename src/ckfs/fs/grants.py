"""A mount's dealings with the ledger: it draws grants, posts what became of them, and gives back what it does not need.

Everything belongs to the event loop's thread; the ledger is asked in threads of its own, never in the store's, one call at a time, since what it
answers says how things stood at that moment. While it is away, what is granted already can be spent, and what is to be posted waits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from ckfs.errors import LedgerDown, NoGrant
from ckfs.fs.core import Core
from ckfs.fs.lane import Lane
from ckfs.fs.purse import Purse
from ckfs.ledger.ledger import Drawn, Ledger, Opened, Posting
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import GRANT_FILES, NOTHING, Account, Amount, next_grant

log = logging.getLogger(__name__)

T = TypeVar("T")

_INTERVAL_S = 0.25
"""What happened is posted so soon."""
_SOON_S = 0.02
"""What was freed, so soon: who removes one file often removes many, and one posting tells of all."""
_IDLE_S = 1.0
"""A balance that nobody took from for so long is given back; not while the ledger is away, which could not give it to others."""
_RECALL_S = 2.0
"""For so long the other mounts are waited for that are asked to give back what they do not need."""
_RECALL_LOOK_S = 0.05
_FRUITLESS_S = 1.0
_EXACT_S = 5.0
"""After a recall, for so long nothing is drawn beyond what is needed."""
_LOOK_S = 1.0
"""So often is looked whether others ask for something back, where there is plenty."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What was posted, and may or may not have been taken up."""

    mount: MountId
    number: int
    postings: tuple[tuple[Purse, Posting], ...]


@dataclass(slots=True)
class Grants:
    """*watch* hears how an account stands whenever the ledger says so; *gather* is called before anything is posted; *lost* when the
    ledger took a grant back, *free_unneeded* before what is not needed is given back to others."""

    core: Core
    ledger: Ledger
    watch: Callable[[Account], None]
    gather: Callable[[], None]
    lost: Callable[[Uid], None]
    free_unneeded: Callable[[Uid], Awaitable[object]]
    purses: dict[Uid, Purse] = field(default_factory=dict)
    fell_short: int = 0
    """How often others had not given back what was needed here, though they were asked to."""
    _lane: Lane = field(init=False)
    _wake: trio.Event = field(default_factory=trio.Event)
    _mount: MountId | None = None
    _number: int = 0
    _moves: int = 0
    _late: set[Uid] = field(default_factory=set)
    """For whom something may have been granted of which this mount has not heard. Threads add to it."""
    _answering: bool = False
    _looked_s: float = 0.0
    _batch: _Batch | None = None
    _to_note: dict[Inode, tuple[Uid, Opened]] = field(default_factory=dict)
    _noting: list[tuple[Uid, Opened]] = field(default_factory=list)
    """What was said to the ledger, which may or may not have noted it: it is said again before anything that follows."""

    def __post_init__(self) -> None:
        self._lane = Lane(self.core.op_timeout_s)

    def purse(self, uid: Uid) -> Purse:
        purse = self.purses.get(uid)
        if purse is None:
            purse = self.purses[uid] = Purse(uid)
        return purse

    @property
    def mount(self) -> MountId:
        """By whom this mount is known to the ledger: anew after it was fenced."""
        mount = self.core.mount_id
        if mount != self._mount:
            self._mount, self._number = mount, 0
            for purse in self.purses.values():
                purse.disown()
        return mount

    # Drawing

    async def take(self, uid: Uid, amount: Amount) -> bool:
        """Move *amount* from the purse of *uid* to what is held, drawing what it lacks; False if there is not as much. Raises
        NoGrant if the ledger is away for longer than a call may take."""
        purse = self.purse(uid)
        purse.is_used = True
        if self._is_valid() and purse.take(amount):
            return True
        deadline_s = trio.current_time() + self.core.op_timeout_s
        while True:
            if not await self._lane.until_back(deadline_s):
                raise NoGrant(self.core.policy.quota.away.errno)
            try:
                await self._draw_enough(purse, amount)
            except LedgerDown:
                continue
            return purse.take(amount)

    def take_at_once(self, uid: Uid, count: int) -> bool:
        """As :meth:`take`, of *count* bytes; False also if something would have to be drawn first."""
        purse = self.purse(uid)
        purse.is_used = True
        return self._is_valid() and purse.take_bytes(count)

    def _is_valid(self) -> bool:
        """Whether the ledger cannot have taken back what this mount has: others have heard of it lately."""
        member = self.core.member
        return (
            member is not None
            and member.id == self._mount
            and member.heard_ago_s < self.core.policy.lease_s / 2
        )

    async def _draw_enough(self, purse: Purse, amount: Amount) -> None:
        await self._assure_heard()
        drawn = await self.draw(purse, amount)
        if purse.balance.covers(amount) or not drawn.others_hold:
            return
        if trio.current_time() < purse.fruitless_until_s:
            return
        await self._recall(purse.uid)
        await self.draw(purse, amount)
        if not purse.balance.covers(amount):
            purse.fruitless_until_s = trio.current_time() + _FRUITLESS_S
            self.fell_short += 1

    async def _assure_heard(self) -> None:
        member = self.core.member
        if member is not None and member.heard_ago_s >= self.core.policy.lease_s / 2:
            await member.renew(self.core.gate)

    async def draw(self, purse: Purse, amount: Amount, opened: Sequence[Opened] = ()) -> Drawn:
        """Let the purse have *amount*, and more while there is plenty, if the ledger grants it; and note the files *opened*."""
        async with self._lane.turn():
            if amount:
                await self._post_what_counts(purse)
            lacks = (amount - purse.balance).not_below_zero()
            mount, uid = self.mount, purse.uid
            given_up = threading.Event()
            wanted = self._wanted(purse, lacks)
            call = partial(self.ledger.draw, mount, uid, lacks, wanted, opened)

            def draw() -> Drawn:
                drawn = call()
                if given_up.is_set():
                    self._late.add(uid)
                return drawn

            try:
                drawn = await self._lane.ask(draw)
            except BaseException:
                given_up.set()
                self._late.add(uid)
                raise
            self._take_up(purse, drawn)
            if lacks:
                purse.is_short = not purse.balance.covers(wanted)
        self.watch(drawn.account)
        return drawn

    async def _post_what_counts(self, purse: Purse) -> None:
        """In the lane, before something is drawn: what was freed here is to be had, and what was not claimed is not."""
        self.gather()
        if purse.changes_room or self._batch or self._noting:
            await self._post_all()

    def _take_up(self, purse: Purse, drawn: Drawn) -> None:
        if not purse.drawn(drawn):
            self.lost(purse.uid)

    async def _take_up_late(self) -> None:
        """What was granted too late for whoever waited for it is known from here on, and given back if nobody needs it."""
        while self._late:
            uid = self._late.pop()
            try:
                drawn = await self._lane.ask(partial(self.ledger.draw, self.mount, uid, NOTHING, NOTHING))
            except BaseException:
                self._late.add(uid)
                raise
            self._take_up(self.purse(uid), drawn)

    @staticmethod
    def _wanted(purse: Purse, lacks: Amount) -> Amount:
        """Of what is short more than is needed, so that it need not be asked for at every call."""
        now_s = trio.current_time()
        if purse.is_wanted_by_others(now_s):
            return lacks
        if lacks.bytes:
            purse.piece_bytes = next_grant(purse.piece_bytes, now_s - purse.drawn_s)
            purse.drawn_s = now_s
        return lacks + Amount(purse.piece_bytes if lacks.bytes else 0, GRANT_FILES if lacks.files else 0)

    async def _recall(self, uid: Uid) -> None:
        """Ask the others for what they do not need, and wait until they have answered."""
        mount = self.mount
        async with self._lane.turn():
            await self._lane.ask(partial(self.ledger.recall, mount, uid))
        with trio.move_on_after(_RECALL_S):
            while True:
                await trio.sleep(_RECALL_LOOK_S)
                async with self._lane.turn():
                    if not await self._lane.ask(partial(self.ledger.waits_for, mount, uid)):
                        return

    # Posting

    def note(self, uid: Uid, opened: Opened) -> None:
        """Have the ledger note, soon, a file that is being written, or is open without a name."""
        self._to_note.setdefault(opened.ino, (uid, opened))

    def noted_not(self, ino: Inode) -> Opened | None:
        """Take back a note that the ledger has not heard yet; None if it has, or is just being told."""
        waiting = self._to_note.pop(ino, None)
        return None if waiting is None else waiting[1]

    def note_grown(self, ino: Inode, by: Amount) -> bool:
        """Whether the file, which counts with more, is still to be noted: then it is with that."""
        if ino not in self._to_note:
            return False
        uid, opened = self._to_note[ino]
        self._to_note[ino] = uid, Opened(ino, opened.base + by)
        return True

    def hurry(self) -> None:
        """Post what there is in a moment, without waiting for the next round."""
        self._wake.set()

    async def run(self) -> None:
        """Post, give back, and answer other mounts; for the life of the mount."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(_INTERVAL_S):
                    await self._wake.wait()
                    await trio.sleep(_SOON_S)
                self._wake = trio.Event()
                try:
                    recalled = await self._round()
                except LedgerDown as error:
                    log.debug("posting again later: %s", error)
                else:
                    if recalled and not self._answering:
                        self._answering = True
                        nursery.start_soon(
                            self._answer, recalled
                        )  # aside: what is posted must not wait for it

    async def _round(self) -> set[Uid]:
        """Returns for whom others ask this mount to give back what it does not need."""
        self.gather()
        now_s = trio.current_time()
        for purse in self.purses.values():
            if not self._lane.is_away and purse.idle_s(now_s) > _IDLE_S and purse.balance:
                purse.give_up_balance()
        async with self._lane.alone:
            await self._post_all()
            await self._take_up_late()
            if not self._looks(now_s):
                return set()
            self._looked_s = now_s
            return await self._lane.ask(partial(self.ledger.recalled, self.mount))

    def _looks(self, now_s: float) -> bool:
        """Whether it is time to look what others ask for, who do so near a limit: hundreds of mounts that write far from theirs
        should not all ask four times a second."""
        if self._lane.is_away:
            return True
        has = [purse for purse in self.purses.values() if not purse.is_empty]
        return bool(has) and (any(purse.is_short for purse in has) or now_s - self._looked_s > _LOOK_S)

    async def post(self) -> None:
        """Post everything there is; returns when the ledger has it. Raises LedgerDown."""
        async with self._lane.alone:
            await self._post_all()

    async def tell(self) -> None:
        """As :meth:`post`; what cannot be posted now, since the ledger is away, is posted when it is back."""
        if not self._lane.is_away:
            with contextlib.suppress(LedgerDown):
                await self.post()

    async def tell_notes(self) -> None:
        """As :meth:`tell`, of files that were noted; what else is to be posted waits for its time, unless it is of them."""
        with contextlib.suppress(LedgerDown):
            async with self._lane.turn():
                news = any(purse.has_news_of(self._to_note) for purse in self.purses.values())
                if news or self._batch or self._noting:
                    # With the notes. Those that come meanwhile wait: what is posted before them may come meanwhile, too.
                    await self._post_all()
                    return
                self._noting, self._to_note = list(self._to_note.values()), {}
                await self._note_all()

    async def _post_all(self) -> None:
        """In the lane. Notes are told after what was posted when they were taken: what is settled in there may be written, and so
        noted, anew. And before the next posting, which may settle what they are of."""
        await self._post_batch()
        await self._note_all()
        self.gather()
        self._batch = self._next_batch()
        self._noting, self._to_note = list(self._to_note.values()), {}
        await self._post_batch()
        await self._note_all()

    async def _note_all(self) -> None:
        while self._noting:
            uid = self._noting[0][0]
            opened = tuple(one for payer, one in self._noting if payer == uid)
            drawn = await self._lane.ask(partial(self.ledger.draw, self.mount, uid, NOTHING, NOTHING, opened))
            self._noting = [(payer, one) for payer, one in self._noting if payer != uid]
            self._take_up(self.purse(uid), drawn)

    def _next_batch(self) -> _Batch | None:
        postings = tuple((purse, purse.posting()) for purse in self.purses.values() if purse.has_news)
        if not postings:
            return None
        mount = self.mount  # first: with another one numbers begin anew
        self._number += 1
        return _Batch(mount, self._number, postings)

    async def _post_batch(self) -> None:
        batch = self._batch
        if batch is None:
            return
        await self._lane.ask(partial(self._post, batch))
        for purse, posting in batch.postings:
            purse.posted(posting)
        self._batch = None

    def _post(self, batch: _Batch) -> None:
        self.ledger.post(batch.mount, batch.number, [posting for _, posting in batch.postings])

    async def _answer(self, recalled: set[Uid]) -> None:
        try:
            for uid in recalled:
                await self.free_unneeded(uid)
            async with self._lane.turn():
                await self._give_back(recalled)
        except LedgerDown as error:
            log.debug("what others need is given back later: %s", error)
        finally:
            self._answering = False

    async def _give_back(self, recalled: set[Uid]) -> None:
        mount = self.mount
        for uid in recalled:
            purse = self.purse(uid)
            purse.exact_until_s = trio.current_time() + _EXACT_S
            purse.give_up_balance()
        await self._post_all()
        for uid in recalled:
            await self._lane.ask(partial(self.ledger.answer, mount, uid))

    async def noted(self, uid: Uid) -> frozenset[Inode]:
        """The files of *uid* that mounts are writing, this one having posted everything. Raises LedgerDown."""
        async with self._lane.turn():
            await self._post_all()
            basis = await self._lane.ask(partial(self.ledger.basis, uid))
        return frozenset(file.ino for file in basis.files)

    async def move(self, giver: Uid, taker: Uid, moved: Amount, files: Sequence[Opened]) -> None:
        """*moved*, which is held for *taker*, is his from now on, and no more *giver*'s."""
        purse = self.purse(taker)
        async with self._lane.alone:
            mount = self.mount
            self._moves += 1
            try:
                await self._lane.ask(
                    partial(self.ledger.move, giver, mount, taker, moved, files, self._moves)
                )
            except LedgerDown:  # the set is his already: the ledger hears of it when it is back
                self.purse(giver).spend(-moved)
                purse.spend_held(moved)
            else:
                purse.moved(moved)

    async def say_unseen(self, uid: Uid, *, is_so: bool) -> None:
        """Have the ledger know whether somebody writes here for *uid* of whose writes nobody hears. Raises LedgerDown."""
        async with self._lane.turn():
            await self._lane.ask(partial(self.ledger.say_unseen, self.mount, uid, is_so=is_so))

    def leave(self, *, finished: bool) -> None:
        """The last that a mount says to its ledger; blocking. *finished*: it holds nothing any more."""
        self.gather()
        for purse in self.purses.values():
            purse.give_up_balance()
        if self._batch is not None:
            self._post(self._batch)
        for uid, opened in self._noting:
            self.ledger.draw(self.mount, uid, NOTHING, NOTHING, (opened,))
        last = self._next_batch()
        if last is not None:
            self._post(last)
        if finished and self._mount is not None:
            self.ledger.end(self._mount)
