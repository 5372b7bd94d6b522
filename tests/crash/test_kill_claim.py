"""A mount is killed at each of the store calls by which a batch set that nobody owns becomes its owner's: a real process of its
own, and SIGKILL.

On a plain store its files are chowned; where root is squashed they are kept by the service account, and are copied. Whatever
the moment, the set is nobody's or its owner's and shows all that was in it; the next look brings the claim to its end, or it is
made again; and then nothing is left of how it was.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ckfs.fs.metadata import Changes
from ckfs.model import Owner, State
from ckfs.names import SetName
from ckfs.store import remains
from ckfs.store.entries import SetEntry, decode
from tests.crash.dying import Work, changes, killed
from tests.fs.cores import ALICE, KnownJobs, Mount, copied, mounted, new_store
from tests.fs.failing import Failing
from tests.support.nfs import on_server, remove

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SET = "7.server.CK"
HERS = Owner(ALICE.uid, ALICE.gid)
JOBS = KnownJobs({SET.encode(): HERS})
IMAGE, CORE = b"image" * 300_000, b"core"
"""The one takes several pieces to copy."""

Tree = dict[str, tuple[int, int, State, bytes]]
"""Mode, inode, state and content of all that is in the set."""


async def by_root(mount: Mount) -> None:
    """As TORQUE's server does, or an admin."""
    await mount.root.setattr(SET, Changes(uid=ALICE.uid, gid=ALICE.gid))


async def by_her(mount: Mount) -> None:
    """A user whom a resolver knows as the job's owner claims the set when she first makes something in it."""
    await mount.alice.mkdir(f"{SET}/hers")


@dataclass(frozen=True)
class Claim:
    """*made* is what she makes by it."""

    act: Callable[[Mount], Awaitable[None]]
    made: frozenset[str] = frozenset()


CLAIMS = {"root's chown": Claim(by_root), "her first directory": Claim(by_her, frozenset({f"{SET}/hers"}))}


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    store = new_store(file_system)

    async def fill() -> None:
        async with mounted(store) as mount:
            root = mount.root
            await root.mkdir(SET)
            await root.save(f"{SET}/image", IMAGE)
            await root.mkdir(f"{SET}/dump")
            await root.save(f"{SET}/dump/core.img", CORE)
            await root.symlink(f"{SET}/newest", b"dump/core.img")
            async with root.at(f"{SET}/image") as ino:
                await mount.fs.extended.set(ino, b"user.note", b"of root", root.caller)

    trio.run(fill)
    return store


def claiming(store: Path, claim: Claim, said: int) -> Work:
    """A mount on which the set is claimed; what is done is said to the pipe *said*."""

    async def run() -> None:
        async with mounted(store, jobs=JOBS) as mount:
            await claim.act(mount)
            os.write(said, b".")

    def work() -> int:
        trio.run(run)
        return 0

    return work


async def tree(mount: Mount) -> Tree:
    return {
        name: (seen.mode, seen.ino, seen.state, seen.content)
        for name, seen in (await mount.root.walk()).items()
    }


def entry_of(store: Path) -> SetEntry:
    return decode(os.fsencode(os.readlink(on_server(store) / "names" / SET)))


def places(store: Path) -> dict[str, set[str]]:
    """What lies below ``users/``, by user."""
    return {
        user.name: {place.name for place in user.iterdir()} for user in (on_server(store) / "users").iterdir()
    }


def left(store: Path) -> list[str]:
    """Locks and half-made files; the link of one who died while he changed a name stays, and harms nobody (docs/store.md)."""
    return [name for name in os.listdir(on_server(store) / "staging") if not name.startswith("staging-")]


@pytest.mark.parametrize("how", CLAIMS)
def test_a_claim_that_dies_at_any_step_is_finished_by_the_next_look(
    how: str, failing: Failing, template: Path, directory: Path
) -> None:
    claim = CLAIMS[how]

    async def read() -> Tree:
        async with mounted(template, node="c") as mount:
            return await tree(mount)

    before = trio.run(read)
    reading, said = os.pipe2(os.O_NONBLOCK)
    count = changes(failing, claiming(copied(template, directory / "whole"), claim, said))
    assert os.read(reading, 2) == b"."
    was_hers = set()
    assert count
    for at in range(1, count + 1):
        store = copied(template, directory / str(at))
        assert killed(failing, at, claiming(store, claim, said))
        owner = entry_of(store).owner
        assert owner in (None, HERS), f"at {at}"
        try:
            assert os.read(reading, 2) == b"."
            assert owner == HERS, f"acknowledged, and lost at {at}"
        except BlockingIOError:
            pass
        was_hers.add(owner == HERS)
        trio.run(_goes_on, store, claim, before, f"at {at}")
        remove(store)
    os.close(reading)
    os.close(said)
    assert was_hers == {False, True}, "it has died before the set was hers, and after"


async def _goes_on(store: Path, claim: Claim, before: Tree, where: str) -> None:
    async with mounted(store, node="b", jobs=JOBS) as mount:
        found = await tree(mount)  # the look
        assert found.keys() - before.keys() <= claim.made, where
        assert {name: found.get(name) for name in before} == before, where
        if entry_of(store).owner is None:
            await claim.act(mount)
        remains.remove_left(mount.core.store)  # as a mount does when it begins
        after = await tree(mount)
        assert {name: after.get(name) for name in before} == before, where
        async with mount.alice.at(f"{SET}/image") as ino:
            assert await mount.fs.extended.get(ino, b"user.note", mount.alice.caller) == b"of root", where
        assert mount.core.following == {}, where
        entry, _ = mount.core.store.names.examine(SetName(SET.encode()))
    assert (entry.owner, entry.stored) == (HERS, HERS), where
    place = on_server(store).joinpath(*map(os.fsdecode, entry.spot.components))
    assert {user for user, there in places(store).items() if there} == {str(ALICE.uid)}, where
    assert places(store)[str(ALICE.uid)] == {place.name}, where
    files = [place, *place.rglob("*")]
    assert {(file.lstat().st_uid, file.lstat().st_gid) for file in files} == {(HERS.uid, HERS.gid)}, where
    assert left(store) == [], where
