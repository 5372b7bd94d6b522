"""``ckfs bench``: how fast a mount is, against a plain directory beside the store's own files, in one run."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import pwd
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ckfs import __version__
from ckfs.bench import ends
from ckfs.bench.ends import Asked, Begun
from ckfs.bench.figures import described, table
from ckfs.bench.place import new_token
from ckfs.bench.plan import DEFAULT, MIB, MOST_ROUNDS, QUICK, Room, Turn, plan
from ckfs.bench.runner import Results, run
from ckfs.bench.running import Refused, interrupted_once
from ckfs.cli.mounted import mount_above
from ckfs.cli.progress import Bar
from ckfs.cli.stores import prepare_for_stores
from ckfs.cli.users import uid_of, user_name
from ckfs.control.client import Unanswered, ask, daemon_pid
from ckfs.control.protocol import Values
from ckfs.daemon.mounting import Mounted, mounts
from ckfs.errors import CkfsError, MountRefused, NotMounted, NotPermitted, StoreUnusable, UsageError
from ckfs.model import Owner
from ckfs.names import ROOT_UID, Gid, Uid, shown
from ckfs.policy.sizes import shown_size, shown_span, size_of
from ckfs.store.choosing import Choice

_SILENCE_S = 5.0


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        nargs="?",
        help="a mount, or something on it; by default the only one of this host",
    )
    command.add_argument("--as", metavar="USER", dest="user", help="work as this user (root)")
    command.add_argument(
        "--control", metavar="DIR", help="compare with a directory here; by default, for root, in the store"
    )
    command.add_argument(
        "--size",
        metavar="SIZE",
        help="what is written at a time, as 400M or 2G; by default 1G, or a 16th of what is free",
    )
    command.add_argument(
        "--rounds", metavar="N", type=int, help="how often all is measured; 5 by default, 3 with --quick"
    )
    command.add_argument("--quick", action="store_true", help="at most 128M at a time, 3 rounds")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON document, and nothing else")
    how.add_argument("-q", "--quiet", action="store_true", help="the table alone: not how far it is")
    command.set_defaults(run=bench)


def bench(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises CkfsError."""
    size_bytes, rounds = _amounts(arguments)
    control = None if arguments.control is None else os.path.abspath(arguments.control)
    if control is not None and not os.path.isdir(control):
        raise UsageError(f"--control {shown(control)}: not a directory")
    mount = _mount_meant(arguments.mountpoint)
    user, is_root = _user(arguments.user), os.geteuid() == ROOT_UID
    status = _status(mount)
    if is_root:
        prepare_for_stores()
    report = _Report(status, user, is_quiet=arguments.quiet or arguments.json, as_json=arguments.json)
    with interrupted_once():
        volumes, rooms = _rooms(mount, status, user)
        sizes = QUICK if arguments.quick else DEFAULT
        asked = Asked(
            mountpoint=os.fsdecode(mount.path),
            device=_number(mount.device),
            user=user if is_root else None,
            plan=plan(rooms, sizes, size_bytes, rounds),
            token=new_token(),
            volumes=volumes,
            control=control,
        )
        report.plans(asked, rooms)
        try:
            results = run(asked, daemon_pid(mount.device), report, lambda: _purge(mount, asked.set_name))
        finally:
            report.bar.clear()
    report.end(results)
    return 0


def _amounts(arguments: argparse.Namespace) -> tuple[int | None, int | None]:
    rounds: int | None = arguments.rounds
    if rounds is not None and not 1 <= rounds <= MOST_ROUNDS:
        raise UsageError(f"--rounds {rounds}: give 1 to {MOST_ROUNDS}")
    if arguments.size is None:
        return None, rounds
    size_bytes = size_of(arguments.size) // MIB * MIB
    if size_bytes < MIB:
        raise UsageError(f"--size {shown(arguments.size)}: at least 1M, and whole MiB are written")
    return size_bytes, rounds


