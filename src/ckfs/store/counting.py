"""What an owner has in the store, counted from the store itself.

His are the sets in ``users/<uid>/`` and what is in ``trash/<uid>/``; of a set that was given to somebody and whose files have
yet to follow, the new owner is charged with the files, wherever they lie. What comes and goes while this looks is counted or not.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from ckfs.model import Owner
from ckfs.names import Gid, Inode, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, record, syscalls
from ckfs.store.entries import USERS, SetEntry
from ckfs.store.identity import acting_as
from ckfs.store.layout import Store
from ckfs.store.metering import bytes_of, rounded
from ckfs.store.realms import TRASH
from ckfs.store.spots import Spot

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (FileNotFoundError, NotADirectoryError)


def payers(store: Store) -> set[Uid]:
    """All who are charged with something in the store."""
    uids = {entry.owner.uid for entry in _followed(store) if entry.owner is not None}
    for top in (USERS, TRASH):
        with _directory(store, top) as fd:
            uids.update(Uid(int(name)) for name in _names(fd) if name.isdigit())
    return uids


def count(store: Store, uid: Uid, unit: int, passed_over: Container[Inode] = ()) -> Amount:
    """What *uid* is charged with, in allocation units of *unit* bytes, without the files *passed_over*. Raises OSError."""
    counting = _Counting(unit, passed_over)
    followed = _followed(store)
    elsewhere = {
        entry.place
        for entry in followed
        if entry.stored.uid == uid and entry.owner and entry.owner.uid != uid
    }
    owner = Owner(uid, Gid(uid))
    for top in (USERS, TRASH):
        with _directory(store, top) as top_fd, acting_as(owner), _inner(top_fd, b"%d" % uid) as fd:
            for name in _names(fd):
                if top == TRASH or name not in elsewhere:
                    counting.take(fd, name)
    for entry in followed:
        if entry.owner is not None and entry.owner.uid == uid:
            place_of = b"%d" % entry.stored.uid
            with _directory(store, USERS) as top_fd, acting_as(entry.stored), _inner(top_fd, place_of) as fd:
                counting.take(fd, entry.place)
    return counting.amount


@dataclass(slots=True)
class _Counting:
    unit: int
    passed_over: Container[Inode]
    amount: Amount = NOTHING
    _linked: set[int] = field(default_factory=set)

    def take(self, dir_fd: int, name: bytes) -> None:
        """*name* and all below it."""
        where = attributes.path_of(dir_fd, name)
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            raw = attributes.get_or_none(where, record.ATTRIBUTE)
        except _GONE:
            return
        known = None if raw is None else record.decode(raw)
        if known is None or known.ino not in self.passed_over:
            self._add(status, where)
        if stat.S_ISDIR(status.st_mode):
            with _inner(dir_fd, name) as fd:
                for inner in _names(fd):
                    self.take(fd, inner)

    def _add(self, status: os.stat_result, where: bytes) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._linked:
                return
            self._linked.add(status.st_ino)
        own = 0
        with contextlib.suppress(FileNotFoundError):
            for name in attributes.names(where):
                if name.startswith(b"user.") and name.split(b".")[1] != b"ckfs":
                    own += len(name) + len(attributes.get_or_none(where, name) or b"")
        self.amount += Amount(bytes_of(status, self.unit) + rounded(own, self.unit), 1)


def _followed(store: Store) -> list[SetEntry]:
    found = []
    for name in store.names.all():
        with contextlib.suppress(OSError):
            entry = store.names.read(name)
            if entry.is_followed:
                found.append(entry)
    return found


@contextlib.contextmanager
def _directory(store: Store, name: bytes) -> Iterator[int]:
    try:
        with store.door.opened(Spot(store.service, (name,)), _DIRECTORY) as fd:
            yield fd
    except FileNotFoundError:
        yield -1


@contextlib.contextmanager
def _inner(dir_fd: int, name: bytes) -> Iterator[int]:
    fd = -1
    if dir_fd >= 0:
        with contextlib.suppress(*_GONE):
            fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _names(fd: int) -> list[bytes]:
    return list(syscalls.names_in(fd)) if fd >= 0 else []
