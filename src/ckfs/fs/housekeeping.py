"""What one mount of a store does for all: expiry of the trash, settling what dead mounts left, and other chores.

It is a ``server`` or ``both`` mount that holds the store's housekeeping lease (:meth:`Mounts.keep_house`), never hundreds of nodes
at once. One that was taken for dead may come back in the middle of a chore, beside its successor: so every chore
looks again right before it changes anything, and the lease only saves work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio

from ckfs.errors import FsError
from ckfs.fs.core import Core
from ckfs.fs.liveness import Fate
from ckfs.model import Role
from ckfs.names import MountId

log = logging.getLogger(__name__)

_LOOKS_PER_LEASE = 4


@dataclass(frozen=True, slots=True)
class Chore:
    """*steps* makes the work of one round, a piece at each step, each in a thread and short enough for one data call. None of
    them ends in somebody's identity. A round begins *every_s* seconds after the last one did."""

    name: str
    every_s: Callable[[], float]
    steps: Callable[[], Iterator[None]]


@dataclass(slots=True)
class Housekeeping:
    core: Core
    chores: tuple[Chore, ...]
    _begun_s: dict[str, float] = field(default_factory=dict)
    _looked_s: float = 0.0
    _keeps_house: bool = False

    async def run(self) -> None:
        """For the life of the mount; at once over on one that keeps no house."""
        if self.core.role is Role.NODE or self.core.store.read_only:
            return
        while True:
            await trio.sleep(self.core.policy.lease_s / _LOOKS_PER_LEASE)
            for chore in self.chores:
                if await self._is_ours() and self._is_due(chore):
                    await self._do(chore)

    def _is_due(self, chore: Chore) -> bool:
        begun_s = self._begun_s.get(chore.name)
        return begun_s is None or time.monotonic() - begun_s >= chore.every_s()

    async def _do(self, chore: Chore) -> None:
        self._begun_s[chore.name] = time.monotonic()
        try:
            steps = chore.steps()
            while await self._is_ours():
                # The generator's end is one value of its own: StopIteration does not pass a thread.
                if await self.core.gate.transfer(lambda: next(steps, self)) is self:
                    return
        except (OSError, FsError, RecursionError) as error:
            log.info("housekeeping: %s is tried again later: %s", chore.name, error)

    async def _is_ours(self) -> bool:
        """Whether this mount is the one; asked anew a few times per lease."""
        if time.monotonic() - self._looked_s < self.core.policy.lease_s / _LOOKS_PER_LEASE:
            return self._keeps_house
        kept = self._keeps_house
        try:
            await self.core.assure_membership(None)
            own, mounts = self.core.mount_id, self.core.store.mounts
            self._keeps_house = await self.core.gate.call(lambda: mounts.keep_house(own, self._is_alive))
        except (OSError, FsError):
            self._keeps_house = False
        self._looked_s = time.monotonic()
        if self._keeps_house and not kept:
            log.info("this mount keeps house for the store")
        return self._keeps_house

    def _is_alive(self, mount: MountId) -> bool:
        return self.core.fate(mount) is Fate.ALIVE
