"""``ckfs ls``: sets and images, from a mount, or by root from a bare store."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import xattr

from ckfs.daemon.mounting import FILE_SYSTEM, mounts
from ckfs.errors import NotPermitted, StoreUnusable, UsageError
from ckfs.model import State
from ckfs.names import SetName, shown
from ckfs.store.door import Found
from ckfs.store.layout import Store, open_store
from ckfs.store.setnames import SetEntry


@dataclass(frozen=True, slots=True)
class Row:
    """A set (*image* empty) or an image in it. Size in bytes, *modified* in seconds since the epoch."""

    set: str
    image: str
    owner: str
    uid: int | None
    state: str
    size_bytes: int
    modified: float
    written_by: str


def list_sets(path: str | None, *, as_json: bool) -> int:
    """Print what is at *path*, or on this host's mounts. Returns the exit status; raises CkfsError."""
    rows = (row for place in _places(path) for row in _rows_at(place))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print(f"{'OWNER':<12} {'STATE':<10} {'SIZE':>14}  {'MODIFIED':<19}  {'NODE':<12}  NAME")
    for row in rows:
        when = dt.datetime.fromtimestamp(row.modified).strftime("%Y-%m-%d %H:%M:%S")
        name = f"{row.set}/{row.image}" if row.image else row.set
        print(
            f"{row.owner:<12} {row.state:<10} {row.size_bytes:>14}  {when:<19}  {row.written_by:<12}  {name}"
        )
    return 0


def _places(path: str | None) -> list[str]:
    if path is not None:
        return [os.path.realpath(path)]
    here = [os.fsdecode(mounted.path) for mounted in mounts() if mounted.kind == FILE_SYSTEM]
    if not here:
        raise UsageError("no ckfs is mounted on this host: name a mount, or as root a store")
    return list(dict.fromkeys(here))


def _rows_at(path: str) -> Iterator[Row]:
    try:
        below = _below_mount(path)
    except FileNotFoundError:
        raise UsageError(f"{shown(path)}: there is no such file or directory") from None
    except OSError as error:
        raise StoreUnusable(f"{shown(path)}: {error.strerror}") from None
    if below is None:
        yield from _rows_of_store(path)
    elif below == path:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if _may_see(entry.path):
                yield from _rows_of_set(entry.path, entry.name)
    else:
        yield from _rows_of_set(path, _attribute(path, "set"))


def _below_mount(path: str) -> str | None:
    """The mount that *path* is on; None if it is not on a ckfs mount."""
    os.lstat(path)
    while True:
        with contextlib.suppress(OSError):
            if xattr.getxattr(path, "user.ckfs.version", True):
                return path
        if path == "/":
            return None
        path = os.path.dirname(path)


def _may_see(path: str) -> bool:
    """Root sees all sets, a user his own."""
    return os.geteuid() == 0 or _attribute(path, "uid") == str(os.geteuid())


def _rows_of_set(path: str, set_name: str) -> Iterator[Row]:
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        yield _row(path, set_name, "")
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            for image in _images_below(path):
                with contextlib.suppress(FileNotFoundError):
                    yield _row(os.path.join(path, image), set_name, image)


def _images_below(path: str, prefix: str = "") -> Iterator[str]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            yield prefix + entry.name


def _row(path: str, set_name: str, image: str) -> Row:
    status = os.lstat(path)
    uid = _attribute(path, "uid")
    return Row(
        set=shown(set_name),
        image=shown(image),
        owner=shown(_attribute(path, "owner")),
        uid=int(uid) if uid.isdigit() else None,
        state=_attribute(path, "state"),
        size_bytes=_size(path, status),
        modified=status.st_mtime,
        written_by=shown(_attribute(path, "written_by")),
    )


def _size(path: str, status: os.stat_result) -> int:
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    total = 0
    for image in _images_below(path):
        with contextlib.suppress(FileNotFoundError):
            total += os.lstat(os.path.join(path, image)).st_size
    return total


def _attribute(path: str, name: str) -> str:
    try:
        return os.fsdecode(xattr.getxattr(path, f"user.ckfs.{name}", True))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOVERFLOW):
            return "-"
        raise


# A bare store, without a mount: what is there is read as it lies.


def _rows_of_store(path: str) -> Iterator[Row]:
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(path)}: not on a ckfs mount; only root lists a bare store")
    store = open_store(path, read_only=True)
    with contextlib.closing(store):
        for name in sorted(store.names.all()):
            with contextlib.suppress(FileNotFoundError):
                entry, found = store.names.examine(name)
                yield from _rows_of_entry(store, name, entry, found)


def _rows_of_entry(store: Store, name: SetName, entry: SetEntry, found: Found) -> Iterator[Row]:
    images = list(store.door.files_below(entry.spot)) if found.record.is_directory else []
    state = store.door.worst_state_below(entry.spot) if found.record.is_directory else found.record.state
    size_bytes = (
        sum(image.stat.st_size for _, image in images) if found.record.is_directory else found.stat.st_size
    )
    yield _stored_row(name, b"", entry, found, state, size_bytes)
    for path, image in images:
        yield _stored_row(name, path, entry, image, image.record.state, image.stat.st_size)


def _stored_row(
    name: bytes, path: bytes, entry: SetEntry, found: Found, state: State | None, size_bytes: int
) -> Row:
    return Row(
        set=shown(name),
        image=shown(path),
        owner="-" if entry.owner is None else _user_name(entry.owner.uid),
        uid=None if entry.owner is None else entry.owner.uid,
        state="-" if state is None else state.value,
        size_bytes=size_bytes,
        modified=found.stat.st_mtime,
        written_by=shown(found.record.node) or "-",
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
