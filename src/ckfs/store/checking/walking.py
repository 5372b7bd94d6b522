"""Looking at what lies in a store without changing anything, however deep it lies and whoever owns it.

The door gives a record to whatever it meets without one; fsck has to see that there is none. So these looks are its own.
Like the door's they go name by name below open directories, and follow no link. One directory is open at a time: users
make trees of any depth.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store import attributes, record, syscalls
from ckfs.store.identity import acting_as

T = TypeVar("T")

_PASSING = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_CLOEXEC
_GONE = (FileNotFoundError, NotADirectoryError)
_USABLE_FILE = stat.S_IRUSR | stat.S_IWUSR
_USABLE_DIRECTORY = stat.S_IRWXU
_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio."""


def reach(owner: Owner, work: Callable[[], T]) -> T:
    """*work* as root; where root may not (he is squashed), as *owner*."""
    try:
        return work()
    except PermissionError:
        with acting_as(owner):
            return work()


def owner_of(status: os.stat_result) -> Owner:
    return Owner(Uid(status.st_uid), Gid(status.st_gid))


def modes_needed(status: os.stat_result) -> int:
    """The bits of its mode without which the file's own owner cannot do all with it that ckfs does as him."""
    return _USABLE_DIRECTORY if stat.S_ISDIR(status.st_mode) else _USABLE_FILE


def is_usable(status: os.stat_result) -> bool:
    """Whether its mode lets its owner do all that."""
    return status.st_mode & modes_needed(status) == modes_needed(status)


def number_there(status: os.stat_result) -> int:
    """What tells one file of the store from all others, below 2**64 and never 0. Subvolumes of btrfs number their files each from
    the same on, and have a device number each."""
    return (status.st_ino + status.st_dev * _SPREAD) & _MASK or 1


