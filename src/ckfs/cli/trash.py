"""``ckfs trash``: what was removed from a store, for root. It works on the store itself, whatever is mounted."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import pwd
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from ckfs.cli.choice import choice_of, named
from ckfs.daemon.mounting import FILE_SYSTEM, mounts
from ckfs.errors import CkfsError, FsError, NotPermitted, StoreUnusable, UsageError
from ckfs.model import Owner
from ckfs.names import NAME_MAX, Gid, SetName, Uid, shown
from ckfs.store.identity import prepare_process
from ckfs.store.layout import Store, open_store
from ckfs.store.removed import Damaged, Item
from ckfs.store.restoring import Failure
from ckfs.store.trash import described

_DEEPEST_CALLS = 3_000
"""Users make trees of any depth; one that is deeper is left alone, and said so."""


@dataclass(frozen=True, slots=True)
class Row:
    """An item, as ``--json`` shows it. Of a damaged one only *item*, *size_bytes*, *removed_at* (about) and *damaged*
    (why) are known. *kept_until* is when it goes for good by itself, if not sooner for want of room; None if the policy cannot be read."""

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


def run(arguments: argparse.Namespace) -> int:
    """Do what *arguments* say. Returns the exit status; raises CkfsError."""
    if os.geteuid() != 0:
        raise NotPermitted("the trash is in the store, which only root reaches: ask an admin to restore")
    actions: dict[str, Callable[[Store, argparse.Namespace], int]] = {
        "ls": _list,
        "show": _show,
        "restore": _restore,
        "purge": _purge,
    }
    prepare_process()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each level of a tree
    sys.setrecursionlimit(_DEEPEST_CALLS)
    path = _store_path(arguments.store)
    read_only = arguments.action in ("ls", "show")
    with contextlib.closing(open_store(path, service_of(path), read_only=read_only)) as store:
        try:
            return actions[arguments.action](store, arguments)
        except FsError as error:
            raise CkfsError(str(error)) from None
        except OSError as error:
            raise StoreUnusable(f"{shown(path)}: {error.strerror or error}") from None
        except RecursionError:
            raise CkfsError(f"{shown(path)}: a tree in its trash is deeper than ckfs walks") from None


# Which store


def _store_path(path: str | None) -> str:
    """The store that *path* is, or whose mount it is on; or the one that is mounted on this host."""
    mounted = {
        os.fsdecode(place.path): os.fsdecode(place.source) for place in mounts() if place.kind == FILE_SYSTEM
    }
    if path is None:
        return _only_one(list(dict.fromkeys(mounted.values())))
    # A mount comes first: what users put on it may look like a store.
    above = os.path.realpath(path)
    while above not in mounted:
        if above == "/":
            return path
        above = os.path.dirname(above)
    return mounted[above]


def _only_one(stores: list[str]) -> str:
    if not stores:
        raise UsageError("no ckfs is mounted on this host: name a store with --store PATH")
    if len(stores) > 1:
        raise UsageError(f"{len(stores)} stores are mounted on this host: name one of them with --store PATH")
    return stores[0]


def service_of(path: str) -> Owner:
    """Who keeps the store at *path*, so that what root makes there is the mounts' too."""
    with contextlib.suppress(OSError):
        status = os.stat(os.path.join(path, "names"), follow_symlinks=False)
        return Owner(Uid(status.st_uid), Gid(status.st_gid))
    return Owner(Uid(0), Gid(0))


# Looking


def _list(store: Store, arguments: argparse.Namespace) -> int:
    choice = choice_of(arguments)
    entries = sorted(filter(choice.fits, store.trash.items()), key=lambda entry: entry.when_ns)
    if arguments.json:
        print(json.dumps([asdict(row) for row in _rows(store, entries)], indent=1))
        return 0
    print(
        f"{'ITEM':<16}  {'REMOVED':<19}  {'KEPT UNTIL':<16}  {'BY':<12} {'OWNER':<12} {'SIZE':>14}  {'NODE':<12}  NAME"
    )
    for entry, row in zip(entries, _rows(store, entries), strict=False):
        name = f"({row.damaged})" if row.damaged else row.set + (f"/{row.path}" if row.path else "")
        when = _local(entry.when_ns, "%Y-%m-%d %H:%M:%S")
        until = "-" if row.kept_until is None else row.kept_until[:16].replace("T", " ")
        print(
            f"{row.item:<16}  {when:<19}  {until:<16}  {row.removed_by:<12} {row.owner:<12} {row.size_bytes:>14}"
            f"  {row.node:<12}  {name}"
        )
    return 0


def _rows(store: Store, entries: Sequence[Item | Damaged]) -> Iterator[Row]:
    retention_ns = _retention_ns(store)
    return (_row(store, entry, retention_ns) for entry in entries)


def _retention_ns(store: Store) -> int | None:
    """None if the policy cannot be read: a mistake in it keeps nobody from his images."""
    with contextlib.suppress(StoreUnusable):
        return int(store.read_policy().retention_s * 1e9)
    return None


def _show(store: Store, arguments: argparse.Namespace) -> int:
    (entry,) = named(list(store.trash.items()), [arguments.item])
    (row,) = _rows(store, [entry])
    for key, value in asdict(row).items():
        if value is not None:
            print(f"{key + ':':<16}{value}")
    print(f"{'lies_at:':<16}{shown(os.fsencode(store.path) + b'/' + b'/'.join(entry.spot.components))}")
    return 0


