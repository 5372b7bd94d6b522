"""The trash and ``staging/``: what lies there is told, and never removed by fsck."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from functools import partial

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store import removed
from ckfs.store.checking.below import Tree
from ckfs.store.checking.findings import Finding, Kind, Suspect
from ckfs.store.checking.naming import close_user_directory, give_user_directory
from ckfs.store.checking.survey import is_users_name
from ckfs.store.checking.walking import Directory, Seen, look, reach
from ckfs.store.entries import decode
from ckfs.store.layout import Store
from ckfs.store.setnames import STAGING
from ckfs.store.trash import TRASH

_PURGED = b".purged"
_HOUR_S = 3600


def trash(store: Store) -> Iterator[Suspect]:
    for user, seen in _users(store):
        path = TRASH + b"/" + user
        if not seen.is_directory or not is_users_name(user):
            yield Suspect(Finding(Kind.TRASH_STRANGER, path))
            continue
        if seen.status.st_uid != int(user):
            detail = f"but to uid {seen.status.st_uid}"
            yield Suspect(
                Finding(Kind.USER_OWNER, path, detail), partial(give_user_directory, store, TRASH, user)
            )
        if seen.status.st_mode & 0o777 != 0o700:
            finding = Finding(Kind.USER_MODE, path, f"{seen.status.st_mode & 0o7777:04o}")
            yield Suspect(finding, partial(close_user_directory, store, TRASH, user))
        yield from _items(seen, user)


def _users(store: Store) -> Iterator[tuple[bytes, Seen]]:
    with Directory.at(store.path) as root:
        try:
            directory = root.inside(TRASH)
        except FileNotFoundError:  # made at the first removal
            return
        with directory:
            for user in directory.names():
                try:
                    yield user, look(directory, user, [TRASH])
                except FileNotFoundError:
                    continue


def _items(user: Seen, name: bytes) -> Iterator[Suspect]:
    try:
        directory = user.directory.inside(name)
    except (FileNotFoundError, NotADirectoryError):
        return
    with directory:
        try:
            for token in directory.names():
                yield from _item(directory, name, token)
        except OSError as error:
            yield Suspect(Finding(Kind.UNREADABLE, TRASH + b"/" + name, error.strerror or str(error)))


def _item(directory: Directory, user: bytes, token: bytes) -> Iterator[Suspect]:
    path = b"/".join((TRASH, user, token))
    if token.endswith(_PURGED):
        yield Suspect(Finding(Kind.TRASH_PURGED, path))
        return
    try:
        note = directory.attribute_of(token, directory.status_of(token), removed.ATTRIBUTE)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Suspect(Finding(Kind.UNREADABLE, path, error.strerror or str(error)))
        return
    if note is None or removed.decode(note) is None:
        yield Suspect(Finding(Kind.TRASH_UNKNOWN, path))


def trees_in_trash(store: Store) -> Iterator[Tree]:
    """What lies in the trash; its files belong to that user, and to the group that their set had."""
    for user, seen in _users(store):
        if not seen.is_directory or not is_users_name(user):
            continue
        stored = Owner(Uid(int(user)), Gid(seen.status.st_gid))
        try:
            with seen.directory.inside(user) as directory:
                tokens = [token for token in directory.names() if not token.endswith(_PURGED)]
        except OSError:  # said of the items
            continue
        for token in tokens:
            yield Tree((TRASH, user, token), stored, any_group=True)


def staging(store: Store) -> Iterator[Suspect]:
    with Directory.at(store.path) as root, root.inside(STAGING) as directory:
        for name in directory.names():
            try:
                status = directory.status_of(name)
            except FileNotFoundError:
                continue
            age = f"for {max(0.0, time.time() - status.st_ctime) / _HOUR_S:.1f} hours"
            yield Suspect(
                Finding(Kind.STAGING_LEFT, STAGING + b"/" + name, f"{_what(directory, name, status)}, {age}")
            )


def _what(directory: Directory, name: bytes, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        try:
            entry = decode(reach(directory.owner, lambda: os.readlink(name, dir_fd=directory.fd)))
        except OSError:
            return "an entry that cannot be read"
        return f"an entry of the set {entry.ino:x}"
    if name.startswith(b"copying-"):
        return "the lock of a copy to a new owner"
    return f"a file of uid {status.st_uid}"
