"""``ckfs gc``: what was left behind in a store, for root; to the trash with ``--apply``. It works on the store itself, whatever
is mounted."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from ckfs.cli.stores import check_is_no_mount, prepare_for_stores
from ckfs.cli.tally import counted_store
from ckfs.cli.times import local_time
from ckfs.cli.users import user_name
from ckfs.errors import CkfsError, FsError, NotPermitted, StoreUnusable
from ckfs.fs.chores import Marks
from ckfs.fs.liveness import Judge
from ckfs.model import JobFate
from ckfs.names import SetName, shown
from ckfs.owners.jobs import job_of
from ckfs.owners.lookup import Users
from ckfs.policy.leftovers import Kind
from ckfs.policy.settings import Policy
from ckfs.store.layout import Store
from ckfs.store.leftovers import Leftover, Leftovers, Look

_WHY = {
    Kind.TEMPORARY: "nobody writes it any more, and it never got its final name",
    Kind.UNCLAIMED: "it belongs to nobody",
    Kind.PLACE: "a set that was being made, and never got its name",
    Kind.UNFINISHED: "it was being made by a mount that died",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A leftover, as ``--json`` shows it. *path* is empty for a whole set; *item* what it is in the trash, null if it is not."""

    kind: str
    set: str
    path: str
    owner: str
    uid: int | None
    size_bytes: int
    unchanged_since: str
    reason: str
    item: str | None


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("--apply", action="store_true", help="move it to the trash")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(
        run=lambda arguments: gc(arguments.store, apply=arguments.apply, as_json=arguments.json)
    )


def gc(path: str, *, apply: bool, as_json: bool) -> int:
    """List what was left behind in the store at *path*; *apply* moves it to the trash. Returns the exit status; raises
    CkfsError."""
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(path)}: only root clears up a store")
    logging.basicConfig(format="ckfs: %(message)s")  # what resolvers have to say, on standard error
    prepare_for_stores()
    check_is_no_mount(path)
    with counted_store(path, read_only=not apply) as store:
        policy = store.read_policy()
        collection = _Collection(store, policy, Users(policy), apply=apply, as_json=as_json)
        try:
            return collection.run()
        except OSError as error:
            raise StoreUnusable(f"{shown(path)}: {error.strerror or error}") from None


@dataclass(slots=True)
class _Collection:
    store: Store
    policy: Policy
    users: Users
    apply: bool
    as_json: bool
    rows: list[Row] = field(default_factory=list)
    status: int = 0
    leftovers: Leftovers = field(init=False)

    def __post_init__(self) -> None:
        judge = Judge(self.store.mounts)
        marks = Marks(self.store.door, lambda mount: judge.fate(mount, self.policy.lease_s))
        self.leftovers = Leftovers(self.store, self.policy, marks)

    def run(self) -> int:
        silence = self.users.why_never_gone() if self.policy.gc.job_gone_s else None
        if silence is not None:
            self._complain(
                f"nobody on this host can tell that a job is gone, so their sets are left out: {silence}"
            )
        for name in self.leftovers.sets():
            with self._going_on(shown(name)):
                self._of_set(name)
        for left in [*self.leftovers.places(), *self.leftovers.unfinished()]:
            with self._going_on(str(left)):
                self._tell(left, JobFate.UNKNOWN)
        self._end()
        return self.status

    def _of_set(self, name: SetName) -> None:
        look = self.leftovers.look(name)
        if look is None:
            return
        for left in self.leftovers.judge(look, self._fate(look)):
            # Asked again right before: it may have come to be known since.
            self._tell(left, self._fate(look) if self.apply else JobFate.UNKNOWN)

    def _fate(self, look: Look) -> JobFate:
        if not self.leftovers.depends_on_job(look):
            return JobFate.UNKNOWN
        return self.users.fate_of_set(look.facts.name)

    def _tell(self, left: Leftover, fate: JobFate) -> None:
        item = None
        if self.apply:
            taken = self.leftovers.take(left, fate, os.fsencode(os.uname().nodename))
            if taken is None:
                self._complain(f"{left}: stays, since somebody is at it by now")
                return
            item = shown(taken.token)
        row = _row(left, item)
        self.rows.append(row)
        if not self.as_json:
            print(_line(row), flush=True)

    def _end(self) -> None:
        if self.as_json:
            print(json.dumps([asdict(row) for row in self.rows], indent=1))
        elif not self.rows:
            print("nothing was left behind")
        elif not self.apply:
            print(f"leftovers: {len(self.rows)}; with --apply they are moved to the trash")

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """What cannot be looked at or moved is named, and the rest is done."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (OSError, FsError, RecursionError) as error:
            reason = "deeper than ckfs walks" if isinstance(error, RecursionError) else _reason(error)
            self._complain(f"{what}: {reason}")
            self.status = CkfsError.exit_status

    @staticmethod
    def _complain(what: str) -> None:
        sys.stdout.flush()
        print(f"ckfs: {what}", file=sys.stderr)


def _row(left: Leftover, item: str | None) -> Row:
    return Row(
        kind=left.kind.value,
        set=shown(left.name),
        path=shown(left.path),
        owner="-" if left.owner is None else user_name(left.owner.uid),
        uid=None if left.owner is None else left.owner.uid,
        size_bytes=left.size_bytes,
        unchanged_since=local_time(left.touched_ns),
        reason=_WHY.get(left.kind) or f"job {job_of(left.name)} is gone",
        item=item,
    )


def _line(row: Row) -> str:
    name = f"{row.set}/{row.path}" if row.path else row.set
    done = "" if row.item is None else f"moved to the trash, item {row.item}: "
    return (
        f"{name}: {done}{row.kind}: {row.reason}; unchanged since {row.unchanged_since},"
        f" {row.size_bytes} bytes, owner {row.owner}"
    )


def _reason(error: OSError | FsError | RecursionError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
