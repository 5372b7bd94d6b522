"""What was left behind, and may go to the trash by itself or by ``ckfs gc``.

Whoever is in doubt keeps it: nothing here goes for what could not be found out. Times are in ns since the epoch.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ckfs.model import JobFate, Keep, Owner, Record, State
from ckfs.names import SetName
from ckfs.policy.settings import Policy

_PLACES_S = 86_400.0
"""How long what a mount left in the middle of making something stays: no call takes that long."""


class Kind(enum.Enum):
    TEMPORARY = "temporary file"
    UNCLAIMED = "unclaimed set"
    JOB_GONE = "set of a job that is gone"
    PLACE = "empty place without a name"
    UNFINISHED = "unfinished file"


@dataclass(frozen=True, slots=True)
class SetFacts:
    """A batch set, with all in it. *is_moving*: it changes hands or names, or has several. *is_written*: somebody may still
    be writing in it."""

    name: SetName
    owner: Owner | None
    touched_ns: int
    is_pinned: bool
    is_moving: bool
    is_written: bool


def touched(ctime_ns: int, mtime_ns: int, now_ns: int) -> int:
    """When something was changed last. Anybody sets an mtime of the future; nobody sets a ctime."""
    return max(ctime_ns, mtime_ns) if mtime_ns <= now_ns else ctime_ns


def keeps_set(record: Record) -> bool:
    """Whether somebody has asked to keep the checkpoint, and with it its set."""
    return record.keep is Keep.PINNED


def depends_on_job(policy: Policy, facts: SetFacts, now_ns: int) -> bool:
    """Whether it matters what becomes of the job of a set; resolvers are not asked about every set there is."""
    return any(of_set(policy, facts, fate, now_ns) is not None for fate in JobFate)


def of_set(policy: Policy, facts: SetFacts, fate: JobFate, now_ns: int) -> Kind | None:
    """As what a set is left behind; None if it is not. That it holds protected checkpoints is no matter: its job has no more
    use for them, and the trash keeps them for its time."""
    if not policy.is_batch(facts.name) or facts.is_pinned or facts.is_moving or facts.is_written:
        return None
    if fate is JobFate.KNOWN:
        return None
    if fate is JobFate.GONE and _is_old(facts.touched_ns, now_ns, policy.gc.job_gone_s):
        return Kind.JOB_GONE
    if facts.owner is None and _is_old(facts.touched_ns, now_ns, policy.gc.unclaimed_s):
        return Kind.UNCLAIMED
    return None


def is_left_temporary(policy: Policy, name: bytes, record: Record, touched_ns: int, now_ns: int) -> bool:
    """Whether *name*, right in a batch set, is what a writer left that never came to its final name.

    Not of what lies deeper: what is left of a torn dump would then look whole.
    """
    return (
        record.is_regular
        and record.state in (State.WRITING, State.PARTIAL)
        and record.synced is None
        and record.keep is not Keep.PINNED
        and not policy.is_final(name)
        and _is_old(touched_ns, now_ns, policy.gc.temporary_s)
    )


def is_left_unfinished(touched_ns: int, now_ns: int) -> bool:
    """Whether what was being made when it was touched last is not being made any more."""
    return _is_old(touched_ns, now_ns, _PLACES_S)


def _is_old(touched_ns: int, now_ns: int, limit_s: float) -> bool:
    return limit_s > 0 and now_ns - touched_ns > limit_s * 1e9
