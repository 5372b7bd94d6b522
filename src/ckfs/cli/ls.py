"""``ckfs ls``: sets and images, from a mount, or by root from a bare store."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from ckfs.cli.stores import allow_all_files
from ckfs.cli.times import local_time
from ckfs.cli.users import user_name
from ckfs.daemon.mounting import FILE_SYSTEM, mounts
from ckfs.errors import CkfsError, FsError, NotPermitted, StoreUnusable, UsageError
from ckfs.fs.left import state_of
from ckfs.fs.liveness import Judge
from ckfs.model import State
from ckfs.names import SetName, shown
from ckfs.policy.further import HOME_NAME
from ckfs.store import walks
from ckfs.store.entries import SetEntry
from ckfs.store.layout import Store, open_store
from ckfs.store.spots import Found, Spot


@dataclass(frozen=True, slots=True)
class Row:
    """A set (*image* empty) or an image in it, which lies in *store*. Size in bytes, *modified* in seconds since the epoch."""

    set: str
    image: str
    owner: str
    uid: int | None
    state: str
    size_bytes: int
    modified: float
    written_by: str
    store: str


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path", metavar="PATH", nargs="?", help="a mount, something on it, or (root) a store"
    )
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=lambda arguments: list_sets(arguments.path, as_json=arguments.json))


def list_sets(path: str | None, *, as_json: bool) -> int:
    """Print what is at *path*, or on this host's mounts. Returns the exit status; raises CkfsError."""
    allow_all_files()
    unread = Unread()
    rows = (row for place in places(path) for row in _rows_at(place, unread))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return unread.status
    print(f"{'OWNER':<12} {'STATE':<10} {'SIZE':>14}  {'MODIFIED':<19}  {'NODE':<12}  NAME")
    for row in rows:
        when = local_time(int(row.modified * 1e9), "%Y-%m-%d %H:%M:%S")
        name = f"{row.set}/{row.image}" if row.image else row.set
        if not row.image and row.store not in (HOME_NAME, "-"):
            name += f" (in {row.store})"
        print(
            f"{row.owner:<12} {row.state:<10} {row.size_bytes:>14}  {when:<19}  {row.written_by:<12}  {name}"
        )
    return unread.status


@dataclass(slots=True)
class Unread:
    """What could not be read is named on stderr; all the rest is shown."""

    status: int = 0

    def name(self, *parts: str, error: Exception) -> None:
        self.status = CkfsError.exit_status
        sys.stdout.flush()  # so that the line stands where the row is missing
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"ckfs: {shown('/'.join(filter(None, parts)))}: cannot be read: {reason}", file=sys.stderr)

    @contextlib.contextmanager
    def passing_over(self, *parts: str) -> Iterator[None]:
        """What is gone, closed to the caller, or no directory any more is left out, and so is what the store cannot read."""
        try:
            yield
        except OSError as error:
            if error.errno in OUT_OF_REACH:
                raise
            if error.errno not in _CLOSED | GONE:
                self.name(*parts, error=error)


def places(path: str | None) -> list[str]:
    if path is not None:
        return [os.path.realpath(path)]
    here = [os.fsdecode(mounted.path) for mounted in mounts() if mounted.kind == FILE_SYSTEM]
    if not here:
        raise UsageError("no ckfs is mounted on this host: name a mount, or as root a store")
    return list(dict.fromkeys(here))


def _rows_at(path: str, unread: Unread) -> Iterator[Row]:
    try:
        below = below_mount(path)
        if below is not None:
            for top in tops_on_mount(below, path, unread):
                yield from _rows_of_set(top.directory, top.name, top.set_name, unread)
            return
    except OSError as error:
        raise said_of(path, error) from None
    yield from _rows_of_store(path, unread)


def said_of(path: str, error: OSError) -> CkfsError:
    """Why nothing more can be said of what is at *path*."""
    match error:
        case FileNotFoundError():
            return UsageError(f"{shown(path)}: there is no such file or directory")
        case PermissionError():
            return NotPermitted(f"{shown(path)}: closed to you by its mode; its owner and root list it")
        case _:
            return StoreUnusable(f"{shown(path)}: {error.strerror}")


