"""The beginning and the end of a bench, in processes of their own: the set, the control directory beside the store's own files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ckfs.bench import place as places
from ckfs.bench import workloads
from ckfs.bench.place import CONTROL_PREFIX, SET_PREFIX, Place, as_owner, left_overs, opened
from ckfs.bench.plan import Plan, Room
from ckfs.bench.running import Refused, in_child
from ckfs.engines.opening import mounted_on
from ckfs.errors import EngineFailed, UsageError
from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.policy import settings
from ckfs.selftest.scratch import Worker
from ckfs.store import layout, syscalls
from ckfs.store.identity import ROOT

CKFS, CONTROL = "ckfs", "control"
_PATH = "trusted.ckfs.path"
_USERS = "/users/"
_BEGINS_WITHIN_S = 120.0
_ENDS_WITHIN_S = 60.0
"""Whoever has interrupted it is not heard again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """*user* is whom root acts as; None for whoever runs this, who is not root. *device* is that of *mountpoint*. *volumes* are the
    directories of the store, and of its further ones that are reached here: of root only. *control* is a directory that was named."""

    mountpoint: str
    device: int
    user: Owner | None
    plan: Plan
    token: str
    volumes: tuple[str, ...] = ()
    control: str | None = None

    @property
    def set_name(self) -> str:
        return SET_PREFIX + self.token

    @property
    def control_name(self) -> str:
        return CONTROL_PREFIX + self.token

    @property
    def set_path(self) -> str:
        return os.path.join(self.mountpoint, self.set_name)


@dataclass(frozen=True, slots=True)
class Begun:
    """*places* are the mount's and, if there is one, the control's. *kind* is the control's file system; *is_same* says whether it is
    the store's, if anybody can tell. *why_not*: there is no control. *volume* is where the set lies, if that is known."""

    places: tuple[Place, ...]
    rooms: tuple[Room, ...]
    left: tuple[str, ...]
    volume: str | None
    control: str | None
    kind: str
    is_same: bool | None
    why_not: str


_NOT_SEEN = "the store's directory is not to be seen from here"
_NO_CONTROL = "only root reaches the store: name a directory of yours to compare with by --control DIR"


def begin(asked: Asked) -> Begun:
    """Make the set and the control directory. Raises Refused."""
    made = in_child(partial(_make_set, asked, Worker.here(os.getpid())), _BEGINS_WITHIN_S)
    assert isinstance(made, dict)
    volume, top = made["volume"], asked.control
    if top is None and volume is not None:
        top = volume
    why_not = "" if top else str(made["why_not"])
    mount = Place(CKFS, asked.mountpoint, asked.set_name, asked.user, asked.device)
    found: Mapping[str, object] = {}
    if top is not None:
        answer = in_child(
            partial(_make_control, asked, top, volume, Worker.here(os.getpid())), _BEGINS_WITHIN_S
        )
        assert isinstance(answer, dict)
        found = answer
    is_same = found.get("is_same")
    return Begun(
        places=(mount, Place(CONTROL, top, str(found["below"]), asked.user)) if top else (mount,),
        rooms=() if top is None else (Room(shown(top), int(str(found["free_bytes"]))),),
        left=(*_lines(made), *_lines(found)),
        volume=volume,
        control=top,
        kind=str(found.get("kind", "")),
        is_same=is_same if isinstance(is_same, bool) else None,
        why_not=why_not,
    )


def _lines(found: Mapping[str, object]) -> tuple[str, ...]:
    left = found.get("left")
    return tuple(map(str, left)) if isinstance(left, list) else ()


def _make_set(asked: Asked, worker: Worker) -> dict[str, object]:
    uid = os.geteuid() if asked.user is None else asked.user.uid
    with opened(asked.mountpoint, device=asked.device) as top_fd:
        left = list(left_overs(top_fd, asked.set_name, asked.mountpoint, frozenset({uid})))
        places.make(top_fd, asked.set_name, asked.user, worker)
        volume = None
        if asked.volumes:
            volume = _volume_of(_place_in_store(top_fd, asked.set_name))
        if volume not in asked.volumes or not os.path.isdir(str(volume)):
            volume = None
    return {"left": left, "volume": volume, "why_not": _NO_CONTROL if asked.user is None else _NOT_SEEN}


def _place_in_store(top_fd: int, below: str) -> str:
    return os.fsdecode(os.getxattr(f"/proc/self/fd/{top_fd}/{below}", _PATH, follow_symlinks=False))


def _volume_of(path: str) -> str:
    """What lies below the last ``users/`` has no name but ours."""
    return path.rpartition(_USERS)[0]