@dataclass(frozen=True, slots=True)
class Directory:
    """An open directory (O_PATH)."""

    fd: int
    status: os.stat_result

    @classmethod
    def at(cls, path: str) -> Self:
        return cls.of(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    @classmethod
    def of(cls, fd: int) -> Self:
        """*fd* is its own from now on."""
        return cls(fd, os.fstat(fd))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    @property
    def owner(self) -> Owner:
        """By now: its owner may just have been mended."""
        return owner_of(os.fstat(self.fd))

    def inside(self, *names: bytes) -> Directory:
        """A directory below; FileNotFoundError or NotADirectoryError if there is none."""
        here = self
        for name in names:
            try:
                inner = here._enter(name)
            finally:
                if here is not self:
                    here.close()
            here = inner
        return here

    def _enter(self, name: bytes) -> Directory:
        return Directory.of(reach(self.owner, lambda: os.open(name, _PASSING, dir_fd=self.fd)))

    def above(self, known: os.stat_result) -> Directory | None:
        """The directory that holds this one; None if that is not the one that is *known*: it has been moved."""
        outer = self._enter(b"..")
        if os.path.samestat(outer.status, known):
            return outer
        outer.close()
        return None

    def names(self) -> Iterator[bytes]:
        listing = reach(self.owner, lambda: os.open(b".", _LISTING, dir_fd=self.fd))
        try:
            while entries := reach(self.owner, lambda: syscalls.directory_entries(listing)):
                yield from (name for name, _ in entries if name not in (b".", b".."))
        finally:
            os.close(listing)

    def status_of(self, name: bytes) -> os.stat_result:
        return reach(self.owner, lambda: os.stat(name, dir_fd=self.fd, follow_symlinks=False))

    def attribute_of(
        self, name: bytes, status: os.stat_result, attribute: bytes = record.ATTRIBUTE
    ) -> bytes | None:
        """None if it has none, or is of a kind that keeps none."""
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return None
        try:
            return reach(
                self.owner,
                lambda: os.getxattr(attributes.path_of(self.fd, name), attribute, follow_symlinks=False),
            )
        except PermissionError:
            return self._attribute_as_owner(name, status, attribute)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise

    def _attribute_as_owner(self, name: bytes, status: os.stat_result, attribute: bytes) -> bytes | None:
        """A file of somebody else in a directory that he may not enter, on a store that squashes root."""
        fd = reach(
            self.owner, lambda: os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        )
        try:
            with acting_as(owner_of(status)):
                return os.getxattr(b"/proc/self/fd/%d" % fd, attribute)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it lies there. *directory* is open, and *path* good, until the walk goes on."""

    directory: Directory
    name: bytes
    status: os.stat_result
    raw: bytes | None
    """Its record, undecoded; None if it has none, or was *refused*."""
    trail: list[bytes]
    refused: PermissionError | None = None
    """Where root is squashed, nobody on this host can read what is closed to its own owner, or is root's."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def number(self) -> int:
        """By which the store knows it."""
        return number_there(self.status)

    @property
    def path(self) -> bytes:
        return b"/".join((*self.trail, self.name))


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that the store does not let one look at."""

    path: bytes
    number: int
    """:func:`number_there` of it, or of its directory."""
    error: OSError


def look(directory: Directory, name: bytes, trail: list[bytes]) -> Seen:
    """OSError as the store has it, but for its record: :attr:`Seen.refused`."""
    status = directory.status_of(name)
    try:
        raw = directory.attribute_of(name, status)
    except PermissionError as error:
        return Seen(directory, name, status, None, trail, error)
    return Seen(directory, name, status, raw, trail)


def walk(directory: Directory, name: bytes, base: bytes) -> Iterator[Seen | Unread]:
    """*name* in *directory*, whose path is *base*, and all below it, each directory before what is in it."""
    trail = [base]
    top = _look(directory, name, trail)
    if top is None:
        return
    yield top
    if isinstance(top, Unread) or not top.is_directory:
        return
    inner = _enter(directory, name, trail)
    if isinstance(inner, Directory):
        trail.append(name)
        yield from _walk_below(inner, trail)
    elif inner is not None:
        yield inner


def _walk_below(here: Directory, trail: list[bytes]) -> Iterator[Seen | Unread]:
    above: list[tuple[os.stat_result, list[bytes]]] = []
    """The directories on the way, each with what is still to be entered in it."""
    pending: list[bytes] | None = None
    try:
        while True:
            if pending is None:
                pending = []
                yield from _right_in(here, trail, pending)
            if pending:
                name = pending.pop()
                inner = _enter(here, name, trail)
                if isinstance(inner, Unread):
                    yield inner
                elif inner is not None:
                    above.append((here.status, pending))
                    here.close()
                    here, pending = inner, None
                    trail.append(name)
                continue
            if not above:
                return
            status, pending = above.pop()
            trail.pop()
            outer = here.above(status)
            if outer is None:  # somebody moved it: the rest of the set is for the next run
                return
            here.close()
            here = outer
    finally:
        here.close()


def _right_in(here: Directory, trail: list[bytes], directories: list[bytes]) -> Iterator[Seen | Unread]:
    try:
        for name in here.names():
            seen = _look(here, name, trail)
            if seen is None:
                continue
            yield seen
            if isinstance(seen, Seen) and seen.is_directory:
                directories.append(name)
    except PermissionError as error:
        if is_usable(here.status):  # else its mode has been said to be wrong
            yield Unread(b"/".join(trail), number_there(here.status), error)
    except OSError as error:
        yield Unread(b"/".join(trail), number_there(here.status), error)


def _look(directory: Directory, name: bytes, trail: list[bytes]) -> Seen | Unread | None:
    try:
        return look(directory, name, trail)
    except _GONE:
        return None
    except OSError as error:
        return Unread(b"/".join((*trail, name)), number_there(directory.status), error)


def _enter(directory: Directory, name: bytes, trail: list[bytes]) -> Directory | Unread | None:
    try:
        return directory.inside(name)
    except _GONE:
        return None
    except OSError as error:
        return Unread(b"/".join((*trail, name)), number_there(directory.status), error)