def below_mount(path: str) -> str | None:
    """The mount that *path* is on; None if it is not on a ckfs mount."""
    os.lstat(path)
    while True:
        with contextlib.suppress(OSError):
            if os.getxattr(path, "user.ckfs.version", follow_symlinks=False):
                return path
        if path == "/":
            return None
        path = os.path.dirname(path)


# Through a mount, whose users may exchange any directory for a symlink at any time: no path below the mount is
# opened as a whole, only name by name below a descriptor. O_PATH, which the daemon does not hear of.

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_CLOSED = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENODATA,
    errno.EOVERFLOW,
    errno.ELOOP,
    errno.EHOSTUNREACH,  # in a store that this host does not reach: that it is there, and in which, is all that it says
}
GONE = {errno.ENOENT, errno.ESTALE}
OUT_OF_REACH = {errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED}


@dataclass(frozen=True, slots=True)
class Top:
    """A set, or what of it was asked for: *name* in the open *directory*, and *path* below the set, empty for all of it."""

    directory: int
    name: str
    set_name: str
    path: str


def tops_on_mount(mount: str, path: str, unread: Unread) -> Iterator[Top]:
    """What is at *path* on *mount*: each set that the caller may see, or the one thing that it is. Good for one turn."""
    directory = os.open(mount, _DIRECTORY)
    try:
        if path == mount:
            for name in _names_in(directory):
                if _may_see(directory, name, unread):
                    yield Top(directory, name, name, "")
            return
        set_name, *inner = os.path.relpath(path, mount).split("/")
        name = set_name
        for below in inner:
            outer, directory = directory, os.open(name, _DIRECTORY, dir_fd=directory)
            os.close(outer)
            name = below
        if not _may_see(directory, name, unread) and known_of(directory, name, "uid") == "-":
            raise PermissionError
        yield Top(directory, name, set_name, "/".join(inner))
    finally:
        os.close(directory)


def _may_see(directory: int, name: str, unread: Unread) -> bool:
    """Root sees all sets, a user his own."""
    if os.geteuid() == 0:
        return True
    with unread.passing_over(name):
        uid = known_of(directory, name, "uid")
        if uid == "-":  # closed even to its owner, or of a kind without attributes
            uid = str(os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid)
        return uid == str(os.geteuid())
    return False


