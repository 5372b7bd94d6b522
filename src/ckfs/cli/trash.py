"""``ckfs trash``: what was removed. root works on the store itself, whatever is mounted; users ask a mount's daemon.

Both ways the same is chosen, shown and done, by :mod:`ckfs.store.desk`; here it is asked for, and printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from ckfs.cli.choice import add_choice, choice_of
from ckfs.cli.mounted import device_for_user, store_meant
from ckfs.cli.stores import prepare_for_stores
from ckfs.cli.tally import counted_store
from ckfs.cli.times import local_time
from ckfs.cli.users import user_name
from ckfs.control.client import ask, made
from ckfs.errors import CkfsError, FsError, StoreUnusable, UsageError
from ckfs.model import Caller
from ckfs.names import ROOT_UID, Gid, shown
from ckfs.policy import settings
from ckfs.store import desk
from ckfs.store.choosing import Choice, Entry, check_purge, check_restore
from ckfs.store.desk import Desk, Outcome, Row
from ckfs.store.layout import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shown:
    """An item, as ``--json`` shows it. Of a damaged one only *item*, *size_bytes*, *removed_at* (about) and *damaged*
    (why) are known. *kept_until* is when it goes for good by itself, if not sooner for want of room; None if the policy
    cannot be read."""

    item: str
    kind: str
    set: str
    path: str
    owner: str
    uid: int | None
    state: str
    size_bytes: int
    removed_at: str
    removed_by: str
    removed_by_uid: int | None
    node: str
    program: str
    kept_until: str | None
    damaged: str | None


class Trash(Protocol):
    """The trash, as whoever calls may see it and change it."""

    def rows(self, choice: Choice) -> Iterator[Row]: ...

    def restore(self, choice: Choice, to: str | None) -> Iterator[Outcome]: ...

    def purge(self, choice: Choice, *, everything: bool) -> Iterator[Outcome]: ...


def add_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    item = "as 'ckfs trash ls' shows it, or its beginning"

    def action(name: str, meaning: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=meaning, allow_abbrev=False)
        added.add_argument(
            "--store",
            metavar="PATH",
            help="a store, or something on a mount; by default what is mounted here",
        )
        added.set_defaults(run=_run, action=name)
        return added

    listing = action("ls", "list what was removed")
    add_choice(listing)
    listing.add_argument("--json", action="store_true", help="one JSON document")
    action("show", "all that is known of one item").add_argument("item", metavar="ITEM", help=item)
    restoring = action("restore", "put items back")
    add_choice(restoring)
    restoring.add_argument("items", metavar="ITEM", nargs="*", help=item)
    where = restoring.add_mutually_exclusive_group()
    where.add_argument("--to", metavar="SET", help="as, or into, the set of this name")
    where.add_argument("--put-back", action="store_true", help="where they were; the default")
    purging = action("purge", "remove items for good")
    add_choice(purging)
    purging.add_argument("items", metavar="ITEM", nargs="*", help=item)
    purging.add_argument("--all", action="store_true", help="all that there is")


def _run(arguments: argparse.Namespace) -> int:
    """Do what *arguments* say. Returns the exit status; raises CkfsError."""
    actions: dict[str, Callable[[Trash, argparse.Namespace], int]] = {
        "ls": _list,
        "show": _show,
        "restore": _restore,
        "purge": _purge,
    }
    action = actions[arguments.action]
    if os.geteuid() != ROOT_UID:
        return action(_Asked(device_for_user(arguments.store)), arguments)
    path = store_meant(arguments.store)
    with _opened(path, read_only=arguments.action in ("ls", "show")) as trash:
        try:
            return action(trash, arguments)
        except FsError as error:
            raise CkfsError(str(error)) from None
        except OSError as error:
            raise StoreUnusable(f"{shown(path)}: {error.strerror or error}") from None
        except RecursionError:
            raise CkfsError(f"{shown(path)}: a tree in its trash is deeper than ckfs walks") from None


# On the store


@dataclass(frozen=True, slots=True)
class _OnStore:
    desk: Desk

    def rows(self, choice: Choice) -> Iterator[Row]:
        return _there(self.desk.rows(choice))

    def restore(self, choice: Choice, to: str | None) -> Iterator[Outcome]:
        target = check_restore(choice, to)
        chosen = self._chosen(choice)
        if not chosen:
            raise UsageError(desk.NOTHING_THERE)
        for name, group in desk.groups(chosen, target):
            yield from self.desk.restore(name, group)

    def purge(self, choice: Choice, *, everything: bool) -> Iterator[Outcome]:
        check_purge(choice, everything=everything)
        return _there(self.desk.purge(entry) for entry in self._chosen(choice))

    def _chosen(self, choice: Choice) -> list[Entry]:
        return choice.of(list(_there(self.desk.found(choice))))


def _there(steps: Iterator[T | None]) -> Iterator[T]:
    return (value for value in steps if value is not None)


@contextlib.contextmanager
def _opened(path: str, *, read_only: bool) -> Iterator[Trash]:
    prepare_for_stores()
    root = Caller(ROOT_UID, Gid(0), 0, 0o077)
    with counted_store(path, read_only=read_only) as store:
        # What root does here asks for no policy: a mistake in it must not keep anybody from his images.
        yield _OnStore(Desk(store, settings.parse(""), root, _retention_s(store)))


def _retention_s(store: Store) -> float | None:
    with contextlib.suppress(StoreUnusable):
        return store.read_policy().retention_s
    return None


# Through a mount's daemon


@dataclass(frozen=True, slots=True)
class _Asked:
    device: str

    def rows(self, choice: Choice) -> Iterator[Row]:
        return (made(Row, said) for said in ask(self.device, "trash-ls", asdict(choice)))

    def restore(self, choice: Choice, to: str | None) -> Iterator[Outcome]:
        said_of_all = ask(self.device, "trash-restore", {**asdict(choice), "to": to})
        return (made(Outcome, said) for said in said_of_all)

    def purge(self, choice: Choice, *, everything: bool) -> Iterator[Outcome]:
        said_of_all = ask(self.device, "trash-purge", {**asdict(choice), "all": everything})
        return (made(Outcome, said) for said in said_of_all)


# Looking


def _list(trash: Trash, arguments: argparse.Namespace) -> int:
    rows = sorted(trash.rows(choice_of(arguments)), key=lambda row: row.removed_ns)
    if arguments.json:
        print(json.dumps([asdict(_shown(row)) for row in rows], indent=1))
        return 0
    print(
        f"{'ITEM':<16}  {'REMOVED':<19}  {'KEPT UNTIL':<16}  {'BY':<12} {'OWNER':<12} {'SIZE':>14}  {'NODE':<12}  NAME"
    )
    for row in rows:
        item = _shown(row)
        name = f"({row.damaged})" if row.damaged else row.set + (f"/{row.path}" if row.path else "")
        when = local_time(row.removed_ns, "%Y-%m-%d %H:%M:%S")
        until = "-" if row.kept_until_ns is None else local_time(row.kept_until_ns, "%Y-%m-%d %H:%M")
        print(
            f"{row.item:<16}  {when:<19}  {until:<16}  {item.removed_by:<12} {item.owner:<12} {row.size_bytes:>14}  {row.node:<12}  {name}"
        )
    return 0


def _show(trash: Trash, arguments: argparse.Namespace) -> int:
    (row,) = trash.rows(Choice(tokens=(arguments.item,)))
    for key, value in asdict(_shown(row)).items():
        if value is not None:
            print(f"{key + ':':<16}{value}")
    print(f"{'lies_at:':<16}{row.lies_at}")
    return 0


def _shown(row: Row) -> Shown:
    """*row* with names of users and times as they are on this host."""
    known = asdict(row)
    del known["removed_ns"], known["kept_until_ns"], known["lies_at"]
    return Shown(
        **known,
        owner="-" if row.uid is None else user_name(row.uid),
        removed_at=local_time(row.removed_ns, ""),
        kept_until=None if row.kept_until_ns is None else local_time(row.kept_until_ns, ""),
        removed_by="-" if row.removed_by_uid is None else user_name(row.removed_by_uid),
    )


# Changing


def _restore(trash: Trash, arguments: argparse.Namespace) -> int:
    status = 0
    for outcome in trash.restore(choice_of(arguments), arguments.to):
        status = max(status, _told(outcome))
    return status


def _purge(trash: Trash, arguments: argparse.Namespace) -> int:
    status = freed = count = 0
    for outcome in trash.purge(choice_of(arguments), everything=arguments.all):
        status = max(status, _told(outcome))
        freed += outcome.freed_bytes
        count += not outcome.failed
    print(f"items removed for good: {count}; bytes freed: {freed}")
    return status


def _told(outcome: Outcome) -> int:
    """Print what became of an item. Returns the exit status for it."""
    if not outcome.failed:
        print(outcome.text)
        return 0
    print(f"ckfs: {outcome.item}: {outcome.text}", file=sys.stderr)
    return CkfsError.exit_status
