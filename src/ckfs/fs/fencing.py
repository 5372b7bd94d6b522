"""Settling for good what dead mounts were writing: a chore of the mount that keeps house.

A mount is ended when its process is known to be dead, or when it was not heard of for the policy's fence time. Then all images
that it has marked are looked for and settled, and its registration is forgotten. Blocking; in the store's threads.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.errors import FsError, Stale, Unreached
from ckfs.fs.core import Core
from ckfs.fs.inodes import Place
from ckfs.fs.left import Left
from ckfs.names import SetName, shown
from ckfs.store import walks
from ckfs.store.entries import SetEntry
from ckfs.store.spots import Found, Spot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fencing:
    core: Core
    left: Left

    def steps(self) -> Iterator[None]:
        """End who is dead, then settle what the ended ones left, a set at each step."""
        self._end_dead()
        yield
        mounts = self.core.store.mounts
        ended = mounts.ended()
        if not ended:
            return
        failures = 0
        for name in self.core.store.names.all():
            failures += not self._settle_set(name)
            yield
        for mount in ended if not failures else ():
            mounts.forget(mount)
            log.info("mount %s is forgotten: nothing in the store is marked by it any more", shown(mount))

    def _end_dead(self) -> None:
        policy, judge, mounts = self.core.policy, self.core.judge, self.core.store.mounts
        for registration in mounts.all():
            if registration.id == self.core.mount_id:
                continue
            if judge.has_died_here(registration):
                reason = "its process is dead"
            elif judge.silent_s(registration, policy.lease_s) >= policy.fence_s:
                reason = f"it was not heard of for {policy.fence_s:g} s"
            else:
                continue
            mounts.end(registration.id)
            node = shown(registration.node)
            log.info("mount %s of node %s is ended: %s", shown(registration.id), node, reason)

    def _settle_set(self, name: SetName) -> bool:
        """False if something in the set *name* could not be looked at."""
        try:
            entry, top = self.core.store.names.examine(name)
            for spot, found, place in self._images(name, entry, top):
                with contextlib.suppress(FileNotFoundError, Stale):  # removed meanwhile
                    self.left.state_of(spot, found, place)
        except (FileNotFoundError, Stale):
            return True
        except Unreached as error:  # a mount that keeps house and reaches it settles it
            log.debug("set %s is not looked through: %s", shown(name), error)
            return False
        except (OSError, FsError, RecursionError) as error:
            log.info("set %s is looked through later: %s", shown(name), error)
            return False
        return True

    def _images(self, name: SetName, entry: SetEntry, top: Found) -> Iterator[tuple[Spot, Found, Place]]:
        if not top.record.is_directory:
            yield entry.spot, top, Place(name, ())
            return
        for path, found in walks.files(self.core.store.door, entry.spot):
            below = tuple(path.split(b"/"))
            yield entry.spot.below(*below), found, Place(name, below)
