"""Which further stores this host reaches is looked at for as long as the mount runs: one may come, go, or be silent."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import trio

from ckfs.fs.core import Core
from ckfs.policy.settings import Policy
from ckfs.store.spots import VolumeId

_EVERY_S = 10.0
_SOON_S = 1.0
"""Between looks at one that is silent."""


@dataclass(slots=True)
class Reaching:
    """Looks are made in threads, one at a time at each further store: one that hangs is waited for, and keeps no other from being
    looked at."""

    core: Core
    every_s: float = _EVERY_S
    _looking: set[VolumeId] = field(default_factory=set)

    async def run(self) -> None:
        """For the life of the mount."""
        followed = self.core.policy
        looked_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                is_new = followed.stores != self.core.policy.stores
                if is_new:
                    followed = self.core.policy
                    await self.follow(followed)
                is_due = is_new or trio.current_time() - looked_s >= self.every_s
                looked_s = trio.current_time() if is_due else looked_s
                for volume in self.core.store.volumes.all():
                    if (is_due or volume.is_silent) and volume.id not in self._looking:
                        self._looking.add(volume.id)
                        nursery.start_soon(self._look, volume.id)
                await trio.sleep(min(_SOON_S, self.every_s))

    async def follow(self, policy: Policy) -> None:
        """Take up what a new policy says of further stores."""
        volumes = self.core.store.volumes
        await trio.to_thread.run_sync(volumes.follow, policy.stores)
        self.core.reaches_others()

    async def _look(self, volume: VolumeId) -> None:
        volumes, limit_s = self.core.store.volumes, self.core.op_timeout_s
        ended = trio.Event()

        async def look() -> None:
            try:
                await trio.to_thread.run_sync(partial(volumes.look, volume), abandon_on_cancel=True)
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with trio.move_on_after(limit_s):
                await ended.wait()
            if not ended.is_set():
                self.core.gate.missed(volume, limit_s)
        self._looking.discard(volume)
        self.core.reaches_others()