def _rows_of_set(directory: int, name: str, set_name: str, unread: Unread) -> Iterator[Row]:
    with unread.passing_over(set_name):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        top = _row(directory, name, status, set_name, "", unread)
        if not stat.S_ISDIR(status.st_mode):
            yield top
            return
        images = [
            _row(found.directory, found.name, found.status, set_name, found.path, unread)
            for found in images_below(directory, name, set_name, unread)
        ]
        yield replace(top, size_bytes=sum(image.size_bytes for image in images))
        yield from images


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory on the way down: *names* are those still to be looked at."""

    fd: int
    prefix: str
    names: Iterator[str]


@dataclass(frozen=True, slots=True)
class Seen:
    """A regular file: *name* in the open *directory*, *path* below where the walk began."""

    directory: int
    name: str
    path: str
    status: os.stat_result


def images_below(directory: int, name: str, set_name: str, unread: Unread) -> Iterator[Seen]:
    """Every regular file under the directory *name*. Each is good for one turn."""
    levels: list[_Level] = []
    try:
        with unread.passing_over(set_name):
            _descend(levels, directory, name, "")
        while levels:
            level = levels[-1]
            entry = next(level.names, None)
            if entry is None:
                os.close(levels.pop().fd)
                continue
            with unread.passing_over(set_name, level.prefix + entry):
                status = os.stat(entry, dir_fd=level.fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    _descend(levels, level.fd, entry, f"{level.prefix}{entry}/")
                elif stat.S_ISREG(status.st_mode):
                    yield Seen(level.fd, entry, level.prefix + entry, status)
    finally:
        for level in levels:
            os.close(level.fd)


def _descend(levels: list[_Level], directory: int, name: str, prefix: str) -> None:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            names = _names_in(fd)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        print(f"ckfs: passed over what is more than {len(levels)} directories deep", file=sys.stderr)
        return
    levels.append(_Level(fd, prefix, iter(names)))


def _names_in(directory: int) -> list[str]:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def _row(directory: int, name: str, status: os.stat_result, set_name: str, image: str, unread: Unread) -> Row:
    known = dict.fromkeys(("uid", "owner", "state", "written_by", "store"), "-")
    with unread.passing_over(set_name, image):
        for attribute in known:
            known[attribute] = known_of(directory, name, attribute)
    return Row(
        set=shown(set_name),
        image=shown(image),
        owner=shown(known["owner"]),
        uid=int(known["uid"]) if known["uid"].isdigit() else None,
        state=shown(known["state"]),
        size_bytes=status.st_size,
        modified=status.st_mtime,
        written_by=shown(known["written_by"]),
        store=shown(known["store"]),
    )


def known_of(directory: int, name: str, attribute: str) -> str:
    """What ckfs says; ``-`` where it says nothing, or not to this caller."""
    path = f"/proc/self/fd/{directory}/{name}"
    try:
        return os.fsdecode(os.getxattr(path, f"user.ckfs.{attribute}", follow_symlinks=False))
    except OSError as error:
        if error.errno in _CLOSED:
            return "-"
        raise


# A bare store, without a mount: what is there is read as it lies.


def _rows_of_store(path: str, unread: Unread) -> Iterator[Row]:
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(path)}: not on a ckfs mount; only root lists a bare store")
    store = open_store(path, read_only=True)
    with contextlib.closing(store):
        policy, judge = store.read_policy(), Judge(store.mounts)

        def worth(spot: Spot, found: Found) -> State:
            return state_of(
                store.door,
                spot,
                found,
                spot.components[-1],
                policy,
                lambda mount: judge.fate(mount, policy.lease_s),
            )

        for name in sorted(store.names.all()):
            try:
                entry, found = store.names.look(name)
                rows = list(_rows_of_entry(store, name, entry, found, worth))
            except FileNotFoundError:
                continue
            except (OSError, FsError, ValueError) as error:
                unread.name(os.fsdecode(name), error=error)
                continue
            yield from rows


def _rows_of_entry(
    store: Store, name: SetName, entry: SetEntry, found: Found, worth: Callable[[Spot, Found], State]
) -> Iterator[Row]:
    lies_in = store.volumes.name_of(entry.volume)
    if not store.volumes.is_usable(entry.volume):
        yield _stored_row(name, b"", entry, found, None, 0, lies_in)
        return
    images = list(walks.files(store.door, entry.spot)) if found.record.is_directory else []
    state = (
        walks.worst_state(store.door, entry.spot, worth)
        if found.record.is_directory
        else worth(entry.spot, found)
    )
    size_bytes = (
        sum(image.stat.st_size for _, image in images) if found.record.is_directory else found.stat.st_size
    )
    yield _stored_row(name, b"", entry, found, state, size_bytes, lies_in)
    for path, image in images:
        spot = entry.spot.below(*path.split(b"/"))
        yield _stored_row(name, path, entry, image, worth(spot, image), image.stat.st_size, lies_in)


def _stored_row(
    name: bytes,
    path: bytes,
    entry: SetEntry,
    found: Found,
    state: State | None,
    size_bytes: int,
    lies_in: str,
) -> Row:
    return Row(
        set=shown(name),
        image=shown(path),
        owner="-" if entry.owner is None else user_name(entry.owner.uid),
        uid=None if entry.owner is None else entry.owner.uid,
        state="-" if state is None else state.value,
        size_bytes=size_bytes,
        modified=found.stat.st_mtime,
        written_by=shown(found.record.node) or "-",
        store=lies_in,
    )
