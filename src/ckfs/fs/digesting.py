"""Making the digests of images that have become complete, behind everybody's back: one image, and one piece of it, at a time.

Whoever closes an image does not wait for it. What was written in order, by one mount, need not be read for it
(:mod:`ckfs.fs.hashed`). What is not made here, since the mount ended first or too many images waited, is made by ``ckfs scrub``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from ckfs.errors import Busy, FsError, StoreDown
from ckfs.fs.core import Core
from ckfs.fs.inodes import Place, place_of
from ckfs.fs.undigested import Undigested
from ckfs.names import Inode
from ckfs.store import rereading
from ckfs.store.rereading import Reading

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = 3
_REST_WHILE_BUSY = 9.0
"""A tenth of the time is for digests while anybody else's calls are with the store: who writes without end does not keep them
from being made for ever."""
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
            self.core.undigested.again(image)

    async def _make(self, image: Undigested) -> bool:
        """False if the image has changed meanwhile."""
        gate, node = self.core.gate, self.core.inodes.known(image.ino)
        place = (place_of(node) if node is not None else None) or image.place
        top, keep, reading = await self._gently(lambda: gate.call(lambda: self._begin(place, image)))
        if keep is None:
            return True
        if top in self.core.copying:
            return False
        while reading is not None and await self._gently(lambda: gate.transfer(reading.step, of_set=top)):
            pass
        if top in self.core.copying:  # which would have to begin anew if its files changed
            return False
        return await gate.call(keep, of_set=top)

    def _begin(
        self, place: Place, image: Undigested
    ) -> tuple[Inode, Callable[[], bool] | None, Reading | None]:
        """The top of the set; what keeps the digest, None if that is there already, or the image needs none; and what reads it before,
        unless it is known."""
        store, ino, written = self.core.store, image.ino, image.written
        entry = store.names.read(place.set_name)
        spot = entry.spot.below(*place.below)
        found = store.door.examine(spot, ino)
        if written is not None and written.fits(found) and not store.door.had_another(spot, ino):
            keep = partial(rereading.keep, store.door, spot, ino, written.digest, written.fits)
            return entry.ino, keep, None
        reading = rereading.begin(store.door, spot, found)
        return entry.ino, None if reading is None else reading.keep, reading

    async def _gently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make *call*, and rest afterwards if others are at work."""
        gate, began = self.core.gate, trio.current_time()
        was_busy = gate.is_busy
        result = await call()
        if was_busy or gate.is_busy:
            await trio.sleep((trio.current_time() - began) * _REST_WHILE_BUSY)
        return result