def _mount_meant(path: str | None) -> Mounted:
    if path is not None:
        mount = mount_above(path)
        if mount is None:
            raise NotMounted(f"{shown(path)}: not on a ckfs mount")
        return mount
    here = {mounted.path: mounted for mounted in mounts()}  # the uppermost of each place
    found = sorted((one for one in here.values() if one.is_ckfs), key=lambda one: one.path)
    if not found:
        raise UsageError("no ckfs is mounted on this host: mount one, and name it: ckfs bench MOUNTPOINT")
    if len(found) > 1:
        names = ", ".join(shown(one.path) for one in found)
        raise UsageError(
            f"{len(found)} ckfs are mounted on this host ({names}): name one: ckfs bench MOUNTPOINT"
        )
    return found[0]


def _number(device: str) -> int:
    major, minor = device.split(":")
    return os.makedev(int(major), int(minor))


def _user(name: str | None) -> Owner:
    """A user's group is that of his account; of a bare number, the same number."""
    if name is None:
        return Owner(Uid(os.geteuid()), Gid(os.getegid()))
    uid = uid_of(name)
    if os.geteuid() not in (ROOT_UID, uid):
        raise NotPermitted(f"--as {shown(name)}: only root works as somebody else")
    try:
        return Owner(Uid(uid), Gid(pwd.getpwuid(uid).pw_gid))
    except KeyError:
        return Owner(Uid(uid), Gid(uid))


def _status(mount: Mounted) -> Values:
    status, path = dict[str, object](), shown(mount.path)
    try:
        for values in ask(mount.device, "status", {}, silence_s=_SILENCE_S):
            status.update(values)
    except Unanswered as error:
        raise NotMounted(f"{path}: {error}") from None
    if status.get("read_only"):
        raise MountRefused(f"{path}: mounted read-only: name a mount that can be written")
    if not status.get("store_up"):
        raise StoreUnusable(f"{path}: its store does not answer: see 'ckfs status {path}'")
    return status


def _rooms(mount: Mounted, status: Values, user: Owner) -> tuple[tuple[str, ...], list[Room]]:
    """The directories of the store that are reached from here, by root, and what is free."""
    store, rooms = str(status["store"]), []
    for said in ask(mount.device, "room", {"uid": str(user.uid), "size_bytes": 0}):
        own, free, fits = said.get("own_bytes"), said.get("store_bytes"), said.get("fits")
        giving = said.get("giving_bytes")
        if not isinstance(free, int) or not isinstance(giving, int):
            raise CkfsError("the mount's daemon is of another version of ckfs")
        # Nothing of anybody's is to give way to a bench.
        rooms.append(Room(f"{store}, for {user_name(user.uid)}", free if fits else 0))
        if isinstance(own, int):
            rooms.append(Room(f"{user_name(user.uid)}, by his limits", max(0, own - giving)))
    if os.geteuid() != ROOT_UID:
        return (), rooms
    further = status.get("further_stores")
    paths = [one.get("path") for one in further if one.get("reached")] if isinstance(further, list) else []
    try:
        rooms.append(ends.kept_back(store))
    except Refused:  # it is not in this mount namespace
        return (), rooms
    return (store, *(str(path) for path in paths)), rooms


def _purge(mount: Mounted, set_name: str) -> None:
    """What was in the set, from the trash."""
    choice = Choice(set_name=set_name)
    fields = {"set_name": choice.set_name, "tokens": (), "all": False}
    for _ in ask(mount.device, "trash-purge", fields):
        pass


