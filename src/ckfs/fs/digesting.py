"""Making the digests of images that have become complete, behind everybody's back: one image, and one piece of it, at a time.

Whoever closes an image does not wait for it, and nothing is done while it is written. What is not made here, since the mount
ended first or too many images waited, is made by ``ckfs scrub``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from ckfs.errors import Busy, FsError, StoreDown
from ckfs.fs.core import Core
from ckfs.fs.inodes import Place, place_of
from ckfs.fs.undigested import Undigested
from ckfs.names import Inode
from ckfs.store import checking
from ckfs.store.checking import Reading
from ckfs.store.door import Spot

log = logging.getLogger(__name__)

_TRIES = 3
_LOOK_S = 0.05
_LOOKS_WHILE_BUSY = 10
"""Then one step is made all the same: who writes without end does not keep digests from being made for ever."""
_WAIT_WHILE_DOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class Digesting:
    core: Core

    async def run(self) -> None:
        """Runs for the life of the mount."""
        if self.core.store.read_only:
            return
        while True:
            image = await self.core.undigested.next()
            try:
                made = await self._make(image)
            except (StoreDown, Busy):
                await trio.sleep(_WAIT_WHILE_DOWN_S)
                self._again(image)
            except (
                OSError,
                FsError,
            ) as error:  # removed, most often; else there is no room, or it cannot be read
                log.debug("no digest of image %s: %s", image.place, error)
            else:
                if not made:
                    self._again(image)

    def _again(self, image: Undigested) -> None:
        if image.tries < _TRIES:
            self.core.undigested.add(image.ino, image.place, image.tries + 1)

    async def _make(self, image: Undigested) -> bool:
        """False if the image has changed meanwhile."""
        gate, node = self.core.gate, self.core.inodes.known(image.ino)
        place = (place_of(node) if node is not None else None) or image.place
        top, reading = await gate.call(lambda: self._begin(place, image.ino))
        if reading is None:
            return True
        if top in self.core.copying:
            return False
        while await gate.transfer(reading.step, of_set=top):
            await self._let_others_go_first()
        if top in self.core.copying:  # which would have to begin anew if its files changed
            return False
        return await gate.call(reading.keep, of_set=top)

    def _begin(self, place: Place, ino: Inode) -> tuple[Inode, Reading | None]:
        """The top of the set, and what reads the image; None if its digest is there already, or it needs none."""
        store = self.core.store
        entry = store.names.read(place.set_name)
        spot = Spot(entry.stored, (*entry.spot.components, *place.below))
        return entry.ino, checking.begin(store.door, spot, store.door.examine(spot, ino))

    async def _let_others_go_first(self) -> None:
        for _ in range(_LOOKS_WHILE_BUSY):
            if not self.core.gate.is_busy:
                return
            await trio.sleep(_LOOK_S)
