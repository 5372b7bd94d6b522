"""Files that several mounts write, cut, remove and rename over at once, in process: every store call and every question to the ledger of
all of them comes in an order that a seed decides. At each of these moments what is in the store is charged, and no more than may be; in the end
the ledger says what is there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from ckfs.errors import FsError, errno_of
from ckfs.fs.charging import charge
from ckfs.fs.liveness import Fate
from ckfs.fs.metadata import Changes
from ckfs.fs.recounting import Recounting
from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Posting
from ckfs.names import MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from ckfs.store import shares
from ckfs.store.counting import count
from ckfs.store.gate import Gate, Release
from tests.fs.cores import ALICE, Mount, mounted_for_long, new_store
from tests.fs.test_charging import UNIT

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

T = TypeVar("T")

STORE_ID = "7f0c1a52-5c6e-4f3b-9d6e-0a4c3f2b1d00"
HARD = Amount(24 * UNIT, 6)
NAMES = ["set/0.tmp", "set/1.tmp"]
SIZES = [1, UNIT, 3 * UNIT, 5 * UNIT, 9 * UNIT]
OFFSETS = [0, 0, UNIT, 4 * UNIT, 40 * UNIT]
CUTS = [0, 0, 1, 2 * UNIT, 6 * UNIT, 50 * UNIT]
ANSWERS = {errno.EDQUOT, errno.ENOENT, errno.ESTALE, errno.EACCES, errno.EBADF}
ENOUGH_S = 30.0
"""By the clock of the test, which jumps."""


@dataclass
class Order:
    """Who comes next, decided by dice."""

    dice: random.Random
    clock: trio.testing.MockClock
    look: Callable[[], None] = lambda: None
    """What is looked at in between."""
    jumps: bool = field(init=False)
    """Time goes on in between, so that mounts also do what they do from time to time."""

    def __post_init__(self) -> None:
        self.jumps = self.dice.random() < 0.5

    async def wait(self) -> None:
        for _ in range(self.dice.choice([1, 1, 2, 3, 9])):
            await trio.lowlevel.checkpoint()

    async def do(self, work: Callable[[], T]) -> T:
        await self.wait()
        if self.jumps and self.dice.random() < 0.3:
            self.clock.jump(self.dice.choice([0.02, 0.1, 0.3, 0.6]))
        try:
            return work()
        finally:
            self.look()
            await self.wait()


class Ordered(Gate):
    """A gate whose calls are made one at a time, in the loop."""

    order: Order

    async def call(
        self,
        work: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
        releases: Iterable[Release] = (),
        of_set: int = 0,
    ) -> T:
        try:
            return await self.order.do(work)
        finally:
            for release in releases:
                release()

    async def look(self, work: Callable[[], T], *, releases: Iterable[Release] = (), of_set: int = 0) -> T:
        return await self.call(work, releases=releases)

    async def transfer(
        self, work: Callable[[], T], *, releases: Iterable[Release] = (), of_set: int = 0
    ) -> T:
        return await self.call(work, releases=releases)


@dataclass
class Crowd:
    """Writers of one owner on several mounts."""

    mounts: list[Mount]
    ledger: Book
    order: Order
    done: list[str] = field(default_factory=list)

    def standing(self) -> list[str]:
        """What is in the store, and what mounts hold for it."""
        place = self.mounts[0].core.store.path
        files = [
            f"{os.path.basename(path)!r}: {os.stat(path).st_blocks // 8} units, {shares.read(path)}"
            for path in self._paths(place)
        ]
        held = [
            f"{mount.core.node_name!r} {mount.core.mount_id!r}: {session.ino} {session.held // UNIT} {session.under_way}"
            for mount in self.mounts
            for session in mount.core.charging.sessions._sessions.values()  # type: ignore[attr-defined]  # it charges here
        ]
        return [*files, *held]

    @staticmethod
    def _paths(place: str) -> list[bytes]:
        return [
            os.path.join(top, name)
            for top, _, names in os.walk(os.fsencode(place) + b"/users")
            for name in names
        ]

    def check(self) -> None:
        """No limit is passed, and all is charged."""
        core = self.mounts[0].core
        there, account = count(core.store, Uid(ALICE.uid), UNIT), self.ledger.account(Uid(ALICE.uid))
        assert HARD.covers(account.total), f"{account} passes the limit"
        assert HARD.covers(there), f"{there} passes the limit, of {account}"
        assert account.total.covers(there), f"{there} is there, of {account}"

    async def check_settled(self) -> None:
        """In the end nothing is claimed any more, and what is used is what is there, if need be by a recount that a mount asks for."""
        self.order.look = lambda: None
        for mount in self.mounts:
            await mount.core.charging.grants.post()  # type: ignore[attr-defined]  # it charges here
        for mount in self.mounts:
            await self._recount(mount)
        with trio.move_on_after(ENOUGH_S):
            while not self._is_settled() or self.ledger.basis(Uid(ALICE.uid)).files:  # noqa: ASYNC110 - the ledger tells nobody
                await trio.sleep(0.1)
        account = self.ledger.account(Uid(ALICE.uid))
        there = count(self.mounts[0].core.store, Uid(ALICE.uid), UNIT)
        assert (account.used, account.claimed) == (there, NOTHING), f"{there} is there, of {account}"
        assert self.ledger.check() == []
        assert not self.ledger.basis(Uid(ALICE.uid)).files

    async def _recount(self, mount: Mount) -> None:
        recounting = Recounting(mount.core.store, self.ledger, lambda _: Fate.ALIVE, lambda _: None)
        assert all(one.taken_up for one in recounting.repair(mount.core.charging.to_recount))

    def _is_settled(self) -> bool:
        account = self.ledger.account(Uid(ALICE.uid))
        return (account.used, account.claimed) == (
            count(self.mounts[0].core.store, Uid(ALICE.uid), UNIT),
            NOTHING,
        )

    def note_what_is_told(self, mount: Mount) -> None:
        sessions = mount.core.charging.sessions  # type: ignore[attr-defined]  # it charges here
        tell = sessions.tell

        def told(what: object) -> None:
            self.done.append(f"{mount.core.node_name.decode()} is told: {what}")
            tell(what)

        sessions.tell = told

    def note_what_is_posted(self) -> None:
        post = self.ledger.post

        def posted(mount: MountId, number: int, postings: Iterable[Posting]) -> None:
            told = tuple(postings)
            post(mount, number, told)
            self.done.extend(f"    {mount.decode()} posts {number}: {posting}" for posting in told)

        self.ledger.post = posted  # type: ignore[method-assign]  # of this one ledger

    async def write(self, mount: Mount, steps: int) -> None:
        dice = self.order.dice
        for _ in range(steps):
            try:
                await self._step(mount, dice)
            except (OSError, FsError) as error:
                if errno_of(error) not in ANSWERS:
                    raise

    async def _step(self, mount: Mount, dice: random.Random) -> None:
        path = dice.choice(NAMES)
        match dice.randrange(10):
            case 0:
                await self._say(mount, f"unlink {path}", mount.alice.unlink(path))
            case 1 | 2:
                size = dice.choice(CUTS)
                await self._say(mount, f"cut {path} to {size}", mount.alice.setattr(path, Changes(size=size)))
            case 3:
                old, new = dice.sample(NAMES, 2)
                await self._say(mount, f"rename {old} to {new}", mount.alice.rename(old, new))
            case _:
                flags = dice.choice([os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
                await self._hold_open(mount, path, flags | dice.choice([0, 0, os.O_TRUNC]), dice)

    async def _hold_open(self, mount: Mount, path: str, flags: int, dice: random.Random) -> None:
        try:
            handle = await self._say(mount, f"open {path} {flags:o}", mount.alice.open(path, flags))
        except FileNotFoundError:
            handle = await self._say(mount, f"create {path}", mount.alice.create(path, flags=flags))
        try:
            for _ in range(dice.randrange(1, 5)):
                await self._use(mount, handle, path, dice)
        finally:
            await self._say(mount, f"close {path}", mount.alice.close(handle))

    async def _use(self, mount: Mount, number: Any, path: str, dice: random.Random) -> None:
        handle = mount.core.handle(number)
        if dice.randrange(4) == 0:
            size = dice.choice(CUTS)
            changes = Changes(size=size)
            await self._say(
                mount,
                f"cut the open {path} to {size}",
                mount.fs.metadata.setattr(handle.node.ino, changes, number, ALICE),
            )
        else:
            offset, size = dice.choice(OFFSETS), dice.choice(SIZES)
            await self._say(
                mount, f"write {path} {offset}+{size}", mount.fs.content.write(number, offset, b"x" * size)
            )

    async def _say(self, mount: Mount, what: str, call: Awaitable[T]) -> T:
        what = f"{mount.core.node_name.decode()}: {what}"
        self.done.append(what)
        try:
            answer = await call
        except (OSError, FsError) as error:
            self.done.append(f"{what}: {error}")
            raise
        self.done.append(f"{what}: done")
        return answer


@contextlib.asynccontextmanager
async def crowd(place: Path, seed: int, mounts: int, clock: trio.testing.MockClock) -> AsyncIterator[Crowd]:
    order, path = Order(random.Random(seed), clock), new_store(place)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(
            contextlib.closing(sqlite.create(os.fsencode(place / "ledger.sqlite"), STORE_ID))
        )
        ledger.set_limits(Uid(ALICE.uid), Settings(hard_bytes=HARD.bytes, hard_files=HARD.files))
        made = [
            stack.enter_context(mounted_for_long(path, node=node, ledger=ledger)) for node in "abc"[:mounts]
        ]
        for mount in made:
            mount.core.gate.__class__ = Ordered
            mount.core.gate.order = order  # type: ignore[attr-defined]
            charge(mount.core)
        here = Crowd(made, ledger, order)
        here.note_what_is_posted()
        for mount in made:
            here.note_what_is_told(mount)
        async with trio.open_nursery() as nursery:
            for mount in made:
                nursery.start_soon(mount.core.charging.run)
            yield here
            nursery.cancel_scope.cancel()
        for mount in made:
            mount.core.charging.leave()


async def write_at_once(
    place: Path, seed: int, mounts: int, steps: int, clock: trio.testing.MockClock
) -> None:
    async with crowd(place, seed, mounts, clock) as here:

        async def ask(call: Callable[..., T], *args: Any, **_: Any) -> T:
            return await here.order.do(lambda: call(*args))

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trio.to_thread, "run_sync", ask)
            try:
                await here.mounts[0].alice.mkdir("set")
                here.order.look = here.check
                async with trio.open_nursery() as nursery:
                    for mount in here.mounts:
                        for _ in range(2):
                            nursery.start_soon(here.write, mount, steps)
                here.check()
                await here.check_settled()
            except BaseException:
                print(f"seed {seed}:", *here.done, *here.standing(), sep="\n    ", file=sys.stderr)
                raise


@pytest.mark.parametrize(("mounts", "steps"), [(1, 5), (2, 5), (3, 5), (3, 25)])
def test_no_byte_is_uncharged_and_none_charged_in_vain(tmp_path: Path, mounts: int, steps: int) -> None:
    first = int(os.environ.get("CKFS_SEED", "0"))
    for seed in range(first, first + int(os.environ.get("CKFS_SEEDS", "6"))):
        place = tmp_path / str(seed)
        place.mkdir()
        trio._core._run._r.seed(seed)
        clock = trio.testing.MockClock(autojump_threshold=0.0)
        trio.run(write_at_once, place, seed, mounts, steps, clock, clock=clock)
