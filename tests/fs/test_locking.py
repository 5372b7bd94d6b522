"""flock and fcntl locks of programs, in process: among the owners of one mount, and of two mounts of a store."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import random
import resource
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from pathlib import Path

import pytest
import trio

from ckfs.errors import BadHandle, FsError, Invalid, StoreDown
from ckfs.fs import locking
from ckfs.fs.lockranges import LAST, Range
from ckfs.model import Role
from ckfs.names import FileHandle
from ckfs.store import lockfiles
from ckfs.store.alone import alone_with
from ckfs.store.lockfiles import LAST_SHARED, LockFile, LockFiles
from tests.fs.cores import Mount, Process, mounted
from tests.support.nfs import on_server

pytestmark = [pytest.mark.trio, pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

IMAGE = "shared"
_LIMIT_S = 10.0
_OWNERS = itertools.count(0xFFFF_8000_0000_0001)
READ, WRITE = Range(0, LAST, F_RDLCK, 11), Range(0, LAST, F_WRLCK, 12)
UNLOCK = Range(0, LAST, F_UNLCK)


@dataclass
class Program:
    """A process with the image open once, and its lock owner."""

    mount: Mount
    handle: FileHandle
    owner: int = field(default_factory=lambda: next(_OWNERS))

    async def lock(self, lock: Range) -> bool:
        return await _is_had(self.mount.fs.locking.set(self.handle, self.owner, lock, is_flock=False))

    async def flock(self, kind: int) -> bool:
        lock = Range(0, LAST, kind)
        return await _is_had(self.mount.fs.locking.set(self.handle, self.owner, lock, is_flock=True))

    async def wait(self, lock: Range, *, is_flock: bool = False) -> None:
        await self.mount.fs.locking.set_waiting(self.handle, self.owner, lock, is_flock=is_flock)

    async def ask(self, lock: Range) -> Range | None:
        return await self.mount.fs.locking.get(self.handle, self.owner, lock)

    async def flush(self) -> None:
        await self.mount.fs.locking.release_owner(self.handle, self.owner)

    async def close(self) -> None:
        """As the kernel does for the last descriptor."""
        await self.flush()
        await self.mount.fs.content.flush(self.handle)
        await self.mount.fs.locking.released(self.handle)
        await self.mount.fs.content.release(self.handle)


async def _is_had(call: Awaitable[None]) -> bool:
    try:
        await call
    except BlockingIOError:
        return False
    return True


async def _until(done: Callable[[], bool]) -> None:
    """What is waited for tells nobody."""
    with trio.fail_after(_LIMIT_S):
        while not done():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


async def _until_had(program: Program, lock: Range) -> None:
    with trio.fail_after(_LIMIT_S):
        while not await program.lock(lock):  # noqa: ASYNC110 - who comes too late tells nobody
            await trio.sleep(0.01)


@dataclass
class Mounts:
    """Two of one store, with an image in it. All programs are closed at the end, and nothing is left."""

    a: Mount
    b: Mount
    store: Path
    programs: list[Program] = field(default_factory=list)

    async def on(self, mount: Mount, flags: int = os.O_RDWR, caller: Process | None = None) -> Program:
        by = mount.alice if caller is None else caller
        program = Program(mount, await by.open(IMAGE, flags))
        self.programs.append(program)
        return program

    async def end(self, program: Program) -> None:
        self.programs.remove(program)
        await program.close()

    def lock_files(self) -> list[str]:
        return [name for name in os.listdir(on_server(self.store) / "staging") if name.startswith("locks-")]


@pytest.fixture
async def mounts(store: Path, nursery: trio.Nursery) -> AsyncIterator[Mounts]:
    async with _two(store, nursery) as two:
        yield two


@contextlib.asynccontextmanager
async def _two(store: Path, nursery: trio.Nursery, timeout_s: float = 10.0) -> AsyncIterator[Mounts]:
    async with (
        mounted(store, node="a", role=Role.SERVER, timeout_s=timeout_s) as a,
        mounted(store, node="b", role=Role.SERVER, timeout_s=timeout_s) as b,
    ):
        for mount in (a, b):
            nursery.start_soon(mount.fs.locking.run)
        await a.alice.save(IMAGE, b"x" * 100)
        two = Mounts(a, b, store)
        yield two
        for program in list(two.programs):
            await two.end(program)
        await _until(lambda: a.fs.locking.is_idle and b.fs.locking.is_idle)
        assert two.lock_files() == []
        for mount in (a, b):
            mount.check_nothing_held()
        nursery.cancel_scope.cancel()


def _other(mounts: Mounts, where: str) -> Mount:
    return mounts.a if where == "here" else mounts.b


# What conflicts


_CLIENTS = "what behaves like NFS has no locks of its own: each client's kernel keeps them"

PLACES = pytest.mark.parametrize(
    "where", ["here", pytest.param("there", marks=pytest.mark.plain_alone(_CLIENTS))]
)
"""The other owner is on the same mount, or on another."""


@PLACES
@pytest.mark.parametrize(
    ("held", "wanted", "granted"),
    [(WRITE, WRITE, False), (WRITE, READ, False), (READ, WRITE, False), (READ, READ, True)],
)
async def test_fcntl_locks(mounts: Mounts, where: str, held: Range, wanted: Range, granted: bool) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    assert await one.lock(Range(10, 19, held.kind))
    assert await other.lock(Range(15, 15, wanted.kind)) is granted
    assert await other.lock(Range(0, 9, F_WRLCK))
    assert await other.lock(Range(20, LAST, F_WRLCK))
    assert await one.lock(UNLOCK)
    assert await other.lock(WRITE)


@PLACES
@pytest.mark.parametrize(
    ("held", "wanted", "granted"),
    [
        (F_WRLCK, F_WRLCK, False),
        (F_WRLCK, F_RDLCK, False),
        (F_RDLCK, F_WRLCK, False),
        (F_RDLCK, F_RDLCK, True),
    ],
)
async def test_flock(mounts: Mounts, where: str, held: int, wanted: int, granted: bool) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    assert await one.flock(held)
    assert await other.flock(wanted) is granted
    assert await one.flock(F_UNLCK)
    assert await other.flock(F_WRLCK)


@PLACES
async def test_flock_and_fcntl_know_nothing_of_each_other(mounts: Mounts, where: str) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    assert await one.flock(F_WRLCK)
    assert await other.lock(WRITE)
    assert not await other.flock(F_RDLCK)
    assert not await one.lock(READ)


@PLACES
async def test_a_part_of_what_two_owners_share_stays_locked_in_the_store(mounts: Mounts, where: str) -> None:
    one, two, other = (
        await mounts.on(mounts.a),
        await mounts.on(mounts.a),
        await mounts.on(_other(mounts, where)),
    )
    assert await one.lock(Range(0, 9, F_RDLCK))
    assert await two.lock(Range(5, 14, F_RDLCK))
    assert await one.lock(UNLOCK)
    assert await other.lock(Range(0, 4, F_WRLCK))
    assert not await other.lock(Range(5, 5, F_WRLCK))
    assert await two.lock(UNLOCK)
    assert await other.lock(Range(5, 14, F_WRLCK))


@PLACES
async def test_up_and_down(mounts: Mounts, where: str) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    assert await one.lock(READ)
    assert await other.lock(READ)
    assert not await one.lock(WRITE)
    assert not await other.lock(WRITE), "the first still reads"
    assert await one.lock(UNLOCK)
    assert await other.lock(WRITE)
    assert await other.lock(READ)
    assert await one.lock(READ)


async def test_a_flock_that_is_to_become_another_is_gone_if_that_is_not_to_be_had(mounts: Mounts) -> None:
    """So does Linux on its own file systems: two that read and both want to write do not wait for each other for ever."""
    one, other, third = [await mounts.on(mounts.a) for _ in range(3)]
    assert await one.flock(F_RDLCK)
    assert await other.flock(F_RDLCK)
    assert not await one.flock(F_WRLCK)
    assert await other.flock(F_WRLCK)
    assert not await third.flock(F_RDLCK)


@PLACES
async def test_who_has_it(mounts: Mounts, where: str) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    assert await one.lock(Range(10, LAST, F_WRLCK, pid=4711))
    found = await other.ask(Range(0, 12, F_RDLCK, pid=4712))
    assert found == Range(10, LAST, F_WRLCK, 4711 if where == "here" else 0)
    assert await other.ask(Range(0, 9, F_WRLCK)) is None
    assert await one.ask(WRITE) is None, "his own"


async def test_an_owner_has_his_locks_by_every_handle(mounts: Mounts) -> None:
    one = await mounts.on(mounts.a)
    again = await mounts.on(mounts.a, os.O_RDONLY)
    again.owner = one.owner
    assert await one.lock(WRITE)
    assert await again.lock(Range(5, 9, F_RDLCK))
    other = await mounts.on(mounts.a)
    assert await other.lock(Range(5, 9, F_RDLCK))
    await again.flush()
    assert await other.lock(WRITE), "whoever closes any descriptor of a file loses his locks on it"


async def test_links_are_one_file(mounts: Mounts) -> None:
    await mounts.a.alice.link(IMAGE, "link")
    one = await mounts.on(mounts.a)
    other = Program(mounts.a, await mounts.a.alice.open("link", os.O_RDWR))
    assert await one.lock(WRITE)
    assert not await other.lock(READ)
    await other.close()


@pytest.mark.plain_alone(_CLIENTS)
async def test_the_very_last_bytes_are_not_shared(mounts: Mounts) -> None:
    one, here, there = await mounts.on(mounts.a), await mounts.on(mounts.a), await mounts.on(mounts.b)
    assert await one.lock(Range(LAST_SHARED + 1, LAST, F_WRLCK))
    assert not await here.lock(Range(LAST, LAST, F_RDLCK))
    assert await here.ask(Range(LAST, LAST, F_RDLCK)) is not None
    assert await there.lock(Range(LAST, LAST, F_WRLCK))
    assert await there.lock(WRITE)
    assert not await here.lock(Range(LAST_SHARED, LAST_SHARED, F_RDLCK))


# How they end


@PLACES
async def test_closing_gives_all_back(mounts: Mounts, where: str) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    assert await one.lock(WRITE)
    assert await one.flock(F_WRLCK)
    assert not await other.lock(READ)
    await mounts.end(one)
    assert await other.lock(WRITE)
    assert await other.flock(F_WRLCK)


async def test_a_flush_leaves_flock_and_the_locks_of_others(mounts: Mounts) -> None:
    one, two, other = [await mounts.on(mounts.a) for _ in range(3)]
    assert await one.flock(F_WRLCK)
    assert await one.lock(Range(0, 9, F_WRLCK))
    assert await two.lock(Range(10, 19, F_WRLCK))
    await one.flush()
    assert not await other.flock(F_RDLCK)
    assert not await other.lock(Range(10, 10, F_RDLCK))
    assert await other.lock(Range(0, 9, F_WRLCK))


async def test_a_release_gives_back_what_no_flush_did(mounts: Mounts) -> None:
    """OFD locks, as a user's F_OFD_SETLK makes them, belong to an open file: no FLUSH has their owner's number."""
    one, other = await mounts.on(mounts.a), await mounts.on(mounts.a)
    assert await one.lock(WRITE)
    flushed_by = Program(mounts.a, one.handle)
    await flushed_by.flush()
    assert not await other.lock(READ)
    mounts.programs.remove(one)
    await mounts.a.fs.content.release(one.handle)
    await mounts.a.fs.locking.released(one.handle)  # after the handle is gone, too
    assert await other.lock(WRITE)


@pytest.mark.plain_alone(_CLIENTS)
async def test_what_a_handle_let_go_is_free_here_before_the_store_knows(mounts: Mounts) -> None:
    one, here, there = await mounts.on(mounts.a), await mounts.on(mounts.a), await mounts.on(mounts.b)
    assert await one.flock(F_WRLCK)
    mounts.a.fs.locking.let_go(one.handle)
    assert not await there.flock(F_RDLCK)
    assert await here.flock(F_RDLCK)
    assert not await there.flock(F_WRLCK)
    await mounts.end(one)
    assert await there.flock(F_RDLCK)


async def test_a_lock_stays_with_a_file_that_is_renewed(mounts: Mounts) -> None:
    """Who overwrites a complete image writes another file of the store."""
    one = await mounts.on(mounts.a)
    assert await one.lock(WRITE)
    lead_to = os.fstat(mounts.a.core.handle(one.handle).fd).st_ino
    overwriting = await mounts.on(mounts.a, os.O_RDWR | os.O_TRUNC)
    assert os.fstat(mounts.a.core.handle(one.handle).fd).st_ino != lead_to
    assert not await overwriting.lock(READ)
    await mounts.end(one)
    assert await overwriting.lock(READ)


async def test_the_file_of_the_locks_is_there_as_long_as_a_handle_has_asked(mounts: Mounts) -> None:
    one = await mounts.on(mounts.a)
    assert mounts.lock_files() == []
    assert await one.lock(WRITE)
    assert await one.lock(UNLOCK)
    assert len(mounts.lock_files()) == 1
    await mounts.end(one)
    assert mounts.lock_files() == []


async def test_what_dead_mounts_left_is_cleared(store: Path, nursery: trio.Nursery) -> None:
    left = on_server(store) / "staging" / "locks-abc"
    left.touch()
    os.chown(left, (on_server(store) / "staging").stat().st_uid, -1)
    async with _two(store, nursery):
        await _until(lambda: not left.exists())


async def test_directories_and_the_root_can_be_locked(mounts: Mounts) -> None:
    ino = mounts.a.core.inodes.root.ino
    handles = [await mounts.a.fs.listing.opendir(ino, mounts.a.alice.caller) for _ in range(2)]
    one, other = (Program(mounts.a, handle) for handle in handles)
    assert await one.flock(F_WRLCK)
    assert not await other.flock(F_RDLCK)
    for handle in handles:
        await mounts.a.fs.locking.released(handle)
        await mounts.a.fs.listing.releasedir(handle)


# Waiting


@PLACES
@pytest.mark.parametrize("is_flock", [False, True])
async def test_an_unlock_wakes_who_waits(mounts: Mounts, where: str, is_flock: bool) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    await one.wait(WRITE, is_flock=is_flock)
    had = trio.Event()

    async def waiting() -> None:
        await other.wait(WRITE, is_flock=is_flock)
        had.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting)
        await trio.sleep(0.3)
        assert not had.is_set()
        await one.wait(UNLOCK, is_flock=is_flock)
        with trio.fail_after(0.2 if where == "here" else locking._LONGEST_PAUSE_S + 0.5):
            await had.wait()
    assert await other.lock(WRITE) or is_flock


@PLACES
@pytest.mark.parametrize("is_flock", [False, True])
async def test_who_waits_no_more_leaves_nothing(mounts: Mounts, where: str, is_flock: bool) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(_other(mounts, where))
    await one.wait(WRITE, is_flock=is_flock)
    with trio.move_on_after(0.2) as scope:
        await other.wait(WRITE, is_flock=is_flock)
    assert scope.cancelled_caught
    await one.wait(UNLOCK, is_flock=is_flock)
    third = await mounts.on(mounts.a)
    await third.wait(WRITE, is_flock=is_flock)


async def test_nobody_holds_a_thread_while_he_waits(mounts: Mounts) -> None:
    one = await mounts.on(mounts.a)
    await one.wait(WRITE)
    others = [await mounts.on(mounts.a) for _ in range(40)]
    async with trio.open_nursery() as nursery:
        for other in others:
            nursery.start_soon(other.wait, READ)
        await trio.sleep(0.2)
        assert not mounts.a.core.gate.is_busy
        assert await one.lock(UNLOCK)


@pytest.mark.parametrize("length", [2, 3])
async def test_owners_that_would_wait_for_each_other(mounts: Mounts, length: int) -> None:
    programs = [await mounts.on(mounts.a) for _ in range(length)]
    for at, program in enumerate(programs):
        await program.wait(Range(at, at, F_WRLCK))
    async with trio.open_nursery() as nursery:
        for at, program in enumerate(programs[:-1]):
            nursery.start_soon(program.wait, Range(at + 1, at + 1, F_WRLCK))
        await trio.sleep(0.1)
        with pytest.raises(OSError, match="deadlock") as raised:
            await programs[-1].wait(Range(0, 0, F_WRLCK))
        assert raised.value.errno == errno.EDEADLK
        for program in reversed(programs):
            assert await program.lock(UNLOCK)
            await trio.sleep(0.05)


# Ckfs's own locks


async def test_locks_of_users_stop_nothing_of_ckfs(mounts: Mounts) -> None:
    one = await mounts.on(mounts.a)
    assert await one.lock(WRITE)
    assert await one.flock(F_WRLCK)
    with alone_with(mounts.a.core.handle(one.handle).fd, within_s=0) as is_alone:
        assert is_alone
    writing = await mounts.on(mounts.a, os.O_RDWR)
    assert await mounts.a.fs.content.write(writing.handle, 0, b"free") == 4


# A store without locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
async def test_without_locks_of_the_store_each_mount_has_its_own(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refused(*_: object) -> bytes:
        raise OSError(number, "no locks")

    monkeypatch.setattr(lockfiles, "_fcntl", refused)
    one, here, there = await mounts.on(mounts.a), await mounts.on(mounts.a), await mounts.on(mounts.b)
    with caplog.at_level(logging.WARNING):
        assert await one.lock(WRITE)
        assert await one.flock(F_WRLCK)
        assert not await here.lock(READ)
        assert await here.ask(READ) == WRITE
        assert not await here.flock(F_RDLCK)
    assert len([line for line in caplog.messages if "keeps no locks" in line]) == 1
    assert await there.lock(WRITE)
    monkeypatch.undo()
    for left in mounts.lock_files():
        (on_server(mounts.store) / "staging" / left).unlink()


async def test_a_read_only_mount_has_locks_of_its_own(mounts: Mounts) -> None:
    async with mounted(mounts.store, node="c", read_only=True) as read_only:
        one, other = (
            Program(read_only, await read_only.alice.open(IMAGE)),
            Program(read_only, await read_only.alice.open(IMAGE)),
        )
        writer = await mounts.on(mounts.a)
        assert await one.lock(READ)
        assert await one.flock(F_WRLCK)
        assert not await other.lock(WRITE)
        assert not await other.flock(F_RDLCK)
        assert await writer.lock(WRITE)
        for program in (one, other):
            await program.close()
        assert read_only.fs.locking.is_idle


# A store that hangs


@dataclass
class _Hanging:
    """Locks hang in the store until they are let go."""

    go: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def arm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = LockFile.set

        def setting(file: LockFile, pieces: object) -> bool:
            if not self.go.is_set():
                self.entered.set()
                assert self.go.wait(_LIMIT_S)
            return real(file, pieces)  # type: ignore[arg-type]  # whatever its caller gave it

        monkeypatch.setattr(LockFile, "set", setting)


@pytest.fixture
def hanging() -> Iterator[_Hanging]:
    hanging = _Hanging()
    yield hanging
    hanging.go.set()


@pytest.mark.plain_alone(_CLIENTS)
async def test_a_lock_that_comes_too_late_is_taken_back(
    store: Path, nursery: trio.Nursery, hanging: _Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _two(store, nursery, timeout_s=1.0) as mounts:
        one, here, there = await mounts.on(mounts.a), await mounts.on(mounts.a), await mounts.on(mounts.b)
        assert await one.lock(Range(0, 0, F_WRLCK))
        with monkeypatch.context() as patched:
            hanging.arm(patched)
            with pytest.raises(StoreDown):
                await one.lock(Range(1, 1, F_WRLCK))
            begin = trio.current_time()
            with pytest.raises(StoreDown):
                await here.lock(Range(2, 2, F_WRLCK))
            assert trio.current_time() - begin < 0.2, "nobody waits for what hangs already"
            assert mounts.a.core.gate.is_up, "a server that grants no locks may do all else"
            assert await mounts.a.alice.load(IMAGE) == b"x" * 100
            hanging.go.set()
            await _until_had(there, Range(1, 1, F_WRLCK))
        assert not await there.lock(Range(0, 0, F_WRLCK)), "what was had before stays"


@pytest.mark.plain_alone(_CLIENTS)
@pytest.mark.parametrize("how", ["unlock", "flush", "close"])
async def test_what_is_unlocked_while_the_store_hangs_is_free_afterwards(
    store: Path, nursery: trio.Nursery, hanging: _Hanging, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with _two(store, nursery, timeout_s=1.0) as mounts:
        one, there = await mounts.on(mounts.a), await mounts.on(mounts.b)
        await mounts.on(mounts.a)
        assert await one.lock(WRITE)
        with monkeypatch.context() as patched:
            hanging.arm(patched)
            if how == "unlock":
                assert await one.lock(UNLOCK)
            elif how == "flush":
                await one.flush()
            else:
                await mounts.end(one)
            hanging.go.set()
            await _until_had(there, WRITE)


@pytest.mark.plain_alone(_CLIENTS)
async def test_who_is_interrupted_in_the_store_has_no_lock(
    mounts: Mounts, hanging: _Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, there = await mounts.on(mounts.a), await mounts.on(mounts.b)
    assert await one.lock(Range(0, 0, F_WRLCK))
    with monkeypatch.context() as patched:
        hanging.arm(patched)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait, Range(1, 1, F_WRLCK))
            assert await trio.to_thread.run_sync(hanging.entered.wait, _LIMIT_S)
            nursery.cancel_scope.cancel()
        hanging.go.set()
        await _until_had(there, Range(1, 1, F_WRLCK))
    assert not await there.lock(Range(0, 0, F_WRLCK))


async def test_a_file_of_locks_that_opens_too_late_is_closed(
    store: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real = threading.Event(), LockFiles.open

    def opening(files: LockFiles, *args: object) -> LockFile:
        assert go.wait(_LIMIT_S)
        return real(files, *args)  # type: ignore[arg-type]  # whatever its caller gave it

    async with _two(store, nursery, timeout_s=1.0) as mounts:
        one = await mounts.on(mounts.a)
        with monkeypatch.context() as patched:
            patched.setattr(LockFiles, "open", opening)
            with pytest.raises(StoreDown):
                await one.lock(WRITE)
            go.set()
            await _until(lambda: not mounts.lock_files())


# The hostile


async def test_too_many_ranges(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "MOST_RANGES_OF_FILE", 50)
    one, other = await mounts.on(mounts.a), await mounts.on(mounts.a)
    assert await one.lock(Range(1000, 2000, F_WRLCK))
    for at in range(49):
        assert await one.lock(Range(2 * at, 2 * at, F_WRLCK))
    for lock in (Range(500, 500, F_WRLCK), Range(1500, 1500, F_UNLCK)):
        for program in (one, other) if lock.kind != F_UNLCK else (one,):
            with pytest.raises(OSError, match="too many") as raised:
                await program.lock(lock)
            assert raised.value.errno == errno.ENOLCK
    assert await one.lock(Range(0, 999, F_WRLCK)), "who takes fewer may always"
    assert await other.lock(Range(5000, 5000, F_WRLCK))


async def test_too_many_ranges_of_a_user(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "MOST_RANGES_OF_USER", 10)
    one, root = await mounts.on(mounts.a), await mounts.on(mounts.a, caller=mounts.a.root)
    for at in range(10):
        assert await one.lock(Range(2 * at, 2 * at, F_WRLCK))
    with pytest.raises(OSError, match="too many"):
        await one.lock(Range(100, 100, F_WRLCK))
    assert await root.lock(Range(200, 200, F_WRLCK))


async def test_too_many_who_wait(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "MOST_WAITING_OF_USER", 5)
    one = await mounts.on(mounts.a)
    await one.wait(WRITE)
    others = [await mounts.on(mounts.a) for _ in range(6)]
    async with trio.open_nursery() as nursery:
        for other in others[:5]:
            nursery.start_soon(other.wait, READ)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="too many wait") as raised:
            await others[5].wait(READ)
        assert raised.value.errno == errno.ENOLCK
        assert await one.lock(UNLOCK)


async def test_too_many_files_with_locks(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4 * 16, 4 * 16))
    programs = []
    async with contextlib.AsyncExitStack() as closing:
        for number in range(3):
            await mounts.a.alice.mknod(f"file{number}")
            program = Program(mounts.a, await mounts.a.root.open(f"file{number}", os.O_RDWR))
            closing.push_async_callback(program.close)
            programs.append(program)
        for program in programs:
            await mounts.a.fs.locking.set(program.handle, program.owner, WRITE, is_flock=False)
        one, another = await mounts.on(mounts.a, caller=mounts.a.root), programs[0]
        assert await one.lock(WRITE)
        assert await another.lock(READ)
        await mounts.a.alice.mknod("file3")
        fifth = Program(mounts.a, await mounts.a.root.open("file3", os.O_RDWR))
        closing.push_async_callback(fifth.close)
        with pytest.raises(OSError, match="too many files") as raised:
            await fifth.lock(WRITE)
        assert raised.value.errno == errno.ENOLCK


async def test_what_no_kernel_says(mounts: Mounts) -> None:
    one = await mounts.on(mounts.a)
    for lock in (Range(5, 4, F_WRLCK), Range(-1, 4, F_WRLCK), Range(0, LAST + 1, F_WRLCK), Range(0, 1, 9)):
        with pytest.raises(Invalid):
            await one.lock(lock)
    with pytest.raises(BadHandle):
        await mounts.a.fs.locking.set(FileHandle(1 << 40), 1, WRITE, is_flock=False)
    await mounts.a.fs.locking.release_owner(FileHandle(1 << 40), 1)
    await mounts.a.fs.locking.released(FileHandle(1 << 40))


async def test_a_handle_that_is_closed_meanwhile_leaves_no_lock(mounts: Mounts) -> None:
    one, other = await mounts.on(mounts.a), await mounts.on(mounts.a)
    assert await other.lock(WRITE)
    results: list[FsError] = []

    async def waiting() -> None:
        try:
            await one.wait(READ)
        except FsError as error:
            results.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting)
        await trio.sleep(0.05)
        await mounts.end(one)
        assert await other.lock(UNLOCK)
    assert [type(error) for error in results] == [BadHandle]
    assert await other.lock(WRITE)


@pytest.mark.plain_alone(_CLIENTS)
async def test_many_programs_on_two_mounts_are_never_inside_together(mounts: Mounts) -> None:
    inside: list[Program] = []

    async def work(program: Program, number: int) -> None:
        for turn in range(8):
            is_flock = (number + turn) % 4 == 0
            await program.wait(WRITE, is_flock=False)
            inside.append(program)
            assert inside == [program]
            await trio.sleep(0.001)
            assert inside.pop() is program
            await program.wait(UNLOCK, is_flock=False)
            if is_flock:
                assert await program.flock(F_RDLCK)
                assert await program.flock(F_UNLCK)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                mount = mounts.a if number % 2 else mounts.b
                nursery.start_soon(work, await mounts.on(mount), number)


@pytest.mark.plain_alone(_CLIENTS)
@pytest.mark.parametrize("seed", range(4))
async def test_two_mounts_have_what_a_model_of_bytes_has(mounts: Mounts, seed: int) -> None:
    dice = random.Random(seed)
    programs = [await mounts.on(mount) for mount in (mounts.a, mounts.a, mounts.b, mounts.b)]
    model: dict[tuple[int, int], int] = {}  # by program and byte
    for _ in range(250):
        number, start = dice.randrange(len(programs)), dice.randrange(10)
        lock = Range(start, dice.randrange(start, 10), dice.choice((F_RDLCK, F_WRLCK, F_UNLCK, F_UNLCK)))
        locked = range(lock.start, lock.end + 1)
        kept = any(
            other != number and byte in locked and F_WRLCK in (kind, lock.kind)
            for (other, byte), kind in model.items()
        )
        if dice.random() < 0.1:
            await programs[number].flush()
            lock, locked, kept = UNLOCK, range(10), False
        elif lock.kind != F_UNLCK:
            asked = await programs[number].ask(lock)
            assert (asked is None) == (not kept)
            assert await programs[number].lock(lock) is not kept
        else:
            assert await programs[number].lock(lock)
        if lock.kind == F_UNLCK or not kept:
            for byte in locked:
                model.pop((number, byte), None)
                if lock.kind != F_UNLCK:
                    model[number, byte] = lock.kind


@pytest.mark.plain_alone(_CLIENTS)
async def test_who_reads_what_others_here_read_asks_the_store_no_more(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, there = await mounts.on(mounts.a), await mounts.on(mounts.a), await mounts.on(mounts.b)
    assert await one.lock(READ)
    with monkeypatch.context() as patched:
        patched.setattr(LockFile, "set", None)
        assert await two.lock(Range(5, 9, F_RDLCK))
    await one.flush()
    assert not await there.lock(Range(5, 5, F_WRLCK))
    assert await there.lock(Range(10, LAST, F_WRLCK))
    assert await there.lock(Range(0, 4, F_WRLCK))


@pytest.mark.plain_alone(_CLIENTS)
async def test_as_many_wait_as_may(mounts: Mounts) -> None:
    """None of them is told that the store does not answer because others were before him."""
    there = await mounts.on(mounts.b)
    await there.wait(WRITE)
    programs = [await mounts.on(mounts.a) for _ in range(locking.MOST_WAITING_OF_USER)]
    async with trio.open_nursery() as nursery:
        for number, program in enumerate(programs):
            nursery.start_soon(program.wait, Range(number, number + 1, F_RDLCK))
        await trio.sleep(1)
        assert await there.lock(UNLOCK)
    assert await there.lock(READ)
    assert not await there.lock(WRITE)
