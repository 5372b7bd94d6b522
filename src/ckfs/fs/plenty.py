"""Whether there is room enough for what nobody watches: of the store, and of its owner.

A write that fails is told to its program alone, where the kernel makes it by itself. So that is begun only far from any end, and whatever
was written near one is in doubt.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from functools import partial

import trio

from ckfs.errors import FsError
from ckfs.fs.asking import Asking
from ckfs.fs.core import Core
from ckfs.names import Uid
from ckfs.policy import quota
from ckfs.policy.quota import Account, Limit
from ckfs.store.spots import VolumeId

_LOOK_S = 1.0
"""For how long what was seen of the store's room holds."""
_PLENTY_BYTES = 1 << 30
_TIGHT_BYTES = 64 << 20
"""With less than this, a write of which nobody has heard may have failed."""


@dataclass(slots=True)
class Plenty:
    core: Core
    asking: Asking
    _roomy: dict[VolumeId, tuple[float, bool]] = field(default_factory=dict)

    async def is_unlimited(self, payer: Uid) -> bool:
        """Whether *payer* has no limit in bytes, or the store's own engine limits him, and he is far from that. Asked each time: a limit holds as soon as it is set."""
        if self.core.quotas is None:
            return True
        account = await self.asking.account_at_once(payer)
        if account is None:
            return False
        if self.core.ledger is not None:
            return account.limits.bytes == Limit()
        return _left_bytes(account) >= _PLENTY_BYTES

    async def is_roomy(self, volume: VolumeId) -> bool:
        """Whether nothing will have to give way to what is written there, which only the daemon sees to."""
        now_s = trio.current_time()
        seen_s, said = self._roomy.get(volume, (-_LOOK_S, False))
        if now_s - seen_s >= _LOOK_S:
            there = await self._room(volume)
            kept_bytes = there.f_blocks * there.f_frsize * self.core.policy.keep_free
            said = there.f_bavail * there.f_frsize >= max(kept_bytes, _PLENTY_BYTES)
            self._roomy[volume] = now_s, said
        return said

    async def is_tight(self, volume: VolumeId, payer: Uid) -> bool | None:
        """Whether a write there of what *payer* pays for may just fail; None if nobody can say at once."""
        try:
            there = await self._room(volume)
        except (OSError, FsError):
            return None
        if there.f_bavail * there.f_frsize < _TIGHT_BYTES:
            return True
        if self.core.engine is None:
            return False
        account = await self.asking.account_at_once(payer)
        return None if account is None else _left_bytes(account) < _TIGHT_BYTES

    async def _room(self, volume: VolumeId) -> os.statvfs_result:
        return await self.core.gate.look(partial(self.core.store.door.room, volume))


def _left_bytes(account: Account) -> float:
    """What its owner may write yet."""
    left = quota.room(account, time.time_ns()).bytes
    return math.inf if left is None else left
