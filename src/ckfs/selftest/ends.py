"""The beginning and the end of a selftest, each made in a process of its own: the scratch directory, and who keeps it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

from ckfs.engines.opening import mounted_on
from ckfs.errors import CkfsError, FsError, StoreUnusable, UsageError
from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.policy import settings
from ckfs.policy.advice import Topic, advice
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.sizes import shown_size
from ckfs.selftest import quotas, scratch
from ckfs.selftest.outcome import Outcome, encoded, fail, ok, warn
from ckfs.selftest.peers import Peer
from ckfs.selftest.place import Place
from ckfs.selftest.serving import PROOF
from ckfs.selftest.supervision import Died, NoAnswer, bounded
from ckfs.store import layout
from ckfs.store.identity import ROOT, acting_as

SCRATCH, LEFT_OVERS, NOTHING_LEFT = "store.scratch", "store.left_overs", "store.nothing_left"
_CKFS = "fuse.ckfs"
_PATIENCE = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was told. *engine* is one of ENGINES, AUTO, or None for what the store's policy says."""

    store: str
    users: tuple[Owner, Owner]
    hosts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    engine: str | None = None
    limited: Owner | None = None
    timeout_s: float = 30.0
    only: tuple[str, ...] = ()
    """Names of checks, or what they begin with up to the dot; empty for all."""


def begin(asked: Asked, name: str, pid: int) -> dict[str, object]:
    """Make the scratch directory *name*, for the process *pid*. What is found is plain values for :func:`place_of`; or ``wrong``, the
    command's error; or ``refused``, what the first line says, with ``mend``."""
    try:
        with scratch.opened_store(asked.store) as store_fd:
            mounted = mounted_on(store_fd)
            if mounted.kind == _CKFS:
                return {
                    "wrong": f"{shown(asked.store)}: on a ckfs mount: name the store, as 'ckfs mount' does"
                }
            found: dict[str, object] = {
                "kind": mounted.kind,
                "source": shown(mounted.source),
                "options": shown(mounted.options),
            }
            return found | _made(asked, store_fd, name, scratch.Worker.here(pid), mounted.kind)
    except (FileNotFoundError, NotADirectoryError) as error:
        return {
            "wrong": f"{shown(asked.store)}: {error.strerror}: give the store's directory, or where it is to be"
        }


def _made(asked: Asked, store_fd: int, name: str, worker: scratch.Worker, kind: str) -> dict[str, object]:
    try:
        keeper, squashed, root_is = _keeper(store_fd, name, worker)
    except PermissionError as error:
        says = f"nothing can be made in the store's directory: {error.strerror}, as root and as its owner"
        return {"refused": says, "mend": advice(kind, Topic.ROOT)}
    except OSError as error:
        return {
            "refused": f"nothing can be made in the store's directory: {error.strerror}",
            "mend": mend_of(error),
        }
    room = os.path.join(name, secrets.token_hex(8))
    quota, is_store = _quota_of(asked, store_fd)
    free = os.fstatvfs(store_fd)
    free_bytes = free.f_bavail * free.f_frsize
    says = f"{kind} with {shown_size(free_bytes)} free, {'a store' if is_store else 'not yet a store'}"
    try:
        with acting_as(keeper):
            os.mkdir(room, 0o711, dir_fd=store_fd)
            os.chmod(room, 0o711, dir_fd=store_fd)
            _write_proof(store_fd, room)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.remove(store_fd, name)
        return {"refused": f"nothing can be written in the store: {error.strerror}", "mend": mend_of(error)}
    return {
        "room": room,
        "keeper": [keeper.uid, keeper.gid],
        "squashed": squashed,
        "root_is": root_is,
        "is_store": is_store,
        "quota": None if quota is None else [quota.mode.value, quota.engine],
        "outcome": encoded(ok(SCRATCH, says, free_bytes=free_bytes)),
    }


def mend_of(error: OSError) -> str:
    """What helps against an error that no check expects."""
    if error.errno == errno.EROFS:
        return "mount it for writing"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    return "see what the system's log says of this mount"


def _keeper(store_fd: int, name: str, worker: scratch.Worker) -> tuple[Owner, bool, int]:
    """Who keeps the store, whether root is squashed, whom what root makes belongs to (-1: he can make nothing); the
    scratch directory is made, as the keeper."""
    status = os.fstat(store_fd)
    owner = Owner(Uid(status.st_uid), Gid(status.st_gid))
    try:
        scratch.make(store_fd, name, ROOT, worker)
    except PermissionError:
        if owner == ROOT:
            raise
        scratch.make(store_fd, name, owner, worker)
        return owner, True, -1
    made_by = os.stat(name, dir_fd=store_fd, follow_symlinks=False).st_uid
    if made_by == ROOT.uid:
        return ROOT, False, made_by
    scratch.remove(store_fd, name)
    scratch.make(store_fd, name, owner, worker)
    return owner, True, made_by


