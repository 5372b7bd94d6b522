"""A mount dies at each of the store calls by which an image, or a set, goes from one state to the next.

Another mount then finds the state before or the one after, nothing else, and every complete checkpoint, still protected. The
calls on the store are counted in process, so that each step is met for certain.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import trio

from ckfs.errors import FsError, errno_of
from ckfs.fs.metadata import Changes
from ckfs.fs.superseded import Superseded
from ckfs.model import Role, State
from ckfs.names import SetName
from ckfs.store import rereading
from ckfs.store.rereading import Checker
from ckfs.store.spots import Spot
from tests.crash.dying import CHANGES
from tests.fs.cores import ALICE, Mount, Seen, copied, lies_at, mounted, new_store
from tests.fs.failing import Failing, Killed
from tests.support.nfs import is_on_client, remove

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SET = "7.server.CK"
OLDEST, OLDER, NEWEST, DAMAGED = b"oldest", b"older", b"newest", b"Newest"
_DAY_NS = 86_400_000_000_000
_MOST_CALLS = 300

Found = tuple[State, bytes] | None
"""An image's state and content; None if it is not there."""
ABSENT: Found = None


@dataclass(frozen=True)
class Transition:
    """*act* after *prepare* which is not killed. *legal* has for an image all that may be found afterwards."""

    name: str
    act: Callable[[Mount], Awaitable[object]]
    legal: dict[str, set[Found]]
    prepare: Callable[[Mount], Awaitable[object]] | None = None
    role: Role = Role.NODE
    removes: frozenset[bytes] = frozenset()


async def _write(mount: Mount, name: str, content: bytes) -> None:
    handle = await mount.alice.create(f"{SET}/{name}")
    await mount.fs.content.write(handle, 0, content)
    await mount.alice.close(handle)


async def _write_in_vain(mount: Mount) -> None:
    handle = await mount.alice.create(f"{SET}/new")
    await mount.fs.content.write(handle, 0, b"new")
    full = OSError(errno.ENOSPC, "on purpose")
    with mock.patch.object(os, "pwrite", side_effect=full), pytest.raises((OSError, FsError)) as raised:
        await mount.fs.content.write(handle, 3, b"more")
    assert errno_of(raised.value) == errno.ENOSPC
    await mount.alice.close(handle)


async def _write_and_sync(mount: Mount) -> None:
    handle = await mount.alice.create(f"{SET}/new")
    await mount.fs.content.write(handle, 0, b"new")
    await mount.fs.content.fsync(handle, data_only=False)


async def _as_blcr(mount: Mount) -> None:
    """Renamed while it is open."""
    handle = await mount.alice.create(f"{SET}/.new.tmp")
    await mount.fs.content.write(handle, 0, b"new")
    await mount.alice.rename(f"{SET}/.new.tmp", f"{SET}/new")
    await mount.fs.content.fsync(handle, data_only=False)
    await mount.alice.close(handle)


async def _overwrite(mount: Mount) -> None:
    handle = await mount.alice.open(f"{SET}/oldest", os.O_WRONLY | os.O_TRUNC)
    await mount.fs.content.write(handle, 0, b"again")
    await mount.alice.close(handle)


async def _say(mount: Mount, value: bytes) -> None:
    async with mount.root.at(SET) as ino:
        await mount.fs.extended.set(ino, b"user.ckfs.keep", value, mount.root.caller)


async def _expire(mount: Mount) -> None:
    """As housekeeping does, when its time is over."""
    Superseded(mount.core, mount.fs.sets.guard).expire(SetName(SET.encode()), time.time_ns() + 40 * _DAY_NS)


def _newest(mount: Mount) -> Spot:
    entry = mount.core.store.names.read(SetName(SET.encode()))
    return Spot(entry.stored, (*entry.spot.components, b"newest"))


async def _digest(mount: Mount) -> None:
    door, spot = mount.core.store.door, _newest(mount)
    reading = rereading.begin(door, spot, door.examine(spot))
    assert reading is not None, "it has a digest already"
    reading.to_the_end(lambda _: None)
    reading.keep()


async def _damage(mount: Mount) -> None:
    """Its digest is made, and then a bit of the image flips in the store."""
    await _digest(mount)
    fd = os.open(lies_at(Path(mount.core.store.path), SET) / "newest", os.O_WRONLY)
    os.pwrite(fd, DAMAGED[:1], 0)
    os.close(fd)


async def _compare(mount: Mount) -> None:
    checker = Checker(mount.core.store.door, marks=True, makes=False, progress=lambda _: None)
    checker.check(_newest(mount), time.time_ns())


async def _none(_: Mount) -> None: ...


