"""How late a mount sees what other hosts do, measured when it starts: it asks another mount, which answers at once.

Right before each question the mount looks at the other's answers, so that its host's client of the file system has something to keep
that is about to be out of date. How late the next answer is seen is told by this mount's own clock alone, from that look on. The shortest
of a few counts, for each of the two ways to answer (:mod:`ckfs.store.exchanges`): a busy host is late now and then, one that keeps what is
out of date is late always, unless this mount itself changes names in the directory meanwhile, as it does when it answers: its client
may then ask the server anew, so that no such count is a short one. Only another client can tell: not another mount on this host that looks through the same one.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from ckfs.engines.opening import mounted_on
from ckfs.errors import CkfsError, FsError, Stale
from ckfs.fs.core import Core
from ckfs.fs.liveness import running_kernel
from ckfs.fs.seen import Seen
from ckfs.names import MountId, shown
from ckfs.policy.advice import Topic, advice
from ckfs.store.exchanges import Exchanges, Said, Voice
from ckfs.store.mountsdirectory import MOUNTS

log = logging.getLogger(__name__)

T = TypeVar("T")

LATE_S = 0.5
"""What is seen later than this is not seen by the next call; it is more than a busy host needs, and less than any client keeps things for
by default (GlusterFS a second, NFS three)."""
_ROUNDS = 10
_MOST_QUESTIONS = 40
"""With those that tell nothing."""
_OF_EACH_WAY_S = 3.0
"""A way to answer that has been late for so long, in all, is late always, whatever the other is."""
_ANSWER_WITHIN_S = 65.0
"""NFS keeps what has not changed for long for a minute."""
_BETWEEN_LOOKS_S = 0.02
_BETWEEN_BEATS_S = 0.5
_BEATS_PER_LEASE = 4
_TAKEN_UP_WITHIN_LEASES = 2
_LONGEST_REST_S = 3600.0
_LOOKS_FOR_THE_LINK = 10
_LONGEST_ANSWERING_S = 4 * _ANSWER_WITHIN_S


class _Ended(Exception):
    """The other does not answer, or asks no more, or its answers told nothing."""


@dataclass(slots=True)
class Seeing:
    """Of one mount that writes, on a store that others may reach."""

    core: Core
    _exchanges: Exchanges = field(init=False)
    _same_client: set[MountId] = field(default_factory=set)
    _asked_by: MountId | None = None
    _was_asked: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        store = self.core.store
        self._exchanges = Exchanges(store.root.fd, store.service, running_kernel(), read_only=store.read_only)

    async def run(self) -> None:
        """For the life of the mount; at once over where nobody else could do anything."""
        if self.core.member is None or self.core.store.door.is_local:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_all)
            nursery.start_soon(self._ask_until_it_is_well)

    @property
    def _beat_s(self) -> float:
        return self.core.policy.lease_s / _BEATS_PER_LEASE

    async def _call(self, work: Callable[[], T]) -> T:
        return await self.core.gate.call(work)

    # Asking

    async def _ask_until_it_is_well(self) -> None:
        """Less and less often where nobody answers; and at once when somebody asks, who so can be asked."""
        rest_s = self._beat_s
        while self.core.seen is None or self.core.seen.is_late:
            try:
                other = await self._somebody()
                if other is not None:
                    await self._ask(other)
            except (OSError, FsError, CkfsError, _Ended) as error:
                log.debug("how late others are seen is not known yet: %s", error)
            with trio.move_on_after(rest_s):
                await self._was_asked.wait()
            rest_s = min(2 * rest_s, _LONGEST_REST_S)

    async def _somebody(self) -> MountId | None:
        """Who asked this one, or any."""
        asked_by, self._asked_by, self._was_asked = self._asked_by, None, trio.Event()
        if asked_by is not None:
            return asked_by
        ids = await self._call(self.core.store.mounts.ids)
        others = sorted({*ids} - {self.core.mount_id} - self._same_client)
        return secrets.choice(others) if others else None

    async def _ask(self, other: MountId) -> None:
        own = self.core.mount_id
        if not await self._call(lambda: self._exchanges.ask(own, other)):
            return
        try:
            await self._call(lambda: self._exchanges.begin(own, Voice.ASKS, other))
            said: Said | None = None
            with trio.move_on_after(self.core.policy.lease_s * _TAKEN_UP_WITHIN_LEASES):
                said = await self._heard_of(other, own, 0)
            if said is None:
                return
            if said.client == await self._call(self._exchanges.client):
                self._same_client.add(other)
                return
            await self._measure(own, other)
        finally:
            await self._quietly(lambda: self._exchanges.end_asking(own, other))

    async def _measure(self, own: MountId, other: MountId) -> None:
        shortest_s, in_all_s = {0: float("inf"), 1: float("inf")}, {0: 0.0, 1: 0.0}
        rounds = 0
        for number in range(1, _MOST_QUESTIONS + 1):
            way = number % 2
            changes = self._exchanges.changes
            late_s = await self._ask_once(own, other, number)
            if late_s < LATE_S and self._exchanges.changes != changes:
                continue
            rounds += 1
            shortest_s[way] = min(shortest_s[way], late_s)
            in_all_s[way] += late_s
            is_late = shortest_s[way] >= LATE_S and in_all_s[way] > _OF_EACH_WAY_S
            if is_late or rounds == _ROUNDS or all(each_s < LATE_S for each_s in shortest_s.values()):
                break
        counted_s = [each_s for each_s in shortest_s.values() if math.isfinite(each_s)]
        late_s = max(counted_s, default=0.0)
        if late_s < LATE_S and len(counted_s) < len(shortest_s):
            raise _Ended
        await self._take_note(other, late_s)

    async def _ask_once(self, own: MountId, other: MountId, number: int) -> float:
        """How many seconds after the last look before the question its answer was seen."""
        begun_s = trio.current_time()
        last = await self._heard_of(other, own, number - 1)
        await self._call(lambda: self._exchanges.say(own, Voice.ASKS, other, number))
        with trio.move_on_after(_ANSWER_WITHIN_S):
            await self._heard_of(other, own, number, after=last)
            return trio.current_time() - begun_s
        raise _Ended

    async def _heard_of(
        self, other: MountId, own: MountId, number: int, *, after: Said | None = None
    ) -> Said:
        """The answer of that *number*, once it is seen."""
        while True:
            said = await self._heard(other, Voice.ANSWERS, after)
            if said is not None and said.to == own and said.number == number:
                return said
            await trio.sleep(_BETWEEN_LOOKS_S if number else _BETWEEN_BEATS_S)

    async def _heard(self, other: MountId, voice: Voice, after: Said | None = None) -> Said | None:
        """A look that fails with an error (ESTALE) is one that sees nothing new."""
        try:
            return await self._call(lambda: self._exchanges.heard(other, voice, after=after))
        except (OSError, Stale):
            return None

    async def _take_note(self, other: MountId, late_s: float) -> None:
        registration = await self._call(lambda: self.core.store.mounts.read(other))
        node = shown(other if registration is None else registration.node)
        if late_s < LATE_S:
            if self.core.seen is None or self.core.seen.is_late:
                log.info("what other hosts do is seen at once, as tried with %s (%.3f s)", node, late_s)
            self.core.seen = Seen(node, late_s)
            return
        mend = await self._call(self._mend)
        if self.core.seen is None:
            log.warning(
                "what other hosts do is seen %.1f s late, as tried with %s, and it should be by the next call: %s",
                late_s,
                node,
                mend,
            )
        self.core.seen = Seen(node, late_s, is_late=True, mend=mend)

    def _mend(self) -> str:
        """What helps on this kind of file system."""
        fd = self.core.store.door.open_directory(MOUNTS)
        try:
            return advice(mounted_on(fd).kind, Topic.SEEN_NAMES)
        finally:
            os.close(fd)

    # Answering

    async def _answer_all(self) -> None:
        while True:
            await trio.sleep(self._beat_s)
            try:
                asker = await self._call(lambda: self._exchanges.asker(self.core.mount_id))
                if asker is not None:
                    await self._answer(asker)
            except (OSError, FsError) as error:
                log.debug("another mount is not answered: %s", error)

    async def _answer(self, asker: MountId) -> None:
        own = self.core.mount_id
        try:
            await self._call(lambda: self._exchanges.begin(own, Voice.ANSWERS, asker))
            answered = 0
            with trio.move_on_after(_LONGEST_ANSWERING_S):
                while await self._still_asks(asker, own, answered):
                    answered += 1
                    await self._call(lambda: self._exchanges.say(own, Voice.ANSWERS, asker, answered))  # noqa: B023 - it is awaited
            if asker not in self._same_client:
                self._asked_by = asker
                self._was_asked.set()
        finally:
            await self._quietly(lambda: self._exchanges.dismiss(own))

    async def _still_asks(self, asker: MountId, own: MountId, answered: int) -> bool:
        """Once it asks for more than was *answered*; False if it wants no more."""
        looks = 0
        while True:
            said = await self._heard(asker, Voice.ASKS)
            if said is not None and said.to == own and said.number > answered:
                return True
            looks += 1
            if (
                looks % _LOOKS_FOR_THE_LINK == 0
                and await self._call(lambda: self._exchanges.asker(own)) != asker
            ):
                return False
            await trio.sleep(_BETWEEN_LOOKS_S)

    async def _quietly(self, work: Callable[[], None]) -> None:
        """What is left lying, whoever finds this mount gone sweeps up."""
        try:
            await self._call(work)
        except (OSError, FsError) as error:
            log.debug("what another mount was asked stays: %s", error)
