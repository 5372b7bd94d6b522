"""Which checkpoints of a batch set nobody may touch, and who may all the same.

A batch set's newest complete checkpoints survive whatever their owner or a node's root does: unmodified batch systems
remove them right after they made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckfs.errors import Denied
from ckfs.model import Caller, Keep, Record, Role, State
from ckfs.names import SetName
from ckfs.policy import lifecycle
from ckfs.policy.settings import Policy

_OLD = b".old"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A direct entry *name* of the batch set *set_name*, or the set itself if that is a file (*name* empty).

    *top* is the entry's own record, *images* those of every regular file in it.
    """

    set_name: SetName
    name: bytes
    top: Record
    images: tuple[Record, ...]

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.set_name, self.name

    @property
    def order(self) -> int:
        return max((image.completed for image in self.images), default=0)

    def is_complete(self, policy: Policy) -> bool:
        """All its images are, and it has its final name."""
        return (
            bool(self.images) and policy.is_final(self.name) and all(map(lifecycle.is_complete, self.images))
        )

    def is_outlived(self) -> bool:
        return all(image.state is State.SUPERSEDED for image in self.images)


def family(name: SetName) -> tuple[SetName, SetName]:
    """The batch sets that hold one job's checkpoints: OpenPBS moves ``X.CK`` to ``X.CK.old`` before a new one."""
    base = SetName(name.removesuffix(_OLD))
    return base, SetName(base + _OLD)


def newest(policy: Policy, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The newest complete checkpoints of a family, as many as the policy keeps, newest first; order of completion."""
    complete = [checkpoint for checkpoint in checkpoints if checkpoint.is_complete(policy)]
    return sorted(complete, key=lambda one: (one.order, one.key), reverse=True)[: policy.keep]


def protected(policy: Policy, checkpoints: Iterable[Checkpoint]) -> set[tuple[bytes, bytes]]:
    """The keys of the checkpoints of a family that only a remover may take away or change."""
    all_of_them = list(checkpoints)
    kept = {checkpoint.key for checkpoint in newest(policy, all_of_them)}
    for checkpoint in all_of_them:
        pinned = checkpoint.top.keep is Keep.PINNED and checkpoint.is_complete(policy)
        if checkpoint.top.keep is Keep.RELEASED:
            kept.discard(checkpoint.key)
        elif pinned or any(image.synced is not None for image in checkpoint.images):
            kept.add(checkpoint.key)
    return kept


def may_remove(role: Role, caller: Caller, *, is_remover: bool) -> bool:
    """*caller* ends a job's life: root where the batch system's server runs, and not where its moms run too unless it
    is one of the server's own programs."""
    return caller.is_root and (role is Role.SERVER or (role is Role.BOTH and is_remover))


def may_remove_old(name: SetName, caller: Caller, checkpoints: Iterable[Checkpoint], policy: Policy) -> bool:
    """OpenPBS's mom removes ``X.CK.old`` once ``X.CK`` holds a complete checkpoint."""
    base, old = family(name)
    return (
        caller.is_root
        and name == old
        and any(one.set_name == base and one.is_complete(policy) for one in checkpoints)
    )


def refuse() -> Denied:
    return Denied("one of the newest complete checkpoints of a batch set")