WRITING, COMPLETE, PARTIAL, SUPERSEDED = State.WRITING, State.COMPLETE, State.PARTIAL, State.SUPERSEDED
_TORN: set[Found] = {ABSENT, (WRITING, b""), (PARTIAL, b""), (PARTIAL, b"new")}
"""Empty and ``writing`` only between being made and being marked by its writer's mount."""
_NEW: set[Found] = {*_TORN, (COMPLETE, b"new")}
_OUTLIVED: set[Found] = {(COMPLETE, OLDER), (SUPERSEDED, OLDER)}
TRANSITIONS = (
    Transition("close", lambda m: _write(m, "new", b"new"), {"new": _NEW, "older": _OUTLIVED}),
    Transition(
        "rename of a closed image",
        lambda m: m.alice.rename(f"{SET}/.new.tmp", f"{SET}/new"),
        {
            ".new.tmp": {ABSENT, (WRITING, b"new")},
            "new": {ABSENT, (COMPLETE, b"new")},
            "older": _OUTLIVED,
        },
        prepare=lambda m: _write(m, ".new.tmp", b"new"),
    ),
    Transition("as BLCR writes", _as_blcr, {"new": _NEW, "older": _OUTLIVED}),
    Transition("fsync", _write_and_sync, {"new": _NEW}),
    Transition(
        "failed write",
        _write_in_vain,
        {"new": _TORN, "older": {(COMPLETE, OLDER)}, "oldest": {ABSENT, (SUPERSEDED, OLDEST)}},
        removes=frozenset({OLDEST}),  # what newer ones outlived gives way to who has no room
    ),
    Transition(
        "overwriting",
        _overwrite,
        {
            "oldest": {
                (SUPERSEDED, OLDEST),
                (WRITING, b""),
                (PARTIAL, OLDEST),
                (PARTIAL, b""),
                (PARTIAL, b"again"),
                (COMPLETE, b"again"),
            },
            "older": _OUTLIVED,
        },
        removes=frozenset({OLDEST}),
    ),
    Transition(
        "appending",
        lambda m: m.alice.append(f"{SET}/oldest", b"+"),
        {
            "oldest": {
                (SUPERSEDED, OLDEST),
                (PARTIAL, OLDEST),
                (PARTIAL, OLDEST + b"+"),
                (COMPLETE, OLDEST + b"+"),
            },
            "older": _OUTLIVED,
        },
        removes=frozenset({OLDEST}),
    ),
    Transition(
        "removal of a superseded one",
        lambda m: m.alice.unlink(f"{SET}/oldest"),
        {"oldest": {ABSENT, (SUPERSEDED, OLDEST)}},
        removes=frozenset({OLDEST}),
    ),
    Transition(
        "removal by the server",
        lambda m: m.root.unlink(f"{SET}/newest"),
        {
            "newest": {ABSENT, (COMPLETE, NEWEST)},
            "older": {(COMPLETE, OLDER)},
            "oldest": {(SUPERSEDED, OLDEST), (COMPLETE, OLDEST)},
        },
        role=Role.SERVER,
        removes=frozenset({NEWEST}),
    ),
    Transition(
        "the end of a superseded one's time",
        _expire,
        {"oldest": {ABSENT, (SUPERSEDED, OLDEST)}, "older": {(COMPLETE, OLDER)}},
        removes=frozenset({OLDEST}),
    ),
    Transition("the making of a digest", _digest, {"newest": {(COMPLETE, NEWEST)}}),
    Transition(
        "the marking of a damaged one",
        _compare,
        {"newest": {(COMPLETE, DAMAGED), (PARTIAL, DAMAGED)}, "older": {(COMPLETE, OLDER)}},
        prepare=_damage,
        removes=frozenset({NEWEST}),
    ),
    Transition("setting the set aside", lambda m: m.root.rename(SET, f"{SET}.old"), {}),
    Transition("release", lambda m: _say(m, b"released"), {}, removes=frozenset({OLDER, NEWEST})),
    Transition("pin", lambda m: _say(m, b"pinned/oldest"), {"oldest": {(SUPERSEDED, OLDEST)}}),
)


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    store = new_store(file_system)

    async def fill() -> None:
        async with mounted(store) as mount:
            await mount.root.mkdir(SET)
            await mount.root.setattr(SET, Changes(uid=ALICE.uid, gid=ALICE.gid))
            for content in (OLDEST, OLDER, NEWEST):
                await mount.alice.save(f"{SET}/{content.decode()}", content)

    trio.run(fill)
    return store


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda transition: transition.name)
def test_a_death_at_any_step_leaves_a_legal_state_and_every_complete_checkpoint(
    transition: Transition, failing: Failing, template: Path, directory: Path
) -> None:
    only = CHANGES if is_on_client(directory) else None  # there each call would take long
    trio.run(_one, transition, failing, copied(template, directory / "whole"), _MOST_CALLS, only)
    assert 0 < failing.count < _MOST_CALLS, "the transition never ends"
    for at in range(1, failing.count + 1):
        store = copied(template, directory / str(at))
        trio.run(_one, transition, failing, store, at, only)
        remove(store)


async def _one(
    transition: Transition, failing: Failing, store: Path, at: int, only: Container[str] | None
) -> None:
    async with mounted(store, role=transition.role) as mount:
        await (transition.prepare or _none)(mount)
        with failing.armed(at, Killed, only):
            try:
                await transition.act(mount)
            except (Killed, FsError, OSError):
                assert failing.count >= at
            where = f"at {at} of {failing.log}"
    async with mounted(store, node="b") as after:
        after.core.reads_partial = True
        await _check(after, transition, where)


async def _worth(mount: Mount, path: str) -> State:
    """What others are told of it: ``user.ckfs.state``."""
    async with mount.root.at(path) as ino:
        return State((await mount.fs.extended.get(ino, b"user.ckfs.state", mount.root.caller)).decode())


async def _check(mount: Mount, transition: Transition, where: str) -> None:
    seen: dict[str, Seen] = await mount.root.walk()
    for name, legal in transition.legal.items():
        file = seen.get(f"{SET}/{name}")
        found = None if file is None else (await _worth(mount, f"{SET}/{name}"), file.content)
        assert found in legal, f"{name} is {found} {where}"
    contents = {file.content for file in seen.values()}
    assert {OLDEST, OLDER, NEWEST} - transition.removes <= contents, f"there is {seen} {where}"
    newest = next((path for path, file in seen.items() if file.content == NEWEST), None)
    if newest is not None and NEWEST not in transition.removes:
        assert seen[newest].state is COMPLETE, where
        for process in (mount.alice, mount.root):
            with pytest.raises((FsError, OSError)) as raised:
                await process.unlink(newest)
            assert errno_of(raised.value) == errno.EACCES, where
