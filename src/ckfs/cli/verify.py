"""``ckfs verify``: whoever may read an image on a mount compares it with its digest. Root's also marks what is damaged, and
accepts what is of unknown state: both in the store itself."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.cli.ls import (
    GONE,
    OUT_OF_REACH,
    Seen,
    Unread,
    below_mount,
    images_below,
    known_of,
    places,
    said_of,
    tops_on_mount,
)
from ckfs.cli.report import About, Report
from ckfs.cli.scrub import MARKED, reason_of
from ckfs.cli.stores import prepare_for_stores, service_of
from ckfs.daemon.mounting import mounts
from ckfs.errors import CkfsError, FsError, UsageError
from ckfs.model import State
from ckfs.names import SetName, iso_time, shown
from ckfs.store import digests
from ckfs.store.layout import Store, open_store
from ckfs.store.rereading import Checker, Result
from ckfs.store.spots import Spot

_TRIES = 3
_PIECE_BYTES = 1 << 20
_COMPLETE = (State.COMPLETE.value, State.SUPERSEDED.value)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("paths", metavar="PATH", nargs="*", help="by default all ckfs mounts of this host")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON document")
    how.add_argument(
        "--accept", action="store_true", help="let images of unknown state count as complete (root)"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.accept:
        from ckfs.cli.accept import accept  # which finds places as this module does

        return accept(arguments.paths)
    return verify(arguments.paths, as_json=arguments.json)


def verify(paths: list[str], *, as_json: bool) -> int:
    """Verify what is at *paths*, or on this host's mounts. Returns the exit status; raises CkfsError."""
    is_root = os.geteuid() == 0
    if is_root:
        prepare_for_stores()
    on = [(mount_of(place), place) for path in paths for place in places(path)]
    with Report(as_json=as_json) as report:
        for mount, path in on or _on_this_host(report):
            _Verifier(report, mount, marks=is_root).verify(path)
    return report.status


def _on_this_host(report: Report) -> Iterator[tuple[str, str]]:
    """All mounts. One that is dead keeps nobody from the others."""
    for path in places(None):
        try:
            yield mount_of(path), path
        except CkfsError as error:
            report.cannot_read(shown(path), str(error).removeprefix(f"{shown(path)}: "))


def mount_of(path: str) -> str:
    """The mount that *path* is on. Raises CkfsError."""
    try:
        mount = below_mount(path)
    except OSError as error:
        raise said_of(path, error) from None
    if mount is None:
        raise UsageError(f"{shown(path)}: not on a ckfs mount; root verifies a store by 'ckfs scrub STORE'")
    return mount


@contextlib.contextmanager
def store_of(mount: str) -> Iterator[Store]:
    """The store behind *mount*, which only root may ask for. Raises CkfsError: no user's mount is taken for one of ckfs."""
    sources = [one.source for one in mounts() if one.is_ckfs and os.fsdecode(one.path) == mount]
    if not sources:
        raise UsageError(f"{shown(mount)}: not a mount that root made as fuse.ckfs")
    path = os.fsdecode(sources[-1])
    with contextlib.closing(open_store(path, service_of(path))) as store:
        yield store


@dataclass(slots=True)
class _Unread(Unread):
    """What cannot be walked through counts as unreadable."""

    report: Report | None = None

    def name(self, *parts: str, error: Exception) -> None:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if self.report is not None:
            self.report.cannot_read(shown("/".join(filter(None, parts))), reason)


