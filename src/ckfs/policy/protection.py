"""Which checkpoints of a batch set nobody may touch, and who may all the same.

A batch set's newest complete checkpoints survive whatever their owner or a node's root does: unmodified batch systems
remove them right after they made them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ckfs.errors import Denied
from ckfs.model import Caller, Checkpoint, Keep, Record, Role, State
from ckfs.names import SetName
from ckfs.policy import lifecycle
from ckfs.policy.settings import Policy

_OLD = b".old"


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
            reasons[one.key] = "pinned"
        elif policy.keep and any(image.record.state is State.UNKNOWN for image in one.images):
            reasons.setdefault(one.key, "of a state that nobody knows: see ckfs verify --accept")
        elif any(image.record.synced is not None for image in one.images):
            reasons.setdefault(one.key, "synced to the store")
    return reasons


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
