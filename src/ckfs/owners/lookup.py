"""Everything the file system asks about users, in one place: owners of jobs, names and numbers of accounts."""

from __future__ import annotations

from ckfs.model import JobFate, Owner
from ckfs.names import Gid, SetName, Uid
from ckfs.owners.accounts import Accounts, uid_in
from ckfs.owners.command import CommandResolver
from ckfs.owners.jobs import job_of
from ckfs.owners.resolver import Resolver, ResolverChain
from ckfs.owners.torque import TorqueJobs
from ckfs.policy.settings import Policy


class Users:
    """Blocking; each answer is bounded by the resolvers' and the name service's time limits."""

    def __init__(self, policy: Policy, accounts: Accounts | None = None) -> None:
        self._accounts = accounts or Accounts()
        self._chain = ResolverChain(())
        self.follow(policy)

    def follow(self, policy: Policy) -> None:
        """Ask the resolvers that *policy* names from now on."""
        resolvers: list[Resolver] = []
        if policy.torque_home:
            resolvers.append(TorqueJobs(policy.torque_home, self._accounts))
        if policy.resolver_command:
            resolvers.append(
                CommandResolver(policy.resolver_command, policy.resolver_command_timeout_s, self._accounts)
            )
        self._chain = ResolverChain(tuple(resolvers))

    def owner_of_set(self, name: SetName) -> Owner | None:
        """The owner of the job that the batch set *name* is for; None if unknown."""
        job = job_of(name)
        return None if job is None else self._chain.owner_of(job)

    def fate_of_set(self, name: SetName) -> JobFate:
        """What the batch system says of the job that the batch set *name* is for."""
        job = job_of(name)
        return JobFate.UNKNOWN if job is None else self._chain.fate_of(job)

    def why_never_gone(self) -> str | None:
        """Why nobody on this host can tell that a job is gone; None if somebody can."""
        return self._chain.why_never_gone()

    def owner_named(self, text: str) -> Owner | None:
        """The user of that name or number, root too; None if there is none. A number needs no account."""
        uid = uid_in(text)
        if uid is None:
            uid = self._accounts.uid_of(text)
        if uid is None:
            return None
        gid = self._accounts.primary_gid_of(uid)
        return Owner(Uid(uid), Gid(uid) if gid is None else gid)

    def name_of(self, uid: int) -> str | None:
        return self._accounts.name_of(uid)
