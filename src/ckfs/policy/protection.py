"""Which checkpoints of a batch set nobody may touch, and who may all the same.

A batch set's newest complete checkpoints survive whatever their owner or a node's root does: unmodified batch systems
remove them right after they made them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

from ckfs.errors import Denied
from ckfs.model import Caller, Checkpoint, Keep, Record, Role, State
from ckfs.names import SetName
from ckfs.policy import lifecycle
from ckfs.policy.settings import Policy

_OLD = b".old"
PINNED = "pinned"


class Until(enum.Enum):
    """Until when a checkpoint is kept, where no time says so."""

    FOREVER = "forever"
    OUTLIVED = "until outlived"
    ROOM_IS_NEEDED = "until room is needed"


def family(name: SetName) -> tuple[SetName, SetName]:
    """The batch sets that hold one job's checkpoints: OpenPBS moves ``X.CK`` to ``X.CK.old`` before a new one."""
    base = SetName(name.removesuffix(_OLD))
    return base, SetName(base + _OLD)


def is_complete(policy: Policy, checkpoint: Checkpoint) -> bool:
    """All its images are, and it has its final name."""
    return (
        bool(checkpoint.images)
        and policy.is_final(checkpoint.name)
        and all(lifecycle.is_complete(image.record) for image in checkpoint.images)
    )


def newest(policy: Policy, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The newest complete checkpoints of a family, as many as the policy keeps, the newest first. In the order in which
    they were completed: anybody may set times."""
    complete = [checkpoint for checkpoint in checkpoints if is_complete(policy, checkpoint)]
    return sorted(complete, key=lambda one: (one.order, one.key), reverse=True)[: policy.keep]


def _as_before(checkpoint: Checkpoint) -> Checkpoint:
    """*checkpoint* without the images that are not complete: what somebody adds to a directory takes nothing away."""
    whole = tuple(image for image in checkpoint.images if lifecycle.is_complete(image.record))
    return dataclasses.replace(checkpoint, images=whole)


def protected(policy: Policy, checkpoints: Iterable[Checkpoint]) -> dict[tuple[SetName, bytes], str]:
    """The keys of a family's checkpoints that only a remover may take away or change, and why."""
    of_family = list(checkpoints)
    reasons = dict.fromkeys(
        (one.key for one in newest(policy, map(_as_before, of_family))), "what is complete of a checkpoint"
    )
    for one in newest(policy, of_family):
        reasons[one.key] = f"one of the {policy.keep} newest complete checkpoints"
    for one in of_family:
        if one.keep is Keep.RELEASED:
            reasons.pop(one.key, None)
        elif one.keep is Keep.PINNED and is_complete(policy, one):
            reasons[one.key] = PINNED
        elif policy.keep and any(image.record.state is State.UNKNOWN for image in one.images):
            reasons.setdefault(one.key, "of a state that nobody knows: see ckfs verify --accept")
        elif any(image.record.synced is not None for image in one.images):
            reasons.setdefault(one.key, "synced to the store")
    return reasons


def outlived(policy: Policy, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The complete checkpoints of a family that newer ones have outlived and nobody has asked to keep: those that may go by
    themselves, the oldest first."""
    of_family = list(checkpoints)
    kept = protected(policy, of_family).keys() | {one.key for one in newest(policy, of_family)}
    going = [one for one in of_family if one.key not in kept and one.order and is_complete(policy, one)]
    return sorted(going, key=lambda one: (one.order, one.key)) if policy.keep else []


def until(
    policy: Policy, checkpoints: Iterable[Checkpoint], set_name: SetName, name: bytes
) -> Until | int | None:
    """How long ckfs keeps the checkpoint *name* of *set_name*, or with an empty *name* anything in the set: a time in ns since
    the epoch; None if nothing keeps it."""
    of_family = list(checkpoints)
    reasons, going = protected(policy, of_family), {one.key for one in outlived(policy, of_family)}
    answers = [
        _until(policy, one, reasons.get(one.key), one.key in going)
        for one in of_family
        if one.set_name == set_name and (not name or one.name in (name, b""))
    ]
    return max(answers, key=_how_long, default=None)


def _until(policy: Policy, one: Checkpoint, reason: str | None, is_outlived: bool) -> Until | int | None:
    if reason == PINNED:
        return Until.FOREVER
    if reason is not None:
        return Until.OUTLIVED
    if not is_outlived:
        return None
    return one.order + int(policy.superseded_s * 1e9) if policy.superseded_s else Until.ROOM_IS_NEEDED


def _how_long(answer: Until | int | None) -> tuple[int, int]:
    match answer:
        case None:
            return 0, 0
        case Until.FOREVER:
            return 4, 0
        case Until.OUTLIVED:
            return 3, 0
        case Until.ROOM_IS_NEEDED:
            return 2, 0
        case _:
            return 1, answer


def concerns(record: Record) -> bool:
    """Whether an image, or what may hold some, can be protected at all."""
    return record.is_directory or (
        record.is_regular and (lifecycle.may_be_complete(record) or record.synced is not None)
    )


def may_remove(role: Role, caller: Caller, *, is_remover: bool) -> bool:
    """*caller* ends a job's life: root where the batch system's server runs; where its moms run too, one of the
    server's own programs as root."""
    return caller.is_root and (role is Role.SERVER or (role is Role.BOTH and is_remover))


def may_remove_old(policy: Policy, name: SetName, caller: Caller, checkpoints: Iterable[Checkpoint]) -> bool:
    """OpenPBS's mom removes ``X.CK.old`` once ``X.CK`` holds a newer complete checkpoint than any in there."""
    base, old = family(name)
    if not caller.is_root or name != old:
        return False
    complete = [checkpoint for checkpoint in checkpoints if is_complete(policy, checkpoint)]
    newest = max(complete, key=lambda one: (one.order, one.key), default=None)
    return newest is not None and newest.set_name == base


def may_set_aside(old: SetName, new: SetName, caller: Caller) -> bool:
    """OpenPBS's mom renames ``X.CK`` to ``X.CK.old``, and back if the new checkpoint fails."""
    return caller.is_root and old != new and family(old) == family(new)


def refusal(reason: str) -> Denied:
    return Denied(f"protected: {reason}")
