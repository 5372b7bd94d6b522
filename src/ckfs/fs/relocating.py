"""``ckfs move``: the files of a set go to another store of the home, by a mount that reaches both.

They are copied beside, as for a new owner where root is squashed (:mod:`ckfs.fs.following`), compared with what they are copies of, and
become the set in one step, while it is read where it was. Whoever pays goes on to, once. A mount that dies leaves the set where it
was, or where it goes, and the next move goes on with what is there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ckfs.errors import CkfsError, FsError, NotPermitted, Stale, UsageError
from ckfs.fs.core import Core
from ckfs.fs.following import Following
from ckfs.fs.inodes import Node
from ckfs.model import Caller
from ckfs.names import SetName, shown
from ckfs.store.entries import SetEntry
from ckfs.store.handover import Copying
from ckfs.store.spots import VolumeId

log = logging.getLogger(__name__)

Tell = Callable[[int, int], Awaitable[None]]
"""Is told how many bytes have been copied and compared, about, and how many there are to be in all."""

_EVERY_S = 0.5
_TRIES = 3
"""What has just been completed gets its digest in a moment, which changes the set."""


@dataclass(frozen=True, slots=True)
class Relocating:
    core: Core
    following: Following

    async def move(self, name: SetName, store: str, caller: Caller, tell: Tell) -> bool:
        """Bring the set *name* to the store that the policy calls so; False if it lies there. Raises CkfsError; it stays where it is
        then."""
        volume = self._volume(store)
        try:
            entry = await self.core.read_entry(name)
        except FileNotFoundError:
            raise UsageError(f"{shown(name)}: there is no such set") from None
        if not caller.is_root and (entry.owner is None or entry.owner.uid != caller.uid):
            raise NotPermitted(f"{shown(name)}: only its owner and root move it")
        if entry.volume == volume:
            return False
        self._check(name, entry)
        for again in range(_TRIES):
            try:
                await self._move(name, await self.core.read_entry(name), volume, tell)
            except (OSError, FsError, ValueError) as error:
                has_changed = isinstance(error, Stale) or getattr(error, "errno", 0) == errno.EAGAIN
                if has_changed and again < _TRIES - 1 and not self._is_written_here(entry):
                    await trio.sleep(_EVERY_S)
                    continue
                raise CkfsError(f"{shown(name)}: stays where it is: {_reason(error)}") from None
            break
        await self.core.charging.told()
        log.info("set %s lies in the store %s now", shown(name), store, extra={"always": True})
        return True

    def _volume(self, store: str) -> VolumeId:
        volumes = self.core.store.volumes
        if self.core.store.read_only:
            raise UsageError("this mount is read-only")
        known = next((one for one in volumes.ids() if volumes.name_of(one) == store), None)
        if known is not None:
            return known
        missed = next((one for one in volumes.missed() if one.said.name == store), None)
        if missed is not None:
            raise CkfsError(f"this host does not reach the store {store}: {shown(missed.why)}")
        names = ", ".join(volumes.name_of(one) for one in volumes.ids())
        raise UsageError(f"the policy names no store {shown(store)}; this host reaches {names}")

    def _check(self, name: SetName, entry: SetEntry) -> None:
        volumes = self.core.store.volumes
        if not volumes.is_usable(entry.volume):
            where = volumes.name_of(entry.volume)
            raise CkfsError(
                f"{shown(name)}: lies in {where}, which this host does not reach: ask one that does"
            )
        if entry.is_followed or entry.ino in self.core.copying:
            raise CkfsError(
                f"{shown(name)}: is just being copied, or given to its owner: try again when it has been"
            )

    def _is_written_here(self, entry: SetEntry) -> bool:
        return any(
            handle.writable and self.core.set_key(handle.node) == entry.ino
            for handle in self.core.handles.all()
        )

    async def _move(self, name: SetName, entry: SetEntry, volume: VolumeId, tell: Tell) -> None:
        """In the background, where it comes to its end also if who asked for it goes away."""
        top = self.core.inodes.known(entry.ino) or Node(entry.ino, self.core.inodes.root, name)
        top.entry = entry
        copying = Copying(self.core.store, name, entry, entry.stored, volume)
        ended, failures = trio.Event(), list[Exception]()
        self.core.copying[entry.ino] = trio.Event()

        async def run() -> None:
            try:
                await self.following.copy(top, name, copying)
            except (OSError, FsError, ValueError) as error:
                failures.append(error)
            finally:
                self.core.copying.pop(entry.ino).set()
                ended.set()

        if self.core.background is None:
            await run()
        else:
            self.core.background.start_soon(run)
        while not ended.is_set():
            await tell(copying.bytes_done, copying.bytes_in_all)
            with trio.move_on_after(_EVERY_S):
                await ended.wait()
        if failures:
            raise failures[0]


def _reason(error: Exception) -> str:
    with contextlib.suppress(AttributeError):
        return str(error.strerror or error)  # type: ignore[attr-defined]  # of an OSError
    return str(error)
