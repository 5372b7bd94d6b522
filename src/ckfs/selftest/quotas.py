"""Whether quotas by the store's engine hold: a limit is set in the scratch directory, read, and met.

The driver works in a ``users/`` of its own, on one user's number that nobody has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

from ckfs.engines import proven
from ckfs.engines.engine import Engine
from ckfs.engines.opening import detect, open_engine
from ckfs.errors import FsError
from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.policy.enforcing import AUTO, QuotaMode
from ckfs.policy.quota import Settings
from ckfs.selftest import scratch
from ckfs.selftest.late import LATE, Filled, Told, fill, judged
from ckfs.selftest.outcome import Check, Figure, Outcome, fail, not_tried, ok, warn
from ckfs.selftest.place import Place
from ckfs.store.identity import acting_as

LIMIT, ENFORCED = "quota.limit", "quota.enforced"
_IDS = (LIMIT, ENFORCED, LATE)
USERS = "users"
_LIMIT_BYTES = 16 << 20
_MOST_BYTES = 4 * _LIMIT_BYTES
_PIECE = os.urandom(64 << 10)
_FIRST_UID, _UIDS = 2_000_000_000, 100_000_000
_COUNTS_ELSEWHERE = "statvfs"


def wanted(place: Place) -> bool:
    """Whether there is an engine to try."""
    return place.quota is not None and place.quota.mode is QuotaMode.ENGINE


def _try(place: Place) -> list[Outcome]:
    quota = place.quota
    assert quota is not None
    name = detect(place.kind) if quota.engine == AUTO else quota.engine
    if name == _COUNTS_ELSEWHERE:
        why = f"no engine of ckfs's is for {place.kind}: limits are set by its own tool"
        return [not_tried(check, why) for check in _IDS]
    users = USERS
    os.mkdir(users)
    os.chmod(users, 0o1777)
    uid = Uid(_FIRST_UID + secrets.randbelow(_UIDS))
    try:
        with _opened(place, users) as engine:
            outcomes = _tried(place, engine, users, uid)
        clear(place, users)
        return outcomes
    except FsError as error:
        return [
            fail(LIMIT, f"{name}: {error}"),
            *(not_tried(check, "no limit could be set") for check in _IDS[1:]),
        ]


@contextlib.contextmanager
def _opened(place: Place, users: str) -> Iterator[Engine]:
    assert place.quota is not None
    fd = os.open(users, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.closing(open_engine(fd, place.quota)) as engine:
        yield engine


def _tried(place: Place, engine: Engine, users: str, uid: Uid) -> list[Outcome]:
    engine.prepare(uid, Gid(uid))
    engine.set_limits(uid, Settings(hard_bytes=_LIMIT_BYTES))
    said = engine.account(uid).limits.bytes.hard
    mend = "see docs/quotas.md for what has to be done first"
    if said != _LIMIT_BYTES:
        return [
            fail(LIMIT, f"{engine.name}: a limit of {_LIMIT_BYTES} bytes was set, and {said} is said", mend),
            *(not_tried(check, "no limit could be set") for check in _IDS[1:]),
        ]
    set_ok = ok(
        LIMIT, f"{engine.name}: a limit of {_LIMIT_BYTES >> 20} MiB is set, and said", engine=engine.name
    )
    owner, path = Owner(uid, Gid(uid)), os.path.join(users, str(uid), "file")
    filled = fill(path, owner, _MOST_BYTES, _PIECE)
    used = engine.account(uid).used.bytes
    if filled.told is Told.NEVER:
        says = f"{engine.name}: {filled.written >> 20} MiB were written beyond a limit of {_LIMIT_BYTES >> 20} MiB"
        return [set_ok, fail(ENFORCED, says, mend), not_tried(LATE, "no limit was met")]
    with acting_as(owner):
        os.unlink(path)
    again = fill(path, owner, len(_PIECE), _PIECE)
    if again.told is not Told.NEVER:
        says = f"{engine.name}: who has removed what he had cannot write again"
        return [set_ok, fail(ENFORCED, says, mend), judged(place, filled)]
    return [set_ok, _enforced(place, engine, filled, used), judged(place, filled)]


def _enforced(place: Place, engine: Engine, filled: Filled, used: int) -> Outcome:
    name = errno.errorcode[filled.number]
    over = max(filled.written, used) - _LIMIT_BYTES
    figures: dict[str, Figure] = {
        "engine": engine.name,
        "written_bytes": filled.written,
        "over_bytes": max(0, over),
    }
    if over > _LIMIT_BYTES // 2:
        says = f"{engine.name}: a limit of {_LIMIT_BYTES >> 20} MiB stopped the writer {over >> 20} MiB beyond it"
        return warn(ENFORCED, says, "see docs/quotas.md for the engine's delays", **figures)
    if name == "ENOSPC" and not engine.says_full:
        says = f"{engine.name}: who is over his limit is told that the store is full"
        return fail(ENFORCED, says, "make room in the store, and try again", **figures)
    _record(place, engine)
    return ok(ENFORCED, f"{engine.name}: the limit stopped the writer ({name})", **figures)


def _record(place: Place, engine: Engine) -> None:
    """From now on mounts of the store do not say any more that the driver was never tried."""
    if not place.is_store:
        return
    fd = os.open(
        os.path.join(place.store, USERS), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        proven.record(fd, engine.name)
    finally:
        os.close(fd)


def clear(place: Place, users: str) -> None:
    """Take away the realms in *users*, and what the engine keeps of them; also for what a selftest has left that was killed."""
    with _opened(place, users) as engine:
        for account in engine.accounts():
            engine.set_limits(account.uid, Settings())
            scratch.empty(os.path.join(users, str(account.uid)))
            engine.forget(account.uid)


def check_of(*, tells_late: bool) -> Check:
    """*tells_late*: nobody was named who is near to a limit of his own, so that this one's is what late errors are tried by."""
    ids = _IDS if tells_late else (LIMIT, ENFORCED)
    return Check(ids, lambda place: [one for one in _try(place) if one.check in ids], patience=2)


def _nobody(place: Place) -> list[Outcome]:
    why = "quotas are not left to an engine" if place.is_store else "no engine was named"
    return [
        not_tried(check, why, "" if place.is_store else "give --engine auto") for check in (LIMIT, ENFORCED)
    ]


NO_ENGINE = Check((LIMIT, ENFORCED), _nobody)
