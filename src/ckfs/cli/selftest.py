"""``ckfs selftest``: whether a file system is one that checkpoints can be trusted to, for root, before a store is made on it or after."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import signal
import socket
from collections import Counter
from dataclasses import asdict, dataclass, field

from ckfs import __version__
from ckfs.cli.stores import prepare_for_stores
from ckfs.cli.users import uid_of
from ckfs.errors import CkfsError, NotPermitted, UsageError
from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.policy.enforcing import AUTO, ENGINES
from ckfs.selftest import serving
from ckfs.selftest.ends import Asked
from ckfs.selftest.outcome import Outcome, Verdict, encoded
from ckfs.selftest.peers import is_host
from ckfs.selftest.runner import About, groups, run

_ACCOUNTS = ("daemon", "bin", "sys", "games", "man")
"""Of every host, and nobody's: two of them stand for users, unless others are named."""
_SHORTEST_S, _LONGEST_S = 1.0, 3600.0


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "store", metavar="STORE", nargs="?", help="the store's directory, or where it is to be"
    )
    command.add_argument(
        "--hosts",
        metavar="HOST,…",
        action="append",
        default=[],
        help="other hosts with the same path, by ssh",
    )
    command.add_argument(
        "--other", metavar="PATH", action="append", default=[], help="another mount of it on this host"
    )
    command.add_argument(
        "--users", metavar="NAME,NAME", help="two users to act as; accounts of the system by default"
    )
    command.add_argument(
        "--engine", choices=[AUTO, *ENGINES], help="try quotas by this engine, whatever the policy says"
    )
    command.add_argument("--limited", metavar="USER", help="a user who may have at most 256 MiB more there")
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="what each check may take (default: %(default)g)",
    )
    command.add_argument(
        "--only", metavar="GROUP,…", help="these checks alone, or groups of them: names, coherence"
    )
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(run=selftest)


def selftest(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises CkfsError."""
    if arguments.peer:
        return serving.serve()
    if arguments.store is None:
        raise UsageError("give the store's directory, or where it is to be")
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(arguments.store)}: only root runs a selftest: it acts as several users")
    asked = _asked(arguments)
    prepare_for_stores()
    report = _Report(asked, as_json=arguments.json)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        run(asked, report.tell, report.begin)
    except KeyboardInterrupt:
        report.end()
        raise
    report.end()
    return CkfsError.exit_status if report.counts[Verdict.FAIL] else 0


def _asked(arguments: argparse.Namespace) -> Asked:
    hosts = [host for text in arguments.hosts for host in text.split(",") if host]
    for host in hosts:
        if not is_host(host):
            raise UsageError(f"--hosts {shown(host)}: not the name of a host")
    if not _SHORTEST_S <= arguments.timeout <= _LONGEST_S:
        raise UsageError(f"--timeout {arguments.timeout:g}: give {_SHORTEST_S:g} to {_LONGEST_S:g} seconds")
    return Asked(
        store=os.path.abspath(arguments.store),
        users=_users(arguments.users),
        hosts=tuple(hosts),
        others=tuple(map(os.path.abspath, arguments.other)),
        engine=arguments.engine,
        limited=None if arguments.limited is None else _user(arguments.limited),
        timeout_s=arguments.timeout,
        only=_only(arguments.only),
    )


def _only(text: str | None) -> tuple[str, ...]:
    names = tuple(name for name in (text or "").split(",") if name)
    for name in names:
        if name.partition(".")[0] not in groups():
            raise UsageError(
                f"--only {shown(name)}: there are {', '.join(groups())}, and the checks in these"
            )
    return names


def _users(text: str | None) -> tuple[Owner, Owner]:
    if text is None:
        there = [name for name in _ACCOUNTS if _is_account(name)]
        if len(there) < 2:
            raise UsageError("name two users who are not root: --users NAME,NAME")
    else:
        there = text.split(",")
    users = [_user(name) for name in there[:2]]
    if len(there) < 2 or (text is not None and len(there) > 2) or len({user.uid for user in users} - {0}) < 2:
        raise UsageError(f"--users {shown(text or '')}: give two different users who are not root")
    return users[0], users[1]


def _is_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _user(name: str) -> Owner:
    """A user's group is that of his account; of a bare number, the same number."""
    uid = uid_of(name)
    try:
        return Owner(Uid(uid), Gid(pwd.getpwuid(uid).pw_gid))
    except KeyError:
        return Owner(Uid(uid), Gid(uid))


@dataclass(slots=True)
class _Report:
    asked: Asked
    as_json: bool
    counts: Counter[Verdict] = field(default_factory=Counter)
    _about: About | None = None
    _outcomes: list[Outcome] = field(default_factory=list)

    def begin(self, about: About) -> None:
        self._about = about
        if not self.as_json:
            print(
                f"ckfs {__version__} on {shown(socket.gethostname())}: {shown(self.asked.store)}, {about.kind} ({about.source})"
            )

    def tell(self, outcome: Outcome) -> None:
        """A line at once: some checks take a while."""
        self.counts[outcome.verdict] += 1
        self._outcomes.append(outcome)
        if not self.as_json:
            mend = f" -> {outcome.mend}" if outcome.mend else ""
            print(
                f"{outcome.verdict.value:<9}  {outcome.check:<24}  {shown(outcome.says)}{shown(mend)}",
                flush=True,
            )

    def end(self) -> None:
        if not self.as_json:
            print("; ".join(f"{verdict.value}: {self.counts[verdict]}" for verdict in Verdict))
            return
        worst = next((one for one in (Verdict.FAIL, Verdict.WARN) if self.counts[one]), Verdict.OK)
        document = {
            "version": __version__,
            "node": socket.gethostname(),
            "store": shown(self.asked.store),
            "file_system": None if self._about is None else asdict(self._about),
            "peers": [*self.asked.others, *self.asked.hosts],
            "verdict": worst.value,
            "counts": {verdict.value: self.counts[verdict] for verdict in Verdict},
            "checks": [encoded(outcome) for outcome in self._outcomes],
        }
        print(json.dumps(document, indent=1))
