"""The trash and what is staged: what lies there is told, and never removed by fsck."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from functools import partial

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store import removed
from ckfs.store.checking.areas import Area
from ckfs.store.checking.below import Tree
from ckfs.store.checking.findings import Finding, Kind, Suspect
from ckfs.store.checking.naming import close_user_directory, give_user_directory
from ckfs.store.checking.survey import is_users_name
from ckfs.store.checking.walking import Directory, Seen, is_usable, look, reach
from ckfs.store.entries import decode
from ckfs.store.realms import STAGING, Arrangement, Components

_PURGED = b".purged"
_HOUR_S = 3600


def trash(area: Area) -> Iterator[Suspect]:
    for user, seen in _users(area):
        if not seen.is_directory or not is_users_name(user):
            if (
                area.arrangement is Arrangement.SHARED
            ):  # else it is a stranger among users, which is said of it
                yield Suspect(Finding(Kind.TRASH_STRANGER, seen.path))
            continue
        uid = Uid(int(user))
        yield from _own_directory(area, area.arrangement.trash(uid), uid)
        yield from _items(area, area.arrangement.trash(uid))
        if area.arrangement is Arrangement.REALMS:
            yield from _own_directory(area, area.arrangement.staging(uid), uid)


def _users(area: Area) -> Iterator[tuple[bytes, Seen]]:
    """What is in the directory that has a name for each user's trash."""
    above = area.arrangement.of_trash()
    with area.root() as root:
        try:
            directory = root.inside(*above)
        except FileNotFoundError:  # made at the first removal
            return
        with directory:
            for user in directory.names():
                try:
                    yield user, look(directory, user, [area.path(*above)])
                except FileNotFoundError:
                    continue


def _own_directory(area: Area, where: Components, uid: Uid) -> Iterator[Suspect]:
    *above, name = where
    path = area.path(*where)
    try:
        with area.root() as root, root.inside(*above) as directory:
            status = look(directory, name, []).status
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield Suspect(Finding(Kind.UNREADABLE, path, error.strerror or str(error)))
        return
    if status.st_uid != uid:
        finding = Finding(Kind.USER_OWNER, path, f"but to uid {status.st_uid}")
        yield Suspect(finding, partial(give_user_directory, area, where))
    if status.st_mode & 0o777 != 0o700:
        finding = Finding(Kind.USER_MODE, path, f"{status.st_mode & 0o7777:04o}")
        yield Suspect(finding, partial(close_user_directory, area, where))


def _items(area: Area, where: Components) -> Iterator[Suspect]:
    is_open = True
    try:
        with area.root() as root, root.inside(*where) as directory:
            is_open = is_usable(directory.status)
            for token in directory.names():
                yield from _item(area, directory, where, token)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if isinstance(error, PermissionError) and not is_open:  # its mode has been said to be wrong
            return
        yield Suspect(Finding(Kind.UNREADABLE, area.path(*where), error.strerror or str(error)))


def _item(area: Area, directory: Directory, where: Components, token: bytes) -> Iterator[Suspect]:
    path = area.path(*where, token)
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


def trees_in_trash(area: Area) -> Iterator[Tree]:
    """What lies in the trash; its files belong to that user, and to the group that their set had."""
    for user, seen in _users(area):
        if not seen.is_directory or not is_users_name(user):
            continue
        stored = Owner(Uid(int(user)), Gid(seen.status.st_gid))
        where = area.arrangement.trash(stored.uid)
        try:
            with area.root() as root, root.inside(*where) as directory:
                tokens = [token for token in directory.names() if not token.endswith(_PURGED)]
        except OSError:  # said of the items
            continue
        for token in tokens:
            yield Tree(area, (*where, token), stored, any_group=True)


def staging(area: Area) -> Iterator[Suspect]:
    yield from _staged(area, (STAGING,))
    if area.arrangement is Arrangement.REALMS:
        for user, seen in _users(area):
            if seen.is_directory and is_users_name(user):
                yield from _staged(area, area.arrangement.staging(Uid(int(user))))


def _staged(area: Area, where: Components) -> Iterator[Suspect]:
    try:
        with area.root() as root, root.inside(*where) as directory:
            for name in directory.names():
                try:
                    status = directory.status_of(name)
                except FileNotFoundError:
                    continue
                age = f"for {max(0.0, time.time() - status.st_ctime) / _HOUR_S:.1f} hours"
                what = f"{_what(directory, name, status)}, {age}"
                yield Suspect(Finding(Kind.STAGING_LEFT, area.path(*where, name), what))
    except (FileNotFoundError, NotADirectoryError):
        return


def _what(directory: Directory, name: bytes, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        try:
            entry = decode(reach(directory.owner, lambda: os.readlink(name, dir_fd=directory.fd)))
        except OSError:
            return "an entry that cannot be read"
        return f"an entry of the set {entry.ino:x}"
    if name.startswith(b"copying-"):
        return "the lock of a copy to a new owner"
    if name.startswith(b"locks-"):
        return "what programs lock on a file"
    return f"a file of uid {status.st_uid}"