def _make_control(asked: Asked, top: str, volume: str | None, worker: Worker) -> dict[str, object]:
    with opened(top) as top_fd:
        keeper = _keeper_of(top_fd, asked, is_store=top == volume)
        uids = frozenset({os.geteuid() if keeper is None else keeper.uid, *([0] if asked.user else [])})
        left = list(left_overs(top_fd, asked.control_name, top, uids))
        places.make(top_fd, asked.control_name, keeper, worker)
        below = asked.control_name
        if keeper is not None and asked.user is not None:
            below = places.make_room(top_fd, asked.control_name, keeper, asked.user)
        free = os.fstatvfs(top_fd)
        return {
            "below": below,
            "left": left,
            "free_bytes": free.f_bavail * free.f_frsize,
            "kind": _kind_of(top_fd),
            "is_same": _is_same(top_fd, volume),
        }


def _keeper_of(top_fd: int, asked: Asked, *, is_store: bool) -> Owner | None:
    """Who makes something in a directory: in a store the account that keeps it, elsewhere root, or the user himself."""
    if asked.user is None:
        return None
    if not is_store:
        return ROOT
    status = os.stat("users", dir_fd=top_fd, follow_symlinks=False)
    return Owner(Uid(status.st_uid), Gid(status.st_gid))


def _kind_of(fd: int) -> str:
    try:
        return mounted_on(fd).kind
    except EngineFailed:
        return "?"


def _is_same(top_fd: int, volume: str | None) -> bool | None:
    """Whether the control is on the file system on which the set's files lie."""
    if volume is None:
        return None
    try:
        with opened(os.path.join(volume, "users")) as users_fd:
            return mounted_on(users_fd) == mounted_on(top_fd)
    except EngineFailed:
        return None


# Room


def kept_back(store: str) -> Room:
    """What root may use of *store*: the reserve, and what the trash would give way for, are not for a bench. Raises Refused, and
    UsageError where the policy says that a bench's set is a batch system's."""
    found = in_child(partial(_kept_back, store), _BEGINS_WITHIN_S)
    assert isinstance(found, list)
    if not found:
        raise UsageError(
            f"{shown(store)}: by its policy (sets.batch) {SET_PREFIX}… is a batch set, which a bench cannot remove: narrow the pattern"
        )
    return Room(shown(store), *found)


def _kept_back(store: str) -> list[int]:
    policy = settings.parse(layout.policy_text(store))
    if policy.is_batch(f"{SET_PREFIX}{places.new_token()}".encode()):
        return []
    free = os.statvfs(store)
    total_bytes = free.f_blocks * free.f_frsize
    reserve_bytes = max(policy.quota.reserve.bytes_of(total_bytes), int(policy.keep_free * total_bytes))
    return [free.f_bavail * free.f_frsize - reserve_bytes, reserve_bytes]


# Pages


def forget(asked: Asked, place: Place, volume: str | None) -> str:
    """Drop what the kernel keeps of the stream in *place*; why that cannot be done, or nothing. Raises Refused."""
    if place.name == CKFS and volume is None:
        return "only root reaches the pages that the store's file system keeps"
    is_done = in_child(partial(_forget, asked, place, volume), _BEGINS_WITHIN_S)
    return "" if is_done else "the file system keeps what is written there in memory"


def _forget(asked: Asked, place: Place, volume: str | None) -> bool:
    if place.name != CKFS:
        with place.entered():
            return _forgotten(workloads.STREAM, None)
    assert volume is not None
    with opened(place.top, device=place.device) as top_fd:
        path = _place_in_store(top_fd, f"{place.below}/{workloads.STREAM}")
    below = os.path.relpath(path, volume)
    with opened(volume) as volume_fd:
        realm = os.stat("/".join(below.split("/")[:2]), dir_fd=volume_fd, follow_symlinks=False)
        with as_owner(Owner(Uid(realm.st_uid), Gid(realm.st_gid))):  # whom the set is stored as
            return _forgotten(below, volume_fd)


def _forgotten(path: str, dir_fd: int | None) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return not syscalls.is_in_memory(fd) and workloads.forget_pages(fd)
    finally:
        os.close(fd)


# The end


@dataclass(frozen=True, slots=True)
class Left:
    """What could not be removed, and why."""

    path: str
    why: str


def clean(asked: Asked) -> tuple[list[Left], bool]:
    """Remove the set and the control directory, if they are there: what is left, and whether something may have gone to the trash."""
    left, is_clean = [], True
    tops = (asked.control,) if asked.control else asked.volumes
    for top, name, device in (
        (asked.mountpoint, asked.set_name, asked.device),
        *((top, asked.control_name, None) for top in tops),
    ):
        try:
            is_clean = bool(in_child(partial(_removed, top, name, device), _ENDS_WITHIN_S)) and is_clean
        except Refused as error:
            if error.number != errno.ENOENT:
                left.append(Left(shown(os.path.join(top, name)), str(error)))
    return left, not is_clean


def _removed(top: str, name: str, device: int | None) -> bool:
    with contextlib.suppress(FileNotFoundError), opened(top, device=device) as top_fd:
        return places.remove(top_fd, name)
    return True
