"""The last of the store: users begin nothing new in it. Root goes on, and so does whoever is writing an image already."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, volume_of
from ckfs.names import ROOT_UID, Uid
from ckfs.store.spots import HOME, VolumeId

_LOOK_S = 1.0
"""For how long what was seen of the store holds."""


@dataclass(slots=True)
class Reserve:
    """Belongs to the event loop's thread."""

    core: Core
    clock: Callable[[], float] = time.monotonic
    _is_short: dict[VolumeId, bool] = field(default_factory=dict)
    _looked_s: dict[VolumeId, float] = field(default_factory=dict)
    """In seconds of the clock."""

    async def check_begin(self, uid: Uid, volume: VolumeId = HOME) -> None:
        """OSError (ENOSPC) for a new image or file of *uid* in *volume* if that has no more than its reserve."""
        kept = self.core.policy.quota.reserve
        if uid == ROOT_UID or not (kept.bytes or kept.part):
            return
        if self.clock() - self._looked_s.get(volume, -_LOOK_S) >= _LOOK_S:
            self._looked_s[volume] = self.clock()  # before: one look is enough for all who come meanwhile
            there = await self.core.gate.call(lambda: self.core.store.door.room(volume))
            free_bytes, total_bytes = there.f_bavail * there.f_frsize, there.f_blocks * there.f_frsize
            self._is_short[volume] = free_bytes < kept.bytes_of(total_bytes)
        if self._is_short.get(volume, False):
            raise OSError(errno.ENOSPC, "the rest of the store is kept in reserve")

    async def check_write(self, handle: Handle) -> None:
        """As :meth:`check_begin`, before something is written through *handle* for the first time since its image was settled;
        somebody may be writing that already."""
        if not any(other.admitted for other in handle.node.handles):
            await self.check_begin(handle.opener.uid, volume_of(handle.node))
        handle.admitted = True

    def look_again(self) -> None:
        """Something gave way."""
        self._looked_s.clear()
