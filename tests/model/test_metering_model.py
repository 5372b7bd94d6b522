"""Random calls on sets of two users, on a mount in process: whatever is done, what the door has told its meter of each user is
what a count of the store finds. Only what is written through open files is not the door's to tell, and is taken as it is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ckfs.errors import FsError, errno_of
from ckfs.fs.metadata import Changes
from ckfs.model import Caller, Owner
from ckfs.names import FileHandle, SetName, Uid
from ckfs.policy.quota import Amount
from ckfs.store.counting import count
from ckfs.store.handover import name_owner
from ckfs.store.removed import Item, Note
from tests.fs.cores import ALICE, BOB, Process, mounted_for_long, new_store
from tests.fs.metered import Sums
from tests.support.examples import PHASES, examples

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

CALLERS = st.sampled_from([ALICE, ALICE, BOB])
SETS = ["a", "b", "c"]
NAMES = ["x", "y", "d", "d/x", "d/e", "d/e/y"]
PATHS = st.sampled_from([*SETS, *(f"{one}/{name}" for one in SETS for name in NAMES)])
SIZES = st.sampled_from([0, 1, 4095, 4096, 4097, 20_000, 70_000])
ATTRIBUTES = st.sampled_from([b"user.a", b"user.b", b"user.ckfsx", b"user." + b"n" * 200])
FLAGS = st.sampled_from([0, 0, 0, 1, 2])
ANSWERS = {
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENODATA,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.ESTALE,  # what the kernel would not ask: a name in a file
    errno.EXDEV,
}


class Metered(RuleBasedStateMachine):
    directory: str | None = None
    """Where the store is made; None: where temporary files are."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="ckfs-test-", dir=self.directory))
        self.mounts = contextlib.ExitStack()
        self.mount = self.mounts.enter_context(mounted_for_long(new_store(self.place)))
        self.store, self.meter = self.mount.core.store, Sums()
        self.store.door.report_to(self.meter)

    def teardown(self) -> None:
        self.mounts.close()
        shutil.rmtree(self.place)

    def run(self, caller: Caller, call: Callable[[Process], Awaitable[object]]) -> None:
        async def tried() -> None:
            try:
                await call(self.mount.process(caller))
            except Exception as error:
                if errno_of(error) not in ANSWERS:
                    raise

        trio.run(tried)

    async def _write(self, process: Process, handle: FileHandle, content: bytes, offset: int) -> None:
        """Write, if there is anything, and close; the handle's file is charged to whom it belongs."""
        open_here = self.mount.core.handles.get(handle)
        fd = os.dup(open_here.fd)
        payer = open_here.node.set_entry.payer
        try:
            with self.meter.written(self.store, fd, payer):
                if content:
                    await process.fs.content.write(handle, offset, content)
                await process.close(handle)
        finally:
            os.close(fd)

    # Making

    @rule(caller=CALLERS, path=PATHS)
    def mkdir(self, caller: Caller, path: str) -> None:
        self.run(caller, lambda process: process.mkdir(path))

    @rule(caller=CALLERS, path=PATHS)
    def symlink(self, caller: Caller, path: str) -> None:
        self.run(caller, lambda process: process.symlink(path, b"target"))

    @rule(caller=CALLERS, path=PATHS, size=SIZES, offset=SIZES)
    def create(self, caller: Caller, path: str, size: int, offset: int) -> None:
        async def create(process: Process) -> None:
            await self._write(process, await process.create(path), b"x" * size, offset)

        self.run(caller, create)

    @rule(caller=CALLERS, old=PATHS, new=PATHS)
    def link(self, caller: Caller, old: str, new: str) -> None:
        self.run(caller, lambda process: process.link(old, new))

    # Changing

    @rule(
        caller=CALLERS,
        path=PATHS,
        size=SIZES,
        offset=SIZES,
        flags=st.sampled_from([0, os.O_TRUNC, os.O_APPEND]),
    )
    def write(self, caller: Caller, path: str, size: int, offset: int, flags: int) -> None:
        async def write(process: Process) -> None:
            await self._write(process, await process.open(path, os.O_WRONLY | flags), b"x" * size, offset)

        self.run(caller, write)

    @rule(caller=CALLERS, path=PATHS, size=SIZES)
    def truncate(self, caller: Caller, path: str, size: int) -> None:
        self.run(caller, lambda process: process.setattr(path, Changes(size=size)))

    @rule(caller=CALLERS, path=PATHS, name=ATTRIBUTES, size=st.sampled_from([0, 1, 200, 3000]))
    def set_attribute(self, caller: Caller, path: str, name: bytes, size: int) -> None:
        async def put(process: Process) -> None:
            async with process.at(path) as ino:
                await process.fs.extended.set(ino, name, b"v" * size, caller)

        self.run(caller, put)

    @rule(caller=CALLERS, path=PATHS, name=ATTRIBUTES)
    def remove_attribute(self, caller: Caller, path: str, name: bytes) -> None:
        async def remove(process: Process) -> None:
            async with process.at(path) as ino:
                await process.fs.extended.remove(ino, name, caller)

        self.run(caller, remove)

    # Moving and taking away

    @rule(caller=CALLERS, old=PATHS, new=PATHS, flags=FLAGS)
    def rename(self, caller: Caller, old: str, new: str, flags: int) -> None:
        self.run(caller, lambda process: process.rename(old, new, flags))

    @rule(caller=CALLERS, path=PATHS)
    def unlink(self, caller: Caller, path: str) -> None:
        self.run(caller, lambda process: process.unlink(path))

    @rule(caller=CALLERS, path=PATHS)
    def rmdir(self, caller: Caller, path: str) -> None:
        self.run(caller, lambda process: process.rmdir(path))

    @rule(caller=CALLERS, path=PATHS)
    def remove_tree(self, caller: Caller, path: str) -> None:
        self.run(caller, lambda process: process.remove_tree(path))

    @rule(name=st.sampled_from(SETS))
    def set_to_the_trash(self, name: str) -> None:
        """As what is left behind goes."""

        def put() -> None:
            top = SetName(name.encode())
            entry, found = self.store.names.examine(top)
            if not found.record.is_directory and found.stat.st_nlink > 1:
                return  # its other names may come to be another's: nobody tells of that

            def note(*_: object) -> Note:
                return Note(Uid(0), 1, b"", b"gc", top, b"", entry.owner, found.record.ino)

            self.store.trash.put_set(top, entry.ino, note)

        self._directly(put)

    @rule(which=st.integers(0, 5), to=st.sampled_from([None, "c"]))
    def restore(self, which: int, to: str | None) -> None:
        items = [item for item in self.store.trash.items() if isinstance(item, Item)]
        if items:
            target = None if to is None else SetName(to.encode())
            self._directly(lambda: self.store.trash.restore(items[which % len(items)], target))

    @rule(which=st.integers(0, 5))
    def purge(self, which: int) -> None:
        items = list(self.store.trash.items())
        if items:
            self._directly(lambda: self.store.trash.purge(items[which % len(items)]))

    @rule(caller=CALLERS)
    def make_room(self, caller: Caller) -> None:
        self._directly(lambda: self.store.trash.make_room(Owner(caller.uid, caller.gid), 1))

    @staticmethod
    def _directly(call: Callable[[], object]) -> None:
        with contextlib.suppress(FsError, FileNotFoundError):
            call()

    # Who pays

    @rule(name=st.sampled_from(SETS), caller=CALLERS)
    def give_without_the_files(self, name: str, caller: Caller) -> None:
        """As where root is squashed and they cannot be copied yet. Whoever gives moves the charge."""
        set_name = SetName(name.encode())

        def give() -> None:
            entry, _ = self.store.names.examine(set_name)
            before = self._counted()
            name_owner(self.store, set_name, entry.ino, Owner(caller.uid, caller.gid))
            self.mount.core.following[set_name] = "not now"
            for uid, amount in self._counted().items():
                self.meter.charged[uid] += amount - before[uid]

        self._directly(give)

    def _counted(self) -> dict[Uid, Amount]:
        return {uid: count(self.store, uid, self.store.door.unit) for uid in (ALICE.uid, BOB.uid)}

    @invariant()
    def what_was_told_is_what_is_there(self) -> None:
        self.meter.check(self.store)


class MeteredInMemory(Metered):
    """tmpfs keeps large attributes, and no extents."""

    directory = "/dev/shm"


@pytest.mark.parametrize("kind", [Metered, MeteredInMemory])
def test_what_the_meter_hears_is_what_a_count_finds(kind: type[Metered]) -> None:
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples(15),
            stateful_step_count=40,
            deadline=None,
            phases=PHASES,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
