"""A selftest from its beginning to its end: the scratch directory, each check in a process of its own, and what is left.

Once the store has not answered, nothing more is asked of it than whether it does again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from ckfs.engines.opening import mounted_on
from ckfs.errors import CkfsError, FsError, StoreUnusable, UsageError
from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.policy import settings
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.sizes import shown_size
from ckfs.selftest import (
    coherence,
    identities,
    joining,
    late,
    quotas,
    racing,
    renaming,
    roots,
    scratch,
    speed,
    syncing,
    xattrs,
)
from ckfs.selftest.advice import Topic, advice
from ckfs.selftest.outcome import Check, Outcome, Verdict, decoded, encoded, fail, not_tried, ok, warn
from ckfs.selftest.peers import Peer
from ckfs.selftest.place import Place
from ckfs.selftest.serving import PROOF
from ckfs.selftest.supervision import Died, NoAnswer, bounded
from ckfs.store import layout
from ckfs.store.identity import ROOT, acting_as

SCRATCH, LEFT_OVERS, NOTHING_LEFT = "store.scratch", "store.left_overs", "store.nothing_left"
_CKFS = "fuse.ckfs"
_PATIENCE = 2
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ANSWERS_WITHIN_S = 5.0


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


@dataclass(frozen=True, slots=True)
class About:
    """Of the store, for the head of a report."""

    kind: str
    source: str
    options: str


Tell = Callable[[Outcome], None]


def run(asked: Asked, tell: Tell, about: Callable[[About], None]) -> None:
    """*tell* each outcome when it is known. Whatever ends this, the scratch directory is removed. Raises UsageError, StoreUnusable."""
    try:
        found = bounded(partial(_begin, asked, os.getpid()), asked.timeout_s)
    except (NoAnswer, Died) as error:
        _say_that_nothing_can_be_tried(asked, tell, str(error))
        return
    assert isinstance(found, dict)
    if "wrong" in found:
        raise UsageError(str(found["wrong"]))
    about(About(found["kind"], found["source"], found["options"]))
    if "refused" in found:
        _say_that_nothing_can_be_tried(asked, tell, str(found["refused"]), str(found["mend"]))
        return
    place = _place(asked, found)
    try:
        tell(decoded(found["outcome"]))
        tell(_left_overs(place))
        _run_all(place, checks(asked, place), tell)
    finally:
        with _undisturbed():
            left = _removed(place)
        tell(left)


def checks(asked: Asked, place: Place | None) -> list[Check]:
    """Those that are meant, in their order."""
    return [check for check in _all(asked, place) if check in joining.CHECKS or _is_meant(check, asked.only)]


def groups() -> list[str]:
    """What the names of checks begin with."""
    nothing = Asked("", (ROOT, ROOT))
    return list(dict.fromkeys(one.partition(".")[0] for check in _all(nothing, None) for one in check.ids))


def _is_meant(check: Check, only: tuple[str, ...]) -> bool:
    return not only or any(name in (one, one.partition(".")[0]) for one in check.ids for name in only)


def _all(asked: Asked, place: Place | None) -> tuple[Check, ...]:
    tries_engine = place is not None and quotas.wanted(place)
    says_late = asked.limited is not None or not tries_engine
    return (
        *joining.CHECKS,
        *identities.CHECKS,
        *roots.CHECKS,
        *xattrs.CHECKS,
        *racing.CHECKS,
        *renaming.CHECKS,
        *syncing.CHECKS,
        *coherence.CHECKS,
        quotas.CHECK if tries_engine else quotas.NO_ENGINE,
        *([late.check_of(limited=asked.limited is not None)] if says_late else ()),
        *speed.CHECKS,
    )


def _run_all(place: Place, chosen: Sequence[Check], tell: Tell) -> None:
    answers = True
    for check in chosen:
        if not answers:
            for one in check.ids:
                tell(not_tried(one, "the store does not answer any more"))
            continue
        outcomes, answers = _run(place, check)
        for outcome in outcomes:
            tell(outcome)
        if check in joining.CHECKS and outcomes[0].verdict is not Verdict.OK:
            place = replace(place, peers=())


def _run(place: Place, check: Check) -> tuple[list[Outcome], bool]:
    """What it found, and whether the store still answers."""
    limit_s = place.timeout_s * check.patience
    try:
        found = bounded(lambda: [encoded(outcome) for outcome in _outcomes(place, check)], limit_s)
    except NoAnswer as error:
        return _all_failed(check, str(error)), _answers(place)
    except Died as error:
        return _all_failed(check, str(error)), True
    assert isinstance(found, list)
    return [decoded(values) for values in found], True


def _outcomes(place: Place, check: Check) -> list[Outcome]:
    """In the process of the check."""
    os.chdir(place.room)
    try:
        return check.run(place)
    except OSError as error:
        return _all_failed(check, error.strerror or str(error), _mend(error))


def _all_failed(check: Check, says: str, mend: str = "") -> list[Outcome]:
    return [fail(one, says, mend) for one in check.ids]


def _answers(place: Place) -> bool:
    """Not only the one call may have hung."""
    try:
        bounded(partial(_make_room, place), min(_ANSWERS_WITHIN_S, place.timeout_s))
    except (NoAnswer, Died):
        return False
    return True


def _make_room(place: Place) -> None:
    os.chdir(place.room)
    place.new_room()


def _say_that_nothing_can_be_tried(asked: Asked, tell: Tell, says: str, mend: str = "") -> None:
    tell(fail(SCRATCH, says, mend))
    for check in checks(asked, None):
        for one in check.ids:
            tell(not_tried(one, "there is no scratch directory"))


# The beginning and the end, in processes of their own


def _begin(asked: Asked, pid: int) -> dict[str, object]:
    """Make the scratch directory, for the process *pid*. What is found is plain values for :func:`_place`."""
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
            return found | _made(asked, store_fd, pid, mounted.kind)
    except (FileNotFoundError, NotADirectoryError) as error:
        return {
            "wrong": f"{shown(asked.store)}: {error.strerror}: give the store's directory, or where it is to be"
        }


def _made(asked: Asked, store_fd: int, pid: int, kind: str) -> dict[str, object]:
    worker = scratch.Worker.here(pid)
    try:
        keeper, squashed, root_is, name = _keeper(store_fd, worker)
    except PermissionError as error:
        says = f"nothing can be made in the store's directory: {error.strerror}, as root and as its owner"
        return {"refused": says, "mend": advice(kind, Topic.ROOT)}
    except OSError as error:
        return {
            "refused": f"nothing can be made in the store's directory: {error.strerror}",
            "mend": _mend(error),
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
        return {"refused": f"nothing can be written in the store: {error.strerror}", "mend": _mend(error)}
    return {
        "scratch": name,
        "room": room,
        "keeper": [keeper.uid, keeper.gid],
        "squashed": squashed,
        "root_is": root_is,
        "is_store": is_store,
        "quota": None if quota is None else [quota.mode.value, quota.engine],
        "outcome": encoded(ok(SCRATCH, says, free_bytes=free_bytes)),
    }


def _mend(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return "mount it for writing"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    return "see what the system's log says of this mount"


def _keeper(store_fd: int, worker: scratch.Worker) -> tuple[Owner, bool, int, str]:
    """Who keeps the store, whether root is squashed, whom what root makes belongs to (-1: he can make nothing), and the name of
    the scratch directory."""
    status = os.fstat(store_fd)
    owner = Owner(Uid(status.st_uid), Gid(status.st_gid))
    try:
        name = scratch.make(store_fd, ROOT, worker)
    except PermissionError:
        if owner == ROOT:
            raise
        return owner, True, -1, scratch.make(store_fd, owner, worker)
    made_by = os.stat(name, dir_fd=store_fd, follow_symlinks=False).st_uid
    if made_by == ROOT.uid:
        return ROOT, False, made_by, name
    scratch.remove(store_fd, name)
    return owner, True, made_by, scratch.make(store_fd, owner, worker)


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


def _place(asked: Asked, found: Mapping[str, object]) -> Place:
    keeper, quota = found["keeper"], found["quota"]
    assert isinstance(keeper, list)
    assert quota is None or isinstance(quota, list)
    here = (Peer(f"{path} here", None, path) for path in asked.others)
    return Place(
        store=asked.store,
        scratch=os.path.join(asked.store, str(found["scratch"])),
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


def _left_overs(place: Place) -> Outcome:
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


def _remove(place: Place, store_fd: int, name: str) -> None:
    """A scratch directory, and what an engine keeps of it."""
    left = None
    for users in (
        scratch.within(os.path.join(place.store, name), quotas.USERS) if quotas.wanted(place) else ()
    ):
        try:
            if os.listdir(users):
                quotas.clear(place, users)
        except FsError as error:
            left = error
    scratch.remove(store_fd, name)
    if left is not None:
        raise CkfsError(f"the directory is gone, but not what the engine keeps of it: {left}")


def _removed(place: Place) -> Outcome:
    def remove() -> None:
        with scratch.opened_store(place.store) as store_fd:
            _remove(place, store_fd, os.path.basename(place.scratch))

    try:
        bounded(remove, place.timeout_s * _PATIENCE)
    except (NoAnswer, Died) as error:
        says = f"{shown(place.scratch)} cannot be removed: {error}"
        return fail(NOTHING_LEFT, says, "the next selftest removes it, once the store answers")
    return ok(NOTHING_LEFT, "the scratch directory is removed")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever is impatient has been heard: removing takes a limited time."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
