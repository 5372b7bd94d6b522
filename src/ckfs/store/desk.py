"""What commands ask of the trash: root of the store itself, users of a mount's daemon. What comes back is plain to print.

A user sees, restores and purges what was in sets of his own, and hears of nothing else. What he restores obeys the rules
for whoever makes something by the file system's calls. All calls are synchronous, for worker threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckfs.errors import Denied, FsError
from ckfs.model import Caller, Owner
from ckfs.names import SetName, shown
from ckfs.policy import ownership
from ckfs.policy.settings import Policy
from ckfs.store import walks
from ckfs.store.choosing import Choice, Entry
from ckfs.store.entries import SetEntry
from ckfs.store.layout import Store
from ckfs.store.removed import Damaged, Item, Note
from ckfs.store.restoring import WAY_OUT, Failure, exists_again, others_by_now
from ckfs.store.trash import described

NOTHING_THERE = "there is nothing of that in the trash: see 'ckfs trash ls'"


@dataclass(frozen=True, slots=True)
class Row:
    """An item, with names as they are shown. Of a damaged one only *item*, *size_bytes*, *removed_ns* (about), *damaged*
    (why) and *lies_at* are known."""

    item: str
    kind: str
    set: str
    path: str
    uid: int | None
    state: str
    size_bytes: int
    removed_ns: int
    removed_by_uid: int | None
    node: str
    program: str
    damaged: str | None
    lies_at: str
    kept_until_ns: int | None
    """When it goes for good by itself, if not sooner for want of room; None where nobody can say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of *item*: a line to print. One that *failed* stays in the trash, and *text* says why."""

    item: str
    text: str
    failed: bool = False
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Desk:
    store: Store
    policy: Policy
    caller: Caller
    retention_s: float | None
    """For how long the trash keeps; None if the store's policy cannot be read."""

    # Looking

    def found(self, choice: Choice) -> Iterator[Entry | None]:
        """What fits, and that *caller* may see; None for each item that is passed over, so that a long search can be made
        in pieces."""
        for entry in self._entries():
            yield entry if self._is_seen(entry) and choice.fits(entry) else None

    def _entries(self) -> Iterator[Entry]:
        if self.caller.is_root:
            yield from self.store.trash.items()
            return
        # Until its files have followed to him, the service account keeps the files of a set that he was given.
        for uid in dict.fromkeys((self.caller.uid, self.store.service.uid)):
            yield from self.store.trash.items(uid)

    def _is_seen(self, entry: Entry) -> bool:
        if self.caller.is_root:
            return True
        return (
            isinstance(entry, Item)
            and entry.note.owner is not None
            and entry.note.owner.uid == self.caller.uid
        )

    def rows(self, choice: Choice) -> Iterator[Row | None]:
        """A row for each that is chosen, in no order; None as in :meth:`found`."""
        named: list[Entry] = []
        for entry in self.found(choice):
            if entry is None or choice.tokens:
                named += [] if entry is None else [entry]
                yield None
            else:
                yield self._row(entry)
        yield from map(self._row, choice.of(named))

    def _row(self, entry: Entry) -> Row:
        lies_at = shown(self.store.path_of(entry.spot))
        token, size_bytes = shown(entry.token), self._size_of(entry)
        kept_until_ns = None if self.retention_s is None else entry.when_ns + int(self.retention_s * 1e9)
        if isinstance(entry, Damaged):
            known = (size_bytes, entry.when_ns, None, "-", "-", entry.reason, lies_at, kept_until_ns)
            return Row(token, "-", "", "", None, "-", *known)
        note, record = entry.note, entry.found.record
        return Row(
            item=token,
            kind="set" if not note.path else "directory" if record.is_directory else "image",
            set=shown(note.set_name),
            path=shown(note.path),
            uid=None if note.owner is None else note.owner.uid,
            state="-" if record.is_directory else record.state.value,
            size_bytes=size_bytes,
            removed_ns=entry.when_ns,
            removed_by_uid=note.uid,
            node=shown(note.node) or "-",
            program=shown(note.program) or "-",
            damaged=None,
            lies_at=lies_at,
            kept_until_ns=kept_until_ns,
        )

    def _size_of(self, entry: Entry) -> int:
        """Bytes of content; 0 where that cannot be looked at, or has just gone."""
        with contextlib.suppress(OSError, FsError, RecursionError):
            if isinstance(entry, Damaged):
                return self.store.trash.bytes_of(entry)
            if not entry.found.record.is_directory:
                return entry.found.stat.st_size
            return sum(found.stat.st_size for _, found in walks.files(self.store.door, entry.spot))
        return 0

    # Restoring

    def restore(self, name: SetName, group: Sequence[Entry], job_owner: Owner | None = None) -> list[Outcome]:
        """Put *group*, of one set unless *name* is another, into the set *name*. *job_owner*: whose job it is the name of,
        if anybody knows."""
        outcomes = [
            _failed(entry, f"{entry.reason}: copy it out of the store by hand (see ckfs trash show)")
            for entry in group
            if isinstance(entry, Damaged)
        ]
        latest, older = _latest([entry for entry in group if isinstance(entry, Item)])
        way_out = "an older one of the same name stays in the trash: restore it with --to SET"
        outcomes += [_failed(item, way_out) for item in older]
        refused = list(self._refused(latest, name, job_owner))
        failed = {item.token: error for item, error in refused}
        failures = self._attempt([item for item in latest if item.token not in failed], name)
        failed |= {item.token: error for item, error in failures}
        for item in latest:
            if item.token in failed:
                outcomes.append(_failed(item, _reason(failed[item.token])))
                continue
            place = shown(b"/".join(filter(None, (name, item.note.path))))
            outcomes.append(Outcome(shown(item.token), f"{shown(item.token)}: restored as {place}"))
        return outcomes

    def _attempt(self, items: Sequence[Item], name: SetName) -> list[Failure]:
        """Those that could not be restored; all of them if not even their set could be."""
        if not items:
            return []
        try:
            return self.store.trash.restore_together(items, name)
        except (FsError, OSError) as error:
            return [(item, error) for item in items]

    def _refused(self, items: Sequence[Item], name: SetName, job_owner: Owner | None) -> Iterator[Failure]:
        """Those that a user may not put there."""
        if self.caller.is_root:
            return
        entry = self._entry(name)
        for item in items:
            try:
                self._check(item, name, entry, job_owner)
            except Denied as error:
                yield item, Denied(f"{error}: {WAY_OUT}")
            except FsError as error:
                yield item, error

    def _check(self, item: Item, name: SetName, entry: SetEntry | None, job_owner: Owner | None) -> None:
        if entry is not None and not item.note.path:
            raise exists_again(name)
        if entry is not None and (entry.owner is None or entry.owner.uid != self.caller.uid):
            raise others_by_now(name)
        ownership.check_restore_way(self.policy, item.note.set_name, name)
        if entry is None:
            ownership.check_take(self.policy, name, self.caller, job_owner)
        ownership.check_restore_of(
            item.found.record, self.caller, in_directory=_may_have_been_in_directory(item.note)
        )

    def _entry(self, name: SetName) -> SetEntry | None:
        with contextlib.suppress(FileNotFoundError):
            return self.store.names.examine(name)[0]
        return None

    # Removing for good

    def purge(self, entry: Entry) -> Outcome | None:
        """None if somebody else was first."""
        try:
            freed = self.store.trash.purge(entry)
        except FileNotFoundError:
            return None
        except (FsError, OSError) as error:
            return _failed(entry, _reason(error))
        return Outcome(shown(entry.token), f"removed for good: {described(entry)}", freed_bytes=freed)


def _may_have_been_in_directory(note: Note) -> bool:
    """A note that was too long has lost its program, then its directories."""
    return b"/" in note.path or (note.path != b"" and not note.program)


def groups(entries: Sequence[Entry], to: SetName | None) -> list[tuple[SetName, list[Entry]]]:
    """What is restored together, and into which set: all into *to*, or what was in one set into that."""
    by_set: dict[SetName, list[Entry]] = {}
    for entry in entries:
        of_it = SetName(b"") if isinstance(entry, Damaged) else entry.note.set_name
        by_set.setdefault(of_it if to is None else to, []).append(entry)
    return list(by_set.items())


def _latest(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Of those that were at the same path the one that was removed last, and the others."""
    by_path: dict[bytes, Item] = {}
    for item in sorted(items, key=lambda item: item.when_ns):
        by_path[item.note.path] = item
    latest = {item.spot: item for item in by_path.values()}  # there may be very many
    return list(latest.values()), [item for item in items if item.spot not in latest]


def _failed(entry: Entry, why: str) -> Outcome:
    return Outcome(shown(entry.token), why, failed=True)


def _reason(error: FsError | OSError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