@dataclass(slots=True)
class _Report:
    """*status* is the mount's; *is_quiet*: nothing but the results."""

    status: Values
    user: Owner
    is_quiet: bool
    as_json: bool
    bar: Bar = field(default_factory=Bar)
    began: dt.datetime = field(default_factory=lambda: dt.datetime.now().astimezone())
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    _began_s: float = field(default_factory=time.monotonic)
    _asked: Asked | None = None
    _rooms: list[Room] = field(default_factory=list)
    _round: int = -1

    def plans(self, asked: Asked, rooms: list[Room]) -> None:
        self._asked, self._rooms = asked, rooms

    # What runner.Tell asks for

    def begun(self, begun: Begun) -> None:
        for line in begun.left:  # also with -q: somebody has to know
            print(f"ckfs: {line}", file=sys.stderr)

    def turn(self, turn: Turn, place: str) -> None:
        if self.is_quiet:
            return
        assert self._asked is not None
        rounds = self._asked.plan.rounds
        if self.bar.wanted:
            doing = f"round {turn.round + 1} of {rounds}: {place}: {turn.step.title}"
            self.bar.say(turn.done, turn.count, doing)
        elif turn.round != self._round:
            print(f"ckfs: bench: round {turn.round + 1} of {rounds}", file=sys.stderr, flush=True)
        self._round = turn.round

    def removes(self) -> None:
        """On a terminal, since whoever interrupts it may have to wait for that."""
        if not self.is_quiet:
            self.bar.say(1, 1, "removing what was made")

    # The end

    def end(self, results: Results) -> None:
        assert self._asked is not None
        if self.as_json:
            print(json.dumps(self._document(self._asked, results), indent=1))
            return
        for line in self._lines(self._asked, results):
            print(line)

    def _lines(self, asked: Asked, results: Results) -> list[str]:
        begun, made = results.begun, asked.plan
        took = shown_span(time.monotonic() - self._began_s)
        lines = [
            f"ckfs {__version__} on {shown(socket.gethostname())}: {shown(asked.mountpoint)},"
            f" as {user_name(self.user.uid)}: {made.rounds} rounds of {shown_size(made.size_bytes)}, {took},"
            f" load {self.load:.2f} before",
            f"store: {self.status['store']}",
            f"control: {_control(begun)}",
            "",
            *table(results.measured, control=begun.control is not None),
            "",
        ]
        if begun.control is not None:
            lines.append("RATIO: how many times as fast as the control ckfs was: the median of the rounds")
        return [*lines, f"daemon: {self._daemon(results)}"]

    def _daemon(self, results: Results) -> str:
        before, after, highest = results.before, results.after, results.highest_bytes
        if before is None or after is None or highest is None:
            return "what it takes cannot be seen from here"
        return (
            f"{shown_size(before.resident_bytes)} resident before, {shown_size(after.resident_bytes)} after,"
            f" {shown_size(highest)} at most; {after.cpu_s - before.cpu_s:.2f} s of processor time"
        )

    def _document(self, asked: Asked, results: Results) -> Mapping[str, object]:
        begun, before, after = results.begun, results.before, results.after
        return {
            "version": __version__,
            "node": socket.gethostname(),
            "mountpoint": shown(asked.mountpoint),
            "store": self.status["store"],
            "user": user_name(self.user.uid),
            "uid": self.user.uid,
            "began": self.began.isoformat(timespec="seconds"),
            "took_s": round(time.monotonic() - self._began_s, 3),
            "load_before": round(self.load, 2),
            "size_bytes": asked.plan.size_bytes,
            "rounds": asked.plan.rounds,
            "needed_bytes": asked.plan.needed_bytes,
            "free_bytes": min(room.free_bytes for room in self._rooms),
            "control": None
            if begun.control is None
            else {
                "directory": shown(begun.control),
                "file_system": begun.kind,
                "is_of_the_store": begun.is_same,
            },
            "no_control": begun.why_not or None,
            "workloads": [described(one) for one in results.measured],
            "daemon": None
            if before is None or after is None
            else {
                "cpu_s": round(after.cpu_s - before.cpu_s, 2),
                "resident_before_bytes": before.resident_bytes,
                "resident_after_bytes": after.resident_bytes,
                "resident_most_bytes": results.highest_bytes,
                "resident_peak_bytes": after.peak_bytes,
            },
            "left_overs": list(begun.left),
        }


def _control(begun: Begun) -> str:
    if begun.control is None:
        return f"none: {begun.why_not}"
    same = {
        True: "the file system of the set",
        False: "another file system than the set's",
        None: "whether it is the set's file system is not known",
    }[begun.is_same]
    return f"a directory in {shown(begun.control)}, {begun.kind}: {same}"