def _write_proof(store_fd: int, room: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(os.path.join(room, PROOF), flags, 0o600, dir_fd=store_fd)
    try:
        os.write(fd, secrets.token_hex(16).encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def _quota_of(asked: Asked, store_fd: int) -> tuple[QuotaPolicy | None, bool]:
    """What is to be tried, and whether there is a store already."""
    try:
        policy = settings.parse(layout.policy_text(f"/proc/self/fd/{store_fd}"))
    except (StoreUnusable, UsageError):
        policy = None
    if asked.engine is not None:
        return QuotaPolicy(mode=QuotaMode.ENGINE, engine=asked.engine), policy is not None
    return (None if policy is None else policy.quota), policy is not None


def place_of(asked: Asked, name: str, found: Mapping[str, object]) -> Place:
    """By what :func:`begin` found."""
    keeper, quota = found["keeper"], found["quota"]
    assert isinstance(keeper, list)
    assert quota is None or isinstance(quota, list)
    here = (Peer(f"{path} here", None, path) for path in asked.others)
    return Place(
        store=asked.store,
        scratch=os.path.join(asked.store, name),
        room=os.path.join(asked.store, str(found["room"])),
        keeper=Owner(Uid(keeper[0]), Gid(keeper[1])),
        squashed=found["squashed"] is True,
        root_is=int(str(found["root_is"])),
        users=asked.users,
        kind=str(found["kind"]),
        timeout_s=asked.timeout_s,
        peers=(*here, *(Peer(host, host, asked.store) for host in asked.hosts)),
        quota=None if quota is None else QuotaPolicy(mode=QuotaMode(quota[0]), engine=str(quota[1])),
        limited=asked.limited,
        is_store=found["is_store"] is True,
    )


def left_overs(place: Place) -> Outcome:
    """What other selftests have left is removed."""
    try:
        found = bounded(partial(_remove_left_overs, place), place.timeout_s * _PATIENCE)
    except (NoAnswer, Died) as error:
        mend = (
            f"remove {shown(os.path.join(place.store, '.ckfs-selftest-*'))} by hand, while no selftest runs"
        )
        return warn(LEFT_OVERS, f"what other selftests have left cannot be removed: {error}", mend)
    assert isinstance(found, list)
    removed, kept = ([one for one in found if one["in_use"] is in_use] for in_use in (False, True))
    said = [f"{one['name']}, left by {one['by']}, was removed" for one in removed]
    said += [f"{one['name']} is of {one['by']}, which may be running" for one in kept]
    if kept:
        mend = "wait for it, or run selftest there; after an hour it is taken for left behind"
        return warn(LEFT_OVERS, "; ".join(said), mend)
    return ok(LEFT_OVERS, "; ".join(said) or "no other selftest has left anything", removed=len(removed))


def _remove_left_overs(place: Place) -> list[dict[str, object]]:
    with scratch.opened_store(place.store) as store_fd:
        found = scratch.left_overs(store_fd, place.keeper, os.path.basename(place.scratch))
        for one in found:
            if not one.in_use:
                _remove(place, store_fd, one.name)
    return [asdict(one) for one in found]


def _remove(place: Place | None, store_fd: int, name: str) -> None:
    """A scratch directory, and what an engine keeps of it."""
    left = None
    if place is not None and quotas.wanted(place):
        for users in scratch.within(os.path.join(place.store, name), quotas.USERS):
            try:
                if os.listdir(users):
                    quotas.clear(place, users)
            except FsError as error:
                left = error
    scratch.remove(store_fd, name)
    if left is not None:
        raise CkfsError(f"the directory is gone, but not what the engine keeps of it: {left}")


def removed(asked: Asked, name: str, place: Place | None) -> Outcome:
    """The scratch directory *name*, if it is there; *place* is None if it was not known whether it is."""

    def remove() -> None:
        with scratch.opened_store(asked.store) as store_fd:
            _remove(place, store_fd, name)

    try:
        bounded(remove, asked.timeout_s * _PATIENCE)
    except (NoAnswer, Died) as error:
        says = f"{shown(os.path.join(asked.store, name))} cannot be removed: {error}"
        return fail(NOTHING_LEFT, says, "the next selftest removes it, once the store answers")
    return ok(NOTHING_LEFT, "the scratch directory is removed")
