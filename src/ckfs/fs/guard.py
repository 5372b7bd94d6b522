"""Refusing what would cost somebody a checkpoint. The rules are in :mod:`ckfs.policy.protection`.

Everything here looks at the store, and so runs in its threads; nothing in it awaits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ckfs.errors import OtherOwner
from ckfs.fs.core import Core
from ckfs.fs.inodes import Place
from ckfs.model import Caller, Checkpoint, Record, Role, State
from ckfs.names import Inode, SetName, shown
from ckfs.owners.processes import is_one_of, program_of
from ckfs.policy import lifecycle, protection
from ckfs.policy.lifecycle import Event
from ckfs.policy.protection import Until
from ckfs.store import writing
from ckfs.store.checkpoints import checkpoints, with_record
from ckfs.store.spots import Found

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Guard:
    core: Core

    def check(self, place: Place, found: Found, caller: Caller) -> list[Checkpoint] | None:
        """Refuse (EACCES) to take away, move or change *found*, at *place*, if a protected checkpoint needs it.

        Returns the family's checkpoints, if that took a look at them.
        """
        policy = self.core.policy
        if not policy.is_batch(place.set_name) or not protection.concerns(found.record):
            return None
        if self._may_remove(caller):
            return None
        of_family = self.family(place.set_name)
        reason = self._reason(place, of_family, found.record.ino)
        if reason is None or protection.may_remove_old(policy, place.set_name, caller, of_family):
            return of_family
        # What a mom does as a matter of course is no news: it is summed up.
        of_mom = caller.is_root and is_one_of(program_of(caller.pid), policy.moms)
        self.core.figures.refused(to_mom=of_mom)
        level = logging.DEBUG if of_mom else logging.INFO
        log.log(level, "kept %s from uid %d: %s", place, caller.uid, reason)
        raise protection.refusal(reason)

    def check_move(self, place: Place, target: Place, found: Found, caller: Caller) -> None:
        """As :meth:`check`, for moving *found* to *target*."""
        whole_sets = not place.below and not target.below
        if whole_sets and protection.may_set_aside(place.set_name, target.set_name, caller):
            return
        self.check(place, found, caller)

    def check_link(self, place: Place, found: Found) -> None:
        """Refuse (EACCES) a second name for an image of a batch set: it would be a way around the protection of the
        first, and checkpointers refuse images that have two."""
        policy = self.core.policy
        if policy.keep and policy.is_batch(place.set_name) and found.record.is_regular:
            raise protection.refusal("an image of a batch set has one name")

    def check_way(self, old: SetName, new: SetName) -> None:
        """Refuse (EXDEV, so that mv copies) to move something from another set into a batch set: other names of it, and
        descriptors on other mounts, would know nothing of its protection."""
        if self.core.policy.is_batch(new) and not self.core.policy.is_batch(old):
            raise OtherOwner("nothing moves into a batch set from another set: copy it")

    def _may_remove(self, caller: Caller) -> bool:
        asked = self.core.role is Role.BOTH and caller.is_root
        is_remover = asked and is_one_of(program_of(caller.pid), self.core.policy.removers)
        return protection.may_remove(self.core.role, caller, is_remover=is_remover)

    def family(self, name: SetName) -> list[Checkpoint]:
        return checkpoints(
            self.core.store.names, self.core.store.door, protection.family(name), self.core.policy.is_final
        )

    def _reason(self, place: Place, of_family: list[Checkpoint], ino: Inode | None = None) -> str | None:
        """Why *place*, or for a whole set anything in it, is protected; None if it is not. *ino* is the file that was
        there: other mounts may have given it another name since."""
        reasons = protection.protected(self.core.policy, of_family)
        if not place.below:
            return next((reason for (name, _), reason in reasons.items() if name == place.set_name), None)
        keys = [(place.set_name, place.below[0]), (place.set_name, b"")]
        keys += (one.key for one in of_family if any(image.record.ino == ino for image in one.images))
        return next((reasons[key] for key in keys if key in reasons), None)

    def reason(self, place: Place) -> str | None:
        """Why *place* is protected, for those who ask."""
        if not self.core.policy.is_batch(place.set_name):
            return None
        return self._reason(place, self.family(place.set_name))

    def kept_until(self, place: Place) -> Until | int | None:
        """How long *place* is kept, for those who ask: see :func:`protection.until`."""
        policy = self.core.policy
        if not policy.is_batch(place.set_name):
            return None
        name = place.below[0] if place.below else b""
        return protection.until(policy, self.family(place.set_name), place.set_name, name)

    # The order of checkpoints

    def look(self, name: SetName) -> list[Checkpoint]:
        """The checkpoints among which those of the set *name* count; none if it is no batch set."""
        return self.family(name) if self.core.policy.is_batch(name) else []

    def next_number(self, of_family: Sequence[Checkpoint], now_ns: int) -> int:
        """A completion number for an image of *of_family*: later than all in there, whatever clocks say."""
        return max(now_ns, *(one.order + 1 for one in of_family), 0)

    def completed(self, name: SetName, before: Sequence[Checkpoint], record: Record) -> None:
        """An image has the *record* now, and *before* was the family just before that."""
        if self.core.policy.keep and self.core.policy.is_batch(name):
            # An image that had just been renamed may be missing in there.
            self._recount(with_record(before, record) or self.family(name))

    def removed(self, place: Place, before: Sequence[Checkpoint] | None) -> None:
        """An image is gone from *place*, and *before* was the family just before that, if anybody looked."""
        newest = protection.newest(self.core.policy, before or ())
        if before is None or any(one.name in place.below[:1] for one in newest):
            self.recount(place.set_name)

    def recount(self, name: SetName) -> None:
        """Say of each complete image of a family whether newer checkpoints have outlived it."""
        if self.core.policy.keep and self.core.policy.is_batch(name):
            self._recount(self.family(name))

    def _recount(self, of_family: Sequence[Checkpoint]) -> None:
        newest = {one.key for one in protection.newest(self.core.policy, of_family)}
        for one in of_family:
            if protection.is_complete(self.core.policy, one):
                self._say(one, Event.NEEDED if one.key in newest else Event.OUTLIVED)

    def _say(self, checkpoint: Checkpoint, event: Event) -> None:
        changed = [one for one in checkpoint.images if lifecycle.after(one.record, event) is not one.record]
        if not changed:
            return
        door, entry, said = self.core.store.door, self.core.store.names.read(checkpoint.set_name), False
        for image in changed:
            spot = entry.spot.below(*filter(None, image.path.split(b"/")))
            ino = image.record.ino
            after = writing.say(door, spot, ino, lambda found: lifecycle.after(found.record, event))
            said = said or after.record.state is lifecycle.after(image.record, event).state
        if said:
            state = State.COMPLETE if event is Event.NEEDED else State.SUPERSEDED
            name = b"/".join(filter(None, checkpoint.key))
            log.info("checkpoint %s is %s: %s", shown(name), state.value, event.value)