@dataclass(frozen=True, slots=True)
class _Verifier:
    report: Report
    mount: str
    marks: bool

    def verify(self, path: str) -> None:
        unread = _Unread(report=self.report)
        try:
            for top in tops_on_mount(self.mount, path, unread):
                with unread.passing_over(top.set_name, top.path):
                    status = os.stat(top.name, dir_fd=top.directory, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        self._image(Seen(top.directory, top.name, "", status), top.set_name, top.path)
                    elif stat.S_ISDIR(status.st_mode):
                        for seen in images_below(top.directory, top.name, top.set_name, unread):
                            self._image(seen, top.set_name, "/".join(filter(None, (top.path, seen.path))))
        except OSError as error:
            raise said_of(path, error) from None

    def _image(self, seen: Seen, set_name: str, path: str) -> None:
        self.report.begins(shown("/".join(filter(None, (set_name, path)))))
        try:
            result = self._checked(seen)
        except OSError as error:
            if error.errno in GONE:
                return
            if error.errno in OUT_OF_REACH:
                raise
            self.report.cannot_read(_about(seen, set_name, path), error.strerror or str(error))
            return
        if result is Result.DAMAGED:
            is_marked = known_of(seen.directory, seen.name, "damaged") != "-"
            what = MARKED if is_marked else self._mark(set_name, path)
            self.report.damaged(_about(seen, set_name, path), what)
        self.report.counts[result] += 1

    def _checked(self, seen: Seen) -> Result:
        for _ in range(_TRIES):
            state = known_of(seen.directory, seen.name, "state")
            if state == "-":
                raise PermissionError(errno.EACCES, "closed to you by its mode")
            if state not in _COMPLETE:
                return _not_complete(seen, state)
            try:
                result = self._compared(seen)
            except OSError:
                if known_of(seen.directory, seen.name, "state") == state:
                    raise
                continue
            if result is not None:
                return result
        return Result.NO_DIGEST  # none that fits: it changes all the time

    def _compared(self, seen: Seen) -> Result | None:
        """None if the image has changed meanwhile."""
        fd = os.open(seen.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=seen.directory)
        try:
            before = _Generation.of(fd)
            if before.size_bytes == 0 or not before.is_regular:
                return Result.VERIFIED
            algorithm, _, value = before.digest.partition(":")
            if algorithm != digests.ALGORITHM:
                return Result.NO_DIGEST
            if self._value_of(fd, before.size_bytes) == value:
                return Result.VERIFIED
            return Result.DAMAGED if _Generation.of(fd) == before else None
        finally:
            os.close(fd)

    def _value_of(self, fd: int, size_bytes: int) -> str:
        """Not of what lies beyond *size_bytes*: somebody may add to it as fast as it is read."""
        hashing, offset = digests.new_hash(), 0
        buffer = memoryview(bytearray(_PIECE_BYTES))
        while count := os.preadv(fd, [buffer[: size_bytes - offset]], offset):
            hashing.update(buffer[:count])
            offset += count
            self.report.progress(count)
        return hashing.hexdigest()

    def _mark(self, set_name: str, path: str) -> str:
        """Mark a damaged image if that is for this caller to do. Returns what has become of it."""
        if not self.marks:
            return "its content is not what was completed; not marked, which root's ckfs verify and scrub do"
        try:
            with store_of(self.mount) as store:
                spot = spot_of(store, SetName(os.fsencode(set_name)), os.fsencode(path))
                checker = Checker(store.door, marks=True, makes=False, progress=self.report.progress)
                result, _ = checker.check(spot, time.time_ns())
        except (OSError, FsError) as error:
            return f"its content is not what was completed; not marked: {reason_of(error)}"
        except CkfsError as error:
            return f"its content is not what was completed; not marked: {error}"
        if result is Result.DAMAGED:
            return MARKED
        return "what was read is not what was completed; not marked: in the store it is now another, or whole"


def spot_of(store: Store, set_name: SetName, path: bytes) -> Spot:
    """Where an image lies. FileNotFoundError if there is no such set."""
    entry = store.names.read(set_name)
    return entry.spot.below(*filter(None, path.split(b"/")))


def _not_complete(seen: Seen, state: str) -> Result:
    if state == State.UNKNOWN.value:
        return Result.UNKNOWN
    is_damaged = known_of(seen.directory, seen.name, "damaged") != "-"
    return Result.DAMAGED if is_damaged else Result.NOT_COMPLETE


@dataclass(frozen=True, slots=True)
class _Generation:
    """What an image is at a moment: unless all of it is the same afterwards, it may have been written in between."""

    digest: str
    completed: str
    is_regular: bool
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, fd: int) -> _Generation:
        status = os.fstat(fd)
        return cls(
            _said(fd, "digest"),
            _said(fd, "completed"),
            stat.S_ISREG(status.st_mode),
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


def _said(fd: int, attribute: str) -> str:
    try:
        return os.fsdecode(os.getxattr(fd, f"user.ckfs.{attribute}"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return ""
        raise


def _about(seen: Seen, set_name: str, path: str) -> About:
    """What the mount says of it; ``-`` for what it does not say to this caller."""
    known = dict.fromkeys(("uid", "owner", "written_by", "completed"), "-")
    with contextlib.suppress(OSError):  # gone meanwhile
        for attribute in known:
            known[attribute] = known_of(seen.directory, seen.name, attribute)
    return About(
        set=shown(set_name),
        image=shown(path),
        owner=shown(known["owner"]),
        uid=int(known["uid"]) if known["uid"].isdigit() else None,
        written_by=shown(known["written_by"]),
        completed=shown(known["completed"]),
        modified=iso_time(seen.status.st_mtime_ns),
    )
