"""Random calls on two mounts of one store and one ledger, in process: whatever is done, and whichever mount dies, what is in the store
of an owner is never more than he is charged with, that never more than he may have; and in the end both are the same."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ckfs.errors import FsError, errno_of
from ckfs.fs.charging import Charging, charge
from ckfs.fs.metadata import Changes
from ckfs.fs.recounting import Recounting
from ckfs.ledger import sqlite
from ckfs.model import Caller
from ckfs.names import FileHandle, Gid, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from ckfs.store.counting import count
from ckfs.store.metering import charge_of
from tests.fs.cores import ALICE, BOB, ROOT, Mount, mounted_for_long, new_store
from tests.model.test_metering_model import ANSWERS
from tests.support.examples import PHASES, examples

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

UNIT = 4096
T = TypeVar("T")
STORE_ID = "0d6f3a8e-2b1c-4c55-9a37-5e1f60c7d9b4"
HARD = Amount(16 * UNIT, 9)
ENOUGH_S = 20.0

MOUNTS = st.integers(0, 1)
CALLERS = st.sampled_from([ALICE] * 7 + [BOB])
SETS = ["a", "b"]
FILES = [f"{one}/{name}" for one in SETS for name in ["x", ".y", "d", "d/.z"]]
PATHS = st.sampled_from([*SETS, *FILES])
WHICH = st.integers(0, 7)
OFFSETS = st.sampled_from([0, 0, 1, UNIT, 3 * UNIT, 40 * UNIT])
SIZES = st.sampled_from([1, UNIT - 1, UNIT, 3 * UNIT, 9 * UNIT])
CUTS = st.sampled_from([0, 1, UNIT, 5 * UNIT, 50 * UNIT])
FLAGS = st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC])


class Loop:
    """An event loop in a thread of its own: mounts do in it what they do by themselves between the calls of a test."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._ready.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        return trio.from_thread.run(call, trio_token=self._token)

    def begin(self, task: Callable[[], Awaitable[None]]) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def scoped() -> None:
            with scope:
                await task()

        async def start() -> None:
            self._nursery.start_soon(scoped)

        self.run(start)
        return scope

    def cancel(self, scope: trio.CancelScope) -> None:
        async def cancel() -> None:
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()

        self.run(cancel)

    def close(self) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()


class Living:
    """A mount that charges, until it leaves or dies."""

    def __init__(self, loop: Loop, path: Path, ledger: Any, node: str) -> None:
        self._loop = loop
        self._mounts = contextlib.ExitStack()
        self.mount: Mount = self._mounts.enter_context(mounted_for_long(path, node=node, ledger=ledger))
        charge(self.mount.core)
        assert isinstance(self.mount.core.charging, Charging)
        self.charging = self.mount.core.charging
        self._scope = loop.begin(self.charging.run)
        self.handles: list[FileHandle] = []

    def leave(self) -> None:
        self._loop.cancel(self._scope)
        self.charging.leave()
        self._mounts.close()

    def die(self) -> None:
        """As with kill -9: nothing is told any more, and its descriptors are closed."""
        self._loop.cancel(self._scope)
        for handle in self.mount.core.handles.all():
            os.close(handle.fd)
        self._mounts.close()