def _row(store: Store, entry: Item | Damaged, retention_ns: int | None) -> Row:
    removed_at = _local(entry.when_ns, "")
    kept_until = None if retention_ns is None else _local(entry.when_ns + retention_ns, "")
    if isinstance(entry, Damaged):
        unknown = ("", "", "-", None, "-")
        size_bytes = _size_of(store, entry)
        token = shown(entry.token)
        return Row(
            token, "-", *unknown, size_bytes, removed_at, "-", None, "-", "-", kept_until, entry.reason
        )
    note, record = entry.note, entry.found.record
    return Row(
        item=shown(entry.token),
        kind="set" if not note.path else "directory" if record.is_directory else "image",
        set=shown(note.set_name),
        path=shown(note.path),
        owner="-" if note.owner is None else _user_name(note.owner.uid),
        uid=None if note.owner is None else note.owner.uid,
        state="-" if record.is_directory else record.state.value,
        size_bytes=_size_of(store, entry),
        removed_at=removed_at,
        removed_by=_user_name(note.uid),
        removed_by_uid=note.uid,
        node=shown(note.node) or "-",
        program=shown(note.program) or "-",
        kept_until=kept_until,
        damaged=None,
    )


def _size_of(store: Store, entry: Item | Damaged) -> int:
    """Bytes of content; 0 where that cannot be looked at, or has just gone."""
    with contextlib.suppress(OSError, FsError, RecursionError):
        if isinstance(entry, Damaged):
            return store.trash.bytes_of(entry)
        if not entry.found.record.is_directory:
            return entry.found.stat.st_size
        return sum(found.stat.st_size for _, found in store.door.files_below(entry.spot))
    return 0


def _local(when_ns: int, form: str) -> str:
    """In this host's time; ISO 8601 with its zone for an empty *form*."""
    try:
        when = dt.datetime.fromtimestamp(when_ns // 1_000_000_000).astimezone()
    except (OSError, OverflowError, ValueError):
        return "-"
    return when.strftime(form) if form else when.isoformat()


def _user_name(uid: int) -> str:
    try:
        return shown(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


# Changing


def _chosen(store: Store, arguments: argparse.Namespace) -> list[Item | Damaged]:
    choice = choice_of(arguments)
    entries = list(store.trash.items())
    if not arguments.items:
        return [entry for entry in entries if choice.fits(entry)]
    if not choice.is_any:
        raise UsageError("give items, or say which by --set, --owner and times; not both")
    return list(named(entries, arguments.items))


def _restore(store: Store, arguments: argparse.Namespace) -> int:
    if not arguments.items and arguments.set is None:
        raise UsageError("say what to restore: items, as 'ckfs trash ls' shows them, or --set SET")
    to = None if arguments.to is None else _set_name(arguments.to)
    chosen = _chosen(store, arguments)
    if not chosen:
        raise UsageError("there is nothing of that in the trash: see 'ckfs trash ls'")
    groups = [chosen] if to is not None else _by_set(chosen)
    return max([_restore_group(store, group, to) for group in groups])


def _by_set(entries: Sequence[Item | Damaged]) -> list[list[Item | Damaged]]:
    by_set: dict[bytes, list[Item | Damaged]] = {}
    for entry in entries:
        by_set.setdefault(b"" if isinstance(entry, Damaged) else entry.note.set_name, []).append(entry)
    return list(by_set.values())


def _restore_group(store: Store, group: Sequence[Item | Damaged], to: SetName | None) -> int:
    """Restore together what goes into one set, and say what became of each. Returns the exit status."""
    for entry in group:
        if isinstance(entry, Damaged):
            _complain(entry.token, f"{entry.reason}: copy it out of the store by hand (see ckfs trash show)")
    latest, older = _latest([entry for entry in group if isinstance(entry, Item)])
    for item in older:
        _complain(item.token, "an older one of the same name stays in the trash: restore it with --to SET")
    failed = {item.token: error for item, error in _attempt(store, latest, to)}
    for item in latest:
        if item.token in failed:
            _complain(item.token, _reason(failed[item.token]))
            continue
        names = (item.note.set_name if to is None else to, item.note.path)
        print(f"{shown(item.token)}: restored as {shown(b'/'.join(filter(None, names)))}")
    return 0 if len(latest) - len(failed) == len(group) else 1


def _attempt(store: Store, items: Sequence[Item], to: SetName | None) -> list[Failure]:
    """Those that could not be restored; all of them if not even their set could be."""
    if not items:
        return []
    try:
        return store.trash.restore_together(items, to)
    except (FsError, OSError) as error:
        return [(item, error) for item in items]


def _latest(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Of those that were at the same path the one that was removed last, and the others."""
    by_path: dict[bytes, Item] = {}
    for item in sorted(items, key=lambda item: item.when_ns):
        by_path[item.note.path] = item
    latest = list(by_path.values())
    return latest, [item for item in items if item not in latest]


def _reason(error: FsError | OSError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _complain(token: str, what: str) -> None:
    print(f"ckfs: {shown(token)}: {what}", file=sys.stderr)


def _set_name(text: str) -> SetName:
    name = os.fsencode(text)
    if name in (b"", b".", b"..") or b"/" in name or len(name) > NAME_MAX:
        raise UsageError(
            f"{shown(text)}: not a set's name: give one as it is on the mount, without directories"
        )
    return SetName(name)


def _purge(store: Store, arguments: argparse.Namespace) -> int:
    chosen_by = arguments.items or not choice_of(arguments).is_any
    if bool(chosen_by) == arguments.all:
        raise UsageError("say what to remove for good: items, --set, --owner or times; or --all")
    status = freed = count = 0
    for entry in _chosen(store, arguments):
        try:
            freed += store.trash.purge(entry)
        except FileNotFoundError:  # another was first
            continue
        except (FsError, OSError) as error:
            _complain(entry.token, _reason(error))
            status = 1
        else:
            count += 1
            print(f"removed for good: {described(entry)}")
    print(f"items removed for good: {count}; bytes freed: {freed}")
    return status
