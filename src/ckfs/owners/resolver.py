"""The questions "who is this job's owner?" and "is there such a job at all?", and asking several who may know.

Resolvers are synchronous and may be slow (a file, a name service, a command): the file system calls them in a worker
thread, never in the event loop. A resolver that fails means *unknown*, never *gone*: nothing is ever removed or handed
over because nobody knew.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ckfs.model import JobFate, Owner
from ckfs.names import ROOT_UID, Gid, JobId, Uid, shown

log = logging.getLogger(__name__)

_NO_ID = 0xFFFFFFFF
"""``(uid_t) -1``: to chown it means "leave as it is", so it never names an account."""


class Resolver(Protocol):
    """Somebody who may know. Called in a worker thread; ``None`` is *unknown*."""

    def owner_of(self, job: JobId) -> Owner | None: ...


@dataclass(frozen=True, slots=True)
class Known:
    owner: Owner


@dataclass(frozen=True, slots=True)
class Unknown:
    """*reason* is for the log. *suspect* if something is wrong (a forged file, a command that failed), not merely absent."""

    reason: str
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """The batch system itself has been asked, and has no such job any more."""


Resolution = Known | Unknown | Gone


def is_ownable(uid: int) -> bool:
    """Whether a set may be given to *uid*. Never root: a set of root's would be outside every quota and every rule."""
    return ROOT_UID < uid < _NO_ID


def owner_of_ids(uid: int, gid: int) -> Owner | None:
    """The owner with these numbers, or ``None`` if they name root or nobody at all."""
    return Owner(Uid(uid), Gid(gid)) if is_ownable(uid) and 0 <= gid < _NO_ID else None


class ReasonedResolver(ABC):
    """A resolver that can say why it does not know; the reason goes to the log, once per question."""

    name: str

    @abstractmethod
    def resolve(self, job: JobId) -> Resolution: ...

    @abstractmethod
    def why_never_gone(self) -> str | None:
        """Why this one cannot tell on this host that a job is gone; None if it can."""

    def owner_of(self, job: JobId) -> Owner | None:
        match self.resolve(job):
            case Known(found):
                return found
            case Unknown(reason, suspect):
                level = logging.WARNING if suspect else logging.DEBUG
                log.log(level, "owner of job %s unknown to %s: %s", shown(job), self.name, shown(reason))
                return None
            case Gone():
                log.debug("job %s is gone, says %s", shown(job), self.name)
                return None


class ResolverChain:
    """Several resolvers, asked in order until one knows.

    Whatever one of them raises costs only its own answer: a broken command must not keep TORQUE's files from being read.
    """

    def __init__(self, resolvers: Sequence[Resolver]) -> None:
        self._resolvers = tuple(resolvers)

    def owner_of(self, job: JobId) -> Owner | None:
        for resolver in self._resolvers:
            try:
                found = resolver.owner_of(job)
            except Exception as error:  # noqa: BLE001 - a resolver that fails means unknown, whatever way it fails
                who = type(resolver).__name__
                log.warning("owner of job %s: %s failed: %s", shown(job), who, shown(repr(error)))
                continue
            # Checked again here, so that no resolver added later can hand a set to root.
            if found is not None and is_ownable(found.uid):
                return found
        return None

    def fate_of(self, job: JobId) -> JobFate:
        """What the batch system says of *job*. Gone only if somebody says so, nobody knows the job, and nobody who was
        asked failed: he might have known it."""
        answers = [self._answer(resolver, job) for resolver in self._resolvers]
        if any(isinstance(answer, Known) for answer in answers):
            return JobFate.KNOWN
        if any(isinstance(answer, Unknown) and answer.suspect for answer in answers):
            return JobFate.UNKNOWN
        return JobFate.GONE if any(isinstance(answer, Gone) for answer in answers) else JobFate.UNKNOWN

    @staticmethod
    def _answer(resolver: Resolver, job: JobId) -> Resolution:
        try:
            if isinstance(resolver, ReasonedResolver):
                answer = resolver.resolve(job)
            else:
                owner = resolver.owner_of(job)
                answer = Unknown("no answer") if owner is None else Known(owner)
        except Exception as error:  # noqa: BLE001 - as in owner_of
            answer = Unknown(repr(error), suspect=True)
        if isinstance(answer, Unknown) and answer.suspect:
            who = resolver.name if isinstance(resolver, ReasonedResolver) else type(resolver).__name__
            log.warning("whether job %s is gone, %s cannot say: %s", shown(job), who, shown(answer.reason))
        return answer

    def why_never_gone(self) -> str | None:
        """Why nobody can tell on this host that a job is gone; None if somebody can."""
        reasons = []
        for resolver in self._resolvers:
            if isinstance(resolver, ReasonedResolver):
                reason = resolver.why_never_gone()
                if reason is None:
                    return None
                reasons.append(f"{resolver.name}: {reason}")
        return "; ".join(reasons) or "the policy names no resolver"