class Charged(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="ckfs-test-"))
        self.path = new_store(self.place)
        self.ledger = sqlite.create(os.fsencode(self.place / "ledger.sqlite"), STORE_ID)
        for uid in (ALICE.uid, BOB.uid):
            self.ledger.set_limits(uid, Settings(hard_bytes=HARD.bytes, hard_files=HARD.files))
        self.dead: set[MountId] = set()
        self.loop = Loop()
        self.mounts = [Living(self.loop, self.path, self.ledger, node) for node in ("a", "b")]

    @initialize()
    def begin(self) -> None:
        self.mkdir(0, ALICE, "a")
        self.mkdir(1, ALICE, "b")
        self.create(0, ALICE, "a/.y")
        self.open(1, ALICE, "a/.y", os.O_RDWR)

    def teardown(self) -> None:
        try:
            for living in self.mounts:
                while living.handles:
                    self._close(living, living.handles.pop())
            self._reclaim_all()
            self._check_settled()
        finally:
            for living in self.mounts:
                living.leave()
            self.loop.close()
            self.ledger.close()
            shutil.rmtree(self.place)

    def _tried(self, call: Callable[[], Awaitable[T]]) -> T | None:
        async def tried() -> T | None:
            try:
                return await call()
            except Exception as error:
                if errno_of(error) not in ANSWERS | {errno.EDQUOT, errno.EIO, errno.EISDIR}:
                    raise
                return None

        return self.loop.run(tried)

    # Open files

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS)
    def create(self, at: int, caller: Caller, path: str) -> None:
        living = self.mounts[at]
        handle = self._tried(lambda: living.mount.process(caller).create(path))
        if handle is not None:
            living.handles.append(handle)

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS, flags=FLAGS)
    def open(self, at: int, caller: Caller, path: str, flags: int) -> None:
        living = self.mounts[at]
        handle = self._tried(lambda: living.mount.process(caller).open(path, flags))
        if handle is not None:
            living.handles.append(handle)

    @rule(at=MOUNTS, which=WHICH, offset=OFFSETS, size=SIZES)
    def write(self, at: int, which: int, offset: int, size: int) -> None:
        living = self.mounts[at]
        if living.handles:
            number = living.handles[which % len(living.handles)]
            if living.mount.core.handle(number).writable:
                self._tried(lambda: living.mount.fs.content.write(number, offset, bytes(size)))

    @rule(at=MOUNTS, which=WHICH, size=CUTS)
    def cut_open(self, at: int, which: int, size: int) -> None:
        living = self.mounts[at]
        if living.handles:
            number = living.handles[which % len(living.handles)]
            handle = living.mount.core.handle(number)
            if handle.writable:
                self._tried(
                    lambda: living.mount.fs.metadata.setattr(
                        handle.node.ino, Changes(size=size), number, handle.opener
                    )
                )

    @rule(at=MOUNTS, which=WHICH)
    def close(self, at: int, which: int) -> None:
        living = self.mounts[at]
        if living.handles:
            self._close(living, living.handles.pop(which % len(living.handles)))

    def _close(self, living: Living, number: FileHandle) -> None:
        self._tried(lambda: living.mount.process(ALICE).close(number))

    # Names

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS)
    def mkdir(self, at: int, caller: Caller, path: str) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).mkdir(path))

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS, size=SIZES)
    def save(self, at: int, caller: Caller, path: str, size: int) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).save(path, bytes(size)))

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS, size=CUTS)
    def cut(self, at: int, caller: Caller, path: str, size: int) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).setattr(path, Changes(size=size)))

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS, size=st.sampled_from([1, 900]))
    def set_attribute(self, at: int, caller: Caller, path: str, size: int) -> None:
        async def put() -> None:
            mount = self.mounts[at].mount
            async with mount.process(caller).at(path) as ino:
                await mount.fs.extended.set(ino, b"user.note", bytes(size), caller)

        self._tried(put)

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS)
    def remove_attribute(self, at: int, caller: Caller, path: str) -> None:
        async def remove() -> None:
            mount = self.mounts[at].mount
            async with mount.process(caller).at(path) as ino:
                await mount.fs.extended.remove(ino, b"user.note", caller)

        self._tried(remove)

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS)
    def unlink(self, at: int, caller: Caller, path: str) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).unlink(path))

    @rule(at=MOUNTS, caller=CALLERS, path=PATHS)
    def remove_tree(self, at: int, caller: Caller, path: str) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).remove_tree(path))

    @rule(at=MOUNTS, caller=CALLERS, old=PATHS, new=PATHS)
    def rename(self, at: int, caller: Caller, old: str, new: str) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).rename(old, new))

    @rule(at=MOUNTS, caller=CALLERS, old=st.sampled_from(FILES), new=st.sampled_from(FILES))
    def link(self, at: int, caller: Caller, old: str, new: str) -> None:
        self._tried(lambda: self.mounts[at].mount.process(caller).link(old, new))

    @rule(at=MOUNTS, name=st.sampled_from(SETS), to=st.sampled_from([ALICE, BOB, ROOT]))
    def give(self, at: int, name: str, to: Caller) -> None:
        if any(living.handles for living in self.mounts):
            return  # what others write meanwhile is the new owner's only when it is settled
        changes = Changes(uid=Uid(to.uid), gid=Gid(to.gid))
        self._tried(lambda: self.mounts[at].mount.root.setattr(name, changes))

    @rule(at=MOUNTS, which=WHICH)
    def purge(self, at: int, which: int) -> None:
        trash = self.mounts[at].mount.core.store.trash
        items = list(trash.items())
        if items:
            with contextlib.suppress(FsError, FileNotFoundError):
                trash.purge(items[which % len(items)])

    # Ends

    @rule(at=MOUNTS)
    def die(self, at: int) -> None:
        dead, other = self.mounts[at], self.mounts[1 - at]
        mount_id = dead.mount.core.mount_id
        dead.die()
        self.mounts[at] = Living(self.loop, self.path, self.ledger, "ab"[at])
        self.dead.add(mount_id)
        self._reclaim(other)

    def _reclaim(self, by: Living) -> None:
        """What the dead hold comes back, but of owners with files that others write on. What the others do within a second, a recount waits for."""
        for living in self.mounts:
            self.loop.run(living.charging.sessions.nameless.look)
        self._post()
        owners = self.ledger.mounts()
        recounting = Recounting(by.mount.core.store, self.ledger, by.mount.core.fate, lambda _: None)
        for mount_id in list(self.dead):
            recounts = list(recounting.repair(sorted(owners.get(mount_id, set()))))
            if all(one.taken_up for one in recounts):
                self.ledger.forget(mount_id)
                self.dead.remove(mount_id)

    @rule(at=MOUNTS)
    def recount(self, at: int) -> None:
        """It finds what the ledger says; what a dead mount has left may be known to nobody before."""
        by, is_known = self.mounts[at].mount.core, not self.dead
        recounting = Recounting(by.store, self.ledger, by.fate, lambda _: None)
        for one in recounting.repair([Uid(ALICE.uid), Uid(BOB.uid)]):
            assert not (one.differs and is_known), f"{one.counted} is counted, and {one.said} was said"

    def _reclaim_all(self) -> None:
        """Nobody writes any more."""
        deadline_s = time.monotonic() + ENOUGH_S
        while self.dead:
            assert time.monotonic() < deadline_s, f"{self.dead} are not recounted"
            self._reclaim(self.mounts[0])

    def _post(self) -> None:
        for living in self.mounts:
            self.loop.run(living.charging.grants.post)

    # What holds

    def _counted(self, uid: Uid) -> Amount:
        """What is in the store of him, and what he has open that has no name there any more."""
        store = self.mounts[0].mount.core.store
        nameless = {}
        for living in self.mounts:
            for number in living.handles:
                fd = living.mount.core.handle(number).fd
                status, ino = os.fstat(fd), living.mount.core.handle(number).node.ino
                # What others had removed before it was written here is counted from then on only.
                is_charged = (
                    ino in living.charging.sessions._sessions or ino in living.charging.sessions._lingering
                )
                if not status.st_nlink and status.st_uid == uid and is_charged:
                    nameless[status.st_ino] = charge_of(status, fd, store.door.unit)
        return sum(nameless.values(), count(store, uid, store.door.unit))

    @invariant()
    def no_limit_is_passed(self) -> None:
        self._post()
        for uid in (ALICE.uid, BOB.uid):
            account, there = self.ledger.account(uid), self._counted(uid)
            assert HARD.covers(account.total), f"{account} passes the limit"
            assert account.total.covers(there), f"{there} is there, of {account}"

    def _check_settled(self) -> None:
        for uid in (ALICE.uid, BOB.uid, Uid(0)):
            there, deadline_s = self._counted(uid), time.monotonic() + ENOUGH_S
            while True:
                account = self.ledger.account(uid)
                if (account.used, account.claimed) == (there, NOTHING):
                    break
                assert time.monotonic() < deadline_s, f"{there} is there, of {account}"
                time.sleep(0.02)


def test_what_is_charged_is_never_less_than_what_is_there_nor_more_than_may_be() -> None:
    run_state_machine_as_test(
        Charged,
        settings=settings(
            max_examples=examples(8),
            stateful_step_count=30,
            deadline=None,
            phases=PHASES,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
