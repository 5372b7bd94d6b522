"""What dead mounts were granted comes back: their owners are counted anew, and they lose their grants in the same step.

The mount that keeps house for the store looks a few times per lease. Where none does, or an owner falls short here of what he asked
for, this one looks, too: each mount looking at each other would be too much for a store that thousands mount. Of those that look, the first in
the order of their ids does it at once, the others only if it is not done by then: several at once are harmless, since only one
recount of each owner is taken up.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from functools import partial

import trio

from ckfs.errors import CkfsError, FsError
from ckfs.fs.core import Core
from ckfs.fs.liveness import Fate
from ckfs.fs.recounting import Recounting
from ckfs.ledger.ledger import Ledger
from ckfs.names import MountId, Uid, shown
from ckfs.store import limits

log = logging.getLogger(__name__)

_LOOKS_PER_LEASE = 4
_MOST_BEFORE = 8
"""So many mounts go first at most; a store may have thousands."""


@dataclass(slots=True)
class Reclaiming:
    """Of one mount. Looks are made in a thread, one at a time."""

    core: Core
    ledger: Ledger
    _dead_since_s: dict[MountId, float] = field(default_factory=dict)
    _said: str = ""
    _fell_short: int = 0

    async def run(self) -> None:
        """For the life of the mount."""
        alone = trio.CapacityLimiter(1)
        while True:
            if self.core.gate.is_up:
                look = partial(self.look, frozenset(self.core.charging.to_recount))
                done = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=alone)
                self.core.charging.to_recount.difference_update(done)
            await trio.sleep(self._every_s)

    @property
    def _every_s(self) -> float:
        return self.core.policy.lease_s / _LOOKS_PER_LEASE

    def look(self, own: frozenset[Uid]) -> set[Uid]:
        """One look, blocking. Recounts the owners *own* too, whose grants this mount itself has lost; returns those of whom that came to an end."""
        done = set[Uid]()
        store = self.core.store
        try:
            if self._is_asked_for():
                self.reclaim()
                limits.write(store.root, store.service, self.ledger.all_settings())
            recounting = Recounting(store, self.ledger, self.core.fate)
            done.update(one.uid for one in recounting.repair(sorted(own)) if one.taken_up)
            said = ""
        except (OSError, FsError, RecursionError, CkfsError) as error:
            said = f"what dead mounts were granted is looked after later: {error}"
        if said and said != self._said:
            log.info("%s", shown(said))
        self._said = said
        return done

    def _is_asked_for(self) -> bool:
        """Whether this mount is one of those that look now."""
        before, self._fell_short = self._fell_short, self.core.charging.fell_short
        return self._fell_short != before or not self._another_keeps_house()

    def _another_keeps_house(self) -> bool:
        keeper = self.core.store.mounts.housekeeper()
        return keeper not in (None, self.core.mount_id) and self.core.fate(keeper) is Fate.ALIVE

    def reclaim(self) -> None:
        """Take back what mounts hold that died long enough ago for this one to do it."""
        mounts = self.ledger.mounts()
        dead = {mount: uids for mount, uids in mounts.items() if self.core.fate(mount) is not Fate.ALIVE}
        now_s = time.monotonic()
        self._dead_since_s = {mount: self._dead_since_s.get(mount, now_s) for mount in dead}
        wait_s = self._before() * self._every_s
        for mount, uids in dead.items():
            if now_s - self._dead_since_s[mount] >= wait_s:
                self._reclaim_from(mount, uids)

    def _before(self) -> int:
        """How many mounts go first."""
        own, keeper = self.core.mount_id, self.core.store.mounts.housekeeper()
        if keeper == own:
            return 0
        others = (one.id for one in self.core.store.mounts.all() if one.id < own)
        living = (1 for mount in others if self.core.fate(mount) is Fate.ALIVE)
        return sum(itertools.islice(living, _MOST_BEFORE))

    def _reclaim_from(self, mount: MountId, uids: set[Uid]) -> None:
        recounting = Recounting(self.core.store, self.ledger, self.core.fate)
        left = 0
        for one in recounting.repair(sorted(uids)):
            if one.taken_up and one.counted is not None:
                log.info(
                    "mount %s has died: uid %d has %d bytes and %d files at rest, and what it was granted for him is free",
                    shown(mount),
                    one.uid,
                    one.counted.bytes,
                    one.counted.files,
                )
            else:
                left += 1
        if not left:
            self.ledger.forget(mount)
