"""Superseded checkpoints go by themselves: to the trash after their time, for good where their owner needs room.

Which ones may go is for :func:`ckfs.policy.protection.outlived` to say. It is asked right before one is moved, and once more
right after: one that has become one of the newest meanwhile, since those were removed, is put back. Blocking; runs in the
store's threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckfs.errors import FsError, Stale
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.model import Checkpoint, Keep, Owner
from ckfs.names import SetName, Uid, shown
from ckfs.policy import protection
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store.entries import SetEntry
from ckfs.store.removed import Item, Note
from ckfs.store.spots import Found, Spot, VolumeId

log = logging.getLogger(__name__)

PROGRAM = b"ckfs"
"""What the trash names as the program that removed something."""


@dataclass(frozen=True, slots=True)
class Superseded:
    core: Core
    guard: Guard

    def families(self, stored: Owner | None = None) -> list[SetName]:
        """The base names of all families of batch sets, or of those with a set that is stored as *stored*."""
        names, bases = self.core.store.names, dict[SetName, None]()
        for name in names.all():
            if not self.core.policy.is_batch(name):
                continue
            with contextlib.suppress(OSError):  # gone, or not readable: not to be touched either
                if stored is None or names.read(name).stored.uid == stored.uid:
                    bases[protection.family(name)[0]] = None
        return list(bases)

    def expire(self, base: SetName, now_ns: int) -> int:
        """Move those of a family to the trash whose time is over. Returns how many."""
        before_ns = now_ns - int(self.core.policy.superseded_s * 1e9)
        if not self.core.policy.superseded_s:
            return 0
        count = 0
        for one in self._outlived(base):
            if one.order >= before_ns:
                continue
            item = self._taken(base, one)
            if item is not None:
                count += 1
                log.info(
                    "superseded for its time: %s to the trash, item %s",
                    _named(one),
                    item.token,
                    extra={"always": True},
                )
        return count

    def give_way(self, stored: Owner, wanted_bytes: int, volume: VolumeId | None = None) -> int:
        """Remove for good, the oldest first, what is stored as *stored*, in *volume* or in all, until *wanted_bytes* are freed. Returns
        how many were."""
        candidates = [
            (one.order, base, one) for base in self.families(stored) for one in self._outlived(base)
        ]
        freed = 0
        for _, base, one in sorted(candidates, key=lambda candidate: candidate[:2]):
            if freed >= wanted_bytes:
                break
            freed += self._remove(base, one, stored, volume)
        return freed

    def charges(self, stored: Owner) -> Iterator[Amount]:
        """What each is charged with that :meth:`give_way` would remove; nothing after looks that found none."""
        names, trash = self.core.store.names, self.core.store.trash
        for base in self.families(stored):
            yield NOTHING
            for one in self._outlived(base):
                charge = NOTHING
                with contextlib.suppress(OSError, FsError, RecursionError):
                    entry = names.read(one.set_name)
                    if entry.stored.uid == stored.uid and not entry.is_followed:
                        below = filter(None, [one.name])
                        charge = trash.charge_at(entry.spot.at(*entry.spot.components, *below))
                yield charge

    def _outlived(self, base: SetName) -> list[Checkpoint]:
        return protection.outlived(self.core.policy, self.guard.family(base))

    def _remove(self, base: SetName, one: Checkpoint, stored: Owner, volume: VolumeId | None) -> int:
        trash = self.core.store.trash
        try:
            entry = self.core.store.names.read(one.set_name)
            if entry.stored.uid != stored.uid or volume not in (None, entry.volume):
                return 0
            item = self._take(base, one, trash.put_as_able)
        except (FileNotFoundError, Stale):  # somebody was first
            return 0
        except (OSError, FsError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return self._remove_in_place(base, one)
            log.warning("superseded: cannot remove %s: %s", _named(one), error)
            return 0
        if item is None:
            return 0
        self._log_gone(one)
        return trash.purge_if_able(item)

    def _remove_in_place(self, base: SetName, one: Checkpoint) -> int:
        """Where there is not even room for the owner's first directory in the trash."""
        store = self.core.store
        with contextlib.suppress(OSError, FsError, RecursionError):
            entry, spot = self._spot_if_outlived(base, one)
            if spot is None or spot == entry.spot:
                return 0
            freed = store.trash.bytes_at(spot)
            store.door.remove_tree(spot)
            self._log_gone(one)
            return freed
        return 0

    @staticmethod
    def _log_gone(one: Checkpoint) -> None:
        log.info(
            "superseded, and its owner needs room: %s goes for good", _named(one), extra={"always": True}
        )

    def _taken(self, base: SetName, one: Checkpoint) -> Item | None:
        """*one*, in the trash; None if it may not go any more, or cannot."""
        try:
            return self._take(base, one, self.core.store.trash.put)
        except (FileNotFoundError, Stale):  # somebody was first
            return None
        except (OSError, FsError) as error:
            log.warning("superseded: cannot remove %s: %s", _named(one), error)
            return None

    def _take(self, base: SetName, one: Checkpoint, put: Callable[[Spot, Note], Item]) -> Item | None:
        entry, spot = self._spot_if_outlived(base, one)
        if spot is None:
            return None
        store = self.core.store
        if spot == entry.spot:
            item = store.trash.put_set(one.set_name, entry.ino, lambda now, top: self._note(one, now, top))
        else:
            item = put(spot, self._note(one, entry, store.door.examine(spot)))
        if self._is_needed(base, one, item):
            store.trash.restore(item)
            log.info("superseded no more: %s is back", _named(one), extra={"always": True})
            return None
        return item

    def _spot_if_outlived(self, base: SetName, one: Checkpoint) -> tuple[SetEntry, Spot | None]:
        """Where *one* is, unless it may not go any more; its set's own spot if it is the whole set."""
        entry, top = self.core.store.names.examine(one.set_name)
        if entry.is_followed or one not in self._outlived(base):
            return entry, None
        if not one.name:
            return entry, entry.spot
        return entry, entry.spot.below(one.name, within=top.record.ino)

    def _is_needed(self, base: SetName, taken: Checkpoint, item: Item) -> bool:
        """Whether *taken*, now *item*, would be kept by now: newer ones are gone, or somebody has just pinned it."""
        if item.found.record.keep is not Keep.BY_RULE:
            taken = dataclasses.replace(taken, keep=item.found.record.keep)
        others = [one for one in self.guard.family(base) if one.key != taken.key]
        return taken not in protection.outlived(self.core.policy, [*others, taken])

    def _note(self, one: Checkpoint, entry: SetEntry, found: Found) -> Note:
        return Note(
            uid=Uid(0),
            when_ns=time.time_ns(),
            node=self.core.node_name,
            program=PROGRAM,
            set_name=one.set_name,
            path=one.name,
            owner=entry.owner,
            ino=found.record.ino,
        )


def _named(one: Checkpoint) -> str:
    return shown(b"/".join(filter(None, one.key)))
