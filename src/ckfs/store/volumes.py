"""Further stores: other file systems in which files of a store's sets lie, and which only some hosts reach.

The policy names them. Each has its id, and that of the store it belongs to, in ``ckfs.toml`` (:mod:`ckfs.store.formats`): what lies
at its path otherwise, another store or a directory on which nothing is mounted, is never used for it. This host *reaches* one
whose files it can get at. It is looked for when the store is opened, and then again and again (:meth:`Volumes.look`): a mount that
comes is used from then on, and one that goes is missed.

Any thread; nothing slow is done under the lock, and who is in a further store has a descriptor of his own.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ckfs.errors import CkfsError, StoreDown, StoreUnusable, Unreached
from ckfs.names import shown
from ckfs.policy.further import HOME_NAME, FurtherStore
from ckfs.store import syscalls
from ckfs.store.entries import USERS, shown_place
from ckfs.store.formats import read_form
from ckfs.store.spots import HOME, Spot, VolumeId
from ckfs.store.texts import open_root, unusable

log = logging.getLogger(__name__)

NOT_HERE = "none"
"""As the path of a further store: this host does not look for it."""
_SAY_AGAIN_S = 60.0
_MOST_SAID = 1024


@dataclass(frozen=True, slots=True)
class Here:
    """This host: its *node* name, the *paths* of further stores by name where it has others than the policy says, and for how long it waits
    for them when a store is opened. A command has no node name, and looks for all."""

    node: str | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Reached:
    """A further store as it was at the last look. *free_bytes* is what users may still fill of *total_bytes*."""

    root_fd: int
    root: tuple[int, int]
    """Device and inode number of its root."""
    is_local: bool
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Volume:
    """A further store that the policy names. *why* it is not *reached*, as a part of a line. *is_silent*: it did not answer in time,
    and has not since."""

    said: FurtherStore
    path: str | None
    """None where this host does not look for it."""
    reached: Reached | None = None
    why: str = "it has not been looked for yet"
    is_silent: bool = False

    @property
    def id(self) -> VolumeId:
        return self.said.id.encode()

    @property
    def is_usable(self) -> bool:
        return self.reached is not None and not self.is_silent


class Visit:
    """In which volume a thread is at the moment."""

    __slots__ = ("volume",)

    def __init__(self) -> None:
        self.volume: VolumeId = HOME


class _Here(threading.local):
    visit: Visit | None = None


_here = _Here()


@contextmanager
def visiting(visit: Visit) -> Iterator[None]:
    """In the block *visit* says in which volume the calling thread is."""
    _here.visit = visit
    try:
        yield
    finally:
        _here.visit = None


class Volumes:
    """The further stores of the store whose id is *home*."""

    def __init__(self, home: str, here: Here | None = None) -> None:
        self._home = home
        self._here = Here() if here is None else here
        self._lock = threading.Lock()
        self._volumes: dict[VolumeId, Volume] = {}
        self._told: dict[tuple[VolumeId, tuple[bytes, ...]], float] = {}

    def follow(self, stores: Sequence[FurtherStore]) -> None:
        """Take up what the policy says."""
        gone: list[Reached] = []
        with self._lock:
            before, self._volumes = self._volumes, {}
            for said in stores:
                path = self._here.paths.get(said.name, said.path)
                is_meant = self._here.node is None or said.is_reached_by(self._here.node)
                here = path if is_meant and path != NOT_HERE else None
                known = before.pop(said.id.encode(), None)
                if known is None or known.said != said or known.path != here:
                    gone += [known.reached] if known is not None and known.reached is not None else []
                    why = (
                        "it has not been looked for yet" if here is not None else "it is not one of its hosts"
                    )
                    known = Volume(said, here, why=why)
                self._volumes[known.id] = known
            gone += [volume.reached for volume in before.values() if volume.reached is not None]
        for reached in gone:
            os.close(reached.root_fd)

    def close(self) -> None:
        self.follow(())

    # What there is

    def all(self) -> tuple[Volume, ...]:
        """In the order of the policy."""
        with self._lock:
            return tuple(self._volumes.values())

    def ids(self) -> tuple[VolumeId, ...]:
        """The home, and all further stores that this host can use now."""
        return (HOME, *(volume.id for volume in self.all() if volume.is_usable))

    def missed(self) -> list[Volume]:
        """Those that this host cannot use."""
        return [volume for volume in self.all() if not volume.is_usable]

    def get(self, volume: VolumeId) -> Volume | None:
        with self._lock:
            return self._volumes.get(volume)

    def name_of(self, volume: VolumeId) -> str:
        """What people call *volume*; its id if the policy does not name it."""
        if volume == HOME:
            return HOME_NAME
        known = self.get(volume)
        return shown(volume) if known is None else known.said.name

    def is_silent(self, volume: VolumeId) -> bool:
        known = self.get(volume) if volume != HOME else None
        return known is not None and known.is_silent

    def is_usable(self, volume: VolumeId) -> bool:
        if volume == HOME:
            return True
        known = self.get(volume)
        return known is not None and known.is_usable

    def is_near(self, volume: VolumeId) -> bool:
        """Whether *volume* is on this host's own disks or in its memory, and reached."""
        known = self.get(volume)
        return known is not None and known.reached is not None and known.reached.is_local

    def check(self, volume: VolumeId) -> None:
        """Unreached, or StoreDown, if nothing in *volume* is to be had; nobody hears of it."""
        if volume == HOME:
            return
        known = self.get(volume)
        if known is None or known.reached is None:
            raise Unreached(f"it lies in {_where(volume, known)}")
        if known.is_silent:
            raise StoreDown(f"the further store {known.said.name} is down")

    @property
    def are_local(self) -> bool:
        """Whether all that this host reaches are on its own disks or in its memory."""
        return not self._volumes or all(
            volume.reached is None or volume.reached.is_local for volume in self.all()
        )

    # Going there

    @contextmanager
    def entered(self, spot: Spot) -> Iterator[int]:
        """A descriptor of the root of the further store in which *spot* lies. Unreached, with a line in the log now and then; StoreDown if
        it is silent."""
        root_fd = self._descriptor(spot)
        visit = _here.visit
        before = HOME if visit is None else visit.volume
        try:
            if visit is not None:
                visit.volume = spot.volume
            yield root_fd
        finally:
            if visit is not None:
                visit.volume = before
            os.close(root_fd)

    def _descriptor(self, spot: Spot) -> int:
        with self._lock:
            known = self._volumes.get(spot.volume)
            if known is not None and known.is_silent:
                raise StoreDown(f"the further store {known.said.name} is down")
            if known is not None and known.reached is not None:
                return os.dup(known.reached.root_fd)
        raise Unreached(self._tell(spot, known))

    def _tell(self, spot: Spot, known: Volume | None) -> str:
        """The line that says where *spot* lies and who reaches it."""
        line = f"{_what(spot)} lies in {_where(spot.volume, known)}"
        key, now = (spot.volume, spot.components[:3]), time.monotonic()
        with self._lock:
            is_new = now - self._told.get(key, -_SAY_AGAIN_S) >= _SAY_AGAIN_S
            if is_new:
                if len(self._told) >= _MOST_SAID:
                    self._told.clear()
                self._told[key] = now
        if is_new:
            self._warn("%s", line)
        return line

    def silence(self, volume: VolumeId, limit_s: float) -> None:
        """A call there did not end within *limit_s*: none is begun until it answers a look."""
        with self._lock:
            known = self._volumes.get(volume)
            if known is None or known.is_silent:
                return
            self._put(known, is_silent=True)
        log.warning(
            "further store %s down: it did not answer within %g s; its sets are not to be had until it does",
            known.said.name,
            limit_s,
        )

    # Looking

    def look(self, volume: VolumeId) -> None:
        """See whether this host reaches *volume*, and how much room there is. Blocking; says in the log what has changed."""
        known = self.get(volume)
        if known is None or known.path is None:
            return
        try:
            reached, why = self._looked(known, known.path), ""
        except (CkfsError, OSError) as error:
            reached, why = None, str(error)
        self._found(known, reached, why)

    def look_at_all(self) -> None:
        """Look at each, and wait for that as long as this host does; those that do not answer by then are silent."""
        looks = [
            (volume, threading.Thread(target=self.look, args=(volume.id,), daemon=True))
            for volume in self.all()
        ]
        for _, thread in looks:
            thread.start()
        limit_s = self._here.limit_s
        until_s = time.monotonic() + limit_s
        for volume, thread in looks:
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                self.silence(volume.id, limit_s)

    def _looked(self, known: Volume, path: str) -> Reached:
        """What lies there now, with a descriptor of its own."""
        with unusable(path):
            root_fd = open_root(path)
            try:
                now = _measured(root_fd)
                if known.reached is None or now.root != known.reached.root:
                    self._check(known, root_fd, path)
                return now
            except BaseException:
                os.close(root_fd)
                raise

    def _check(self, known: Volume, root_fd: int, path: str) -> None:
        form = read_form(root_fd, path)
        if form.home is None:
            raise StoreUnusable(
                f"{shown(path)}: a store by itself lies there, which is nobody's further store"
            )
        if form.id != known.said.id:
            raise StoreUnusable(
                f"{shown(path)}: this is the further store {shown(form.id)}, and the policy says {known.said.id}"
            )
        if form.home != self._home:
            raise StoreUnusable(
                f"{shown(path)}: this is a further store of another store, {shown(form.home)}"
            )

    def _found(self, known: Volume, reached: Reached | None, why: str) -> None:
        """Take up what a look has found, unless the policy has changed meanwhile."""
        surplus = reached
        with self._lock:
            now = self._volumes.get(known.id)
            is_same = now is not None and now.said == known.said and now.path == known.path
            if now is not None and is_same:
                before, surplus = now.reached, now.reached
                if before is not None and reached is not None and before.root == reached.root:
                    surplus, reached = reached, replace(reached, root_fd=before.root_fd)
                self._put(now, reached=reached, why=why, is_silent=False)
            if surplus is not None:
                os.close(surplus.root_fd)
        if now is None or not is_same:
            return
        if reached is not None and not now.is_usable:
            log.info(
                "further store %s reached at %s", now.said.name, shown(now.path or ""), extra={"always": True}
            )
        elif reached is None and now.why != why:
            self._warn("further store %s not reached: %s", now.said.name, why)

    def _warn(self, text: str, *about: object) -> None:
        """A command says by itself what it misses."""
        log.log(logging.INFO if self._here.node is None else logging.WARNING, text, *about)

    def _put(self, known: Volume, **changes: object) -> None:
        self._volumes[known.id] = replace(known, **changes)  # type: ignore[arg-type]  # the call sites name real fields


def _measured(root_fd: int) -> Reached:
    status, room = os.fstat(root_fd), os.fstatvfs(root_fd)
    return Reached(
        root_fd,
        (status.st_dev, status.st_ino),
        syscalls.is_local(root_fd),
        room.f_bavail * room.f_frsize,
        room.f_blocks * room.f_frsize,
    )


def _what(spot: Spot) -> str:
    if spot.components[0] == USERS and len(spot.components) > 2:
        return f"set {shown_place(spot.components[2])}"
    return shown(b"/".join(spot.components))


def _where(volume: VolumeId, known: Volume | None) -> str:
    if known is None:
        return f"the further store {shown(volume)}, which the policy does not name: let policy.toml say where it is"
    said = known.said
    hosts = ", ".join(shown(pattern) for pattern in said.hosts)
    return (
        f"the further store {said.name} ({shown(known.path or said.path)}), which this host does not reach"
        f" ({known.why}): reached by {hosts}"
    )
