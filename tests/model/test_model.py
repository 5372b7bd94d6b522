"""Random calls on one file system in process, and on two over one store, against a model in memory.

The kernel's own checks (permission bits, kinds, loops) are not asked for here, since no kernel is between: rules make only
calls that it would let through. After each step a mount shows exactly what the model has, inode by inode.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ckfs.errors import errno_of
from ckfs.fs.metadata import Changes
from ckfs.model import Caller
from ckfs.names import FileHandle
from tests.fs.cores import ALICE, BOB, ROOT, Mount, Process, mounted_for_long, new_store
from tests.support.examples import PHASES, examples

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

NAMES = st.sampled_from(["a", "b", "c"])
CALLERS = st.sampled_from([ALICE, BOB, ROOT])
MODES = st.sampled_from([0o600, 0o640, 0o755])
SIZES = st.integers(0, 9000)
CONTENT = st.binary(min_size=1, max_size=20)
T = TypeVar("T")
WHICH = st.integers(0, 1)


@dataclass(eq=False)
class Thing:
    """A file, or with *entries* a directory. *owner* is that of a set, for its top."""

    mode: int
    owner: int = -1
    content: bytes = b""
    entries: dict[str, Thing] | None = None
    links: int = 1

    @property
    def below(self) -> dict[str, Thing]:
        assert self.entries is not None
        return self.entries


@dataclass(eq=False)
class Held:
    """An open file."""

    mount: Mount
    caller: Caller
    handle: FileHandle
    thing: Thing


@dataclass
class Model:
    top: Thing = field(default_factory=lambda: Thing(0, entries={}))

    def all(self) -> Iterator[tuple[str, Thing]]:
        """Every name with its path, directories before what is in them."""
        waiting = [("", self.top)]
        while waiting:
            path, directory = waiting.pop()
            for name, thing in directory.below.items():
                inner = f"{path}/{name}".lstrip("/")
                yield inner, thing
                if thing.entries is not None:
                    waiting.append((inner, thing))

    def find(self, path: str) -> Thing | None:
        return dict(self.all()).get(path) if path else self.top

    def directory_of(self, path: str) -> Thing:
        directory = self.find(path.rpartition("/")[0])
        assert directory is not None
        return directory

    def owner_of(self, path: str) -> int:
        """Of the set that *path* is in."""
        top = self.find(path.split("/")[0])
        return -1 if top is None else top.owner

    def may_change(self, path: str, caller: Caller) -> bool:
        """Whether the kernel lets *caller* change what is in the directory of *path*, or the file itself."""
        return "/" not in path or caller.is_root or self.owner_of(path) == caller.uid

    def remove(self, path: str) -> None:
        self.directory_of(path).below.pop(name_of(path)).links -= 1


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


class Calls(RuleBasedStateMachine):
    """Rules for any number of mounts."""

    mounts = 1

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ckfs-test-model-"))
        self.directory.chmod(0o711)
        store = new_store(self.directory)
        self.end = contextlib.ExitStack()
        self.end.callback(shutil.rmtree, self.directory)
        self.on = [
            self.end.enter_context(mounted_for_long(store, node=str(number))) for number in range(self.mounts)
        ]
        self.model = Model()
        self.held: list[Held] = []

    def teardown(self) -> None:
        with self.end:
            for held in self.held:
                self.run(functools.partial(held.mount.process(held.caller).close, held.handle))
            for mount in self.on:
                mount.check_nothing_held()

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        async def calling() -> T:
            return await call()

        return trio.run(calling)

    def errno_of(self, which: int, caller: Caller, call: Callable[[Process], Awaitable[object]]) -> int:
        """What *call* fails with on one of the mounts; 0 if it succeeds."""
        process = self.on[which % self.mounts].process(caller)
        try:
            self.run(lambda: call(process))
        except Exception as error:  # noqa: BLE001 - as the transport does
            return errno_of(error)
        return 0

    def a_directory(self, data: st.DataObject) -> str:
        directories = [path for path, thing in self.model.all() if thing.entries is not None]
        return data.draw(st.sampled_from(["", *(path for path in directories if path.count("/") < 2)]))

    def a_path(self, data: st.DataObject) -> str:
        """One in a directory that is there; there may be nothing of that name."""
        return f"{self.a_directory(data)}/{data.draw(NAMES)}".lstrip("/")

    def a_file(self, data: st.DataObject, caller: Caller) -> tuple[str, Thing]:
        """One that *caller* may change."""
        files = [
            (path, thing)
            for path, thing in self.model.all()
            if thing.entries is None and self.may_use(path, caller)
        ]
        assume(files)
        return data.draw(st.sampled_from(files))

    def may_use(self, path: str, caller: Caller) -> bool:
        return caller.is_root or self.model.owner_of(path) == caller.uid

    # Making

    @rule(data=st.data(), which=WHICH, caller=CALLERS, mode=MODES)
    def mkdir(self, data: st.DataObject, which: int, caller: Caller, mode: int) -> None:
        path = self.a_path(data)
        assume(self.model.may_change(path, caller))
        directory = self.model.directory_of(path)
        expected = errno.EEXIST if name_of(path) in directory.below else 0
        assert self.errno_of(which, caller, lambda process: process.mkdir(path, mode)) == expected
        if not expected:
            directory.below[name_of(path)] = Thing(mode, caller.uid, entries={})

    @rule(data=st.data(), which=WHICH, caller=CALLERS, content=CONTENT, keep=st.booleans())
    def create(self, data: st.DataObject, which: int, caller: Caller, content: bytes, keep: bool) -> None:
        path = self.a_path(data)
        directory = self.model.directory_of(path)
        assume(self.model.may_change(path, caller) and name_of(path) not in directory.below)

        async def call(process: Process) -> None:
            handle = await process.create(path, 0o640)
            await process.fs.content.write(handle, 0, content)
            if keep:
                self.held.append(Held(self.on[which % self.mounts], caller, handle, thing))
            else:
                await process.close(handle)

        thing = Thing(0o640, caller.uid, content)
        assert self.errno_of(which, caller, call) == 0
        directory.below[name_of(path)] = thing

    @rule(data=st.data(), which=WHICH, caller=CALLERS)
    def link(self, data: st.DataObject, which: int, caller: Caller) -> None:
        old, thing = self.a_file(data, caller)
        new = self.a_path(data)
        assume(self.model.may_change(new, caller))
        directory = self.model.directory_of(new)
        number = self.errno_of(which, caller, lambda process: process.link(old, new))
        if name_of(new) in directory.below:
            assert number in {errno.EEXIST, errno.EXDEV}
        elif old.split("/")[0] == new.split("/")[0]:
            assert number == 0
        else:
            assert number in {0, errno.EXDEV}
        if not number:
            directory.below[name_of(new)] = thing
            thing.links += 1

    # Content

    @rule(data=st.data(), which=WHICH, caller=CALLERS, offset=SIZES, content=CONTENT)
    def write(self, data: st.DataObject, which: int, caller: Caller, offset: int, content: bytes) -> None:
        path, thing = self.a_file(data, caller)

        async def call(process: Process) -> None:
            handle = await process.open(path, os.O_WRONLY)
            await process.fs.content.write(handle, offset, content)
            await process.close(handle)

        assert self.errno_of(which, caller, call) == 0
        thing.content = written(thing.content, offset, content)

    @rule(data=st.data(), which=WHICH, caller=CALLERS, size=SIZES)
    def truncate(self, data: st.DataObject, which: int, caller: Caller, size: int) -> None:
        path, thing = self.a_file(data, caller)
        assert self.errno_of(which, caller, lambda process: process.setattr(path, Changes(size=size))) == 0
        thing.content = thing.content[:size].ljust(size, b"\0")

    @precondition(lambda self: self.held)
    @rule(data=st.data(), offset=SIZES, content=CONTENT, close=st.booleans())
    def use_held(self, data: st.DataObject, offset: int, content: bytes, close: bool) -> None:
        """Open files go on, wherever they are by now and whether or not they still have a name."""
        held = data.draw(st.sampled_from(self.held))
        process = held.mount.process(held.caller)

        async def call() -> bytes:
            await process.fs.content.write(held.handle, offset, content)
            return bytes(await process.fs.content.read(held.handle, 0, 1 << 16))

        held.thing.content = written(held.thing.content, offset, content)
        assert self.run(call) == held.thing.content
        if close:
            self.held.remove(held)
            self.run(lambda: process.close(held.handle))

    # Names

    @rule(data=st.data(), which=WHICH, caller=CALLERS, mode=MODES)
    def chmod(self, data: st.DataObject, which: int, caller: Caller, mode: int) -> None:
        things = [(path, thing) for path, thing in self.model.all() if self.may_use(path, caller)]
        assume(things)
        path, thing = data.draw(st.sampled_from(things))
        assert self.errno_of(which, caller, lambda process: process.setattr(path, Changes(mode=mode))) == 0
        thing.mode = mode

    @rule(data=st.data(), which=WHICH, caller=CALLERS)
    def remove(self, data: st.DataObject, which: int, caller: Caller) -> None:
        path = self.a_path(data)
        assume(self.model.may_change(path, caller))
        thing = self.model.find(path)

        async def call(process: Process) -> None:
            await (process.unlink(path) if thing is None or thing.entries is None else process.rmdir(path))

        number = self.errno_of(which, caller, call)
        if thing is None:
            assert number == errno.ENOENT
        elif not self.may_use(path, caller):
            assert number in {errno.EPERM, errno.EACCES}
        elif thing.entries:
            assert number == errno.ENOTEMPTY
        else:
            assert number == 0
            self.model.remove(path)

    @rule(data=st.data(), which=WHICH, caller=CALLERS)
    def rename(self, data: st.DataObject, which: int, caller: Caller) -> None:
        old, new = self.a_path(data), self.a_path(data)
        moved, other = self.model.find(old), self.model.find(new)
        # Inside a set the kernel checks modes before it asks; at the top ckfs looks again at what is really there.
        assume(("/" not in old or self.may_use(old, caller)) and self.model.may_change(new, caller))
        assume(
            moved is not None and not f"{new}/".startswith(f"{old}/") and not f"{old}/".startswith(f"{new}/")
        )
        assert moved is not None
        # A set has its owner's things only, so that a move to the top keeps the owner: root's moves there are another matter.
        assume(("/" in old) == ("/" in new) or not caller.is_root)
        assume(other is None or (other.entries is None) == (moved.entries is None))
        number = self.errno_of(which, caller, lambda process: process.rename(old, new))
        if not self.may_use(old, caller):
            assert number in {errno.EPERM, errno.EACCES, errno.EXDEV}
        elif number == 0:
            assert other is None or (self.may_use(new, caller) and not other.entries)
            self._renamed(old, new, moved, other)
        elif old.split("/")[0] == new.split("/")[0]:
            assert number == errno.ENOTEMPTY
        else:
            assert number in {errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST, errno.EPERM, errno.EACCES}

    def _renamed(self, old: str, new: str, moved: Thing, other: Thing | None) -> None:
        if moved is other:
            return
        if "/" not in new:
            moved.owner = self.model.owner_of(old)
        if other is not None:
            self.model.remove(new)
        self.model.directory_of(new).below[name_of(new)] = moved
        del self.model.directory_of(old).below[name_of(old)]

    @invariant()
    def the_next_mount_shows_the_model(self) -> None:
        self.on.append(self.on.pop(0))  # walks take most of the time: one in turn
        self.check(self.on[0])

    def check(self, *mounts: Mount) -> None:
        """Each of *mounts* shows exactly what the model has, inode by inode."""
        expected = dict(self.model.all())
        for mount in mounts:
            seen = self.run(mount.root.walk)
            assert {path: (file.mode & 0o7777, file.content) for path, file in seen.items()} == {
                path: (thing.mode, thing.content) for path, thing in expected.items()
            }
            inodes: dict[int, Thing] = {}
            for path, file in seen.items():
                assert inodes.setdefault(file.ino, expected[path]) is expected[path], (
                    f"{path}: another's inode"
                )
            assert len(inodes) == len(set(expected.values()))


def written(before: bytes, offset: int, content: bytes) -> bytes:
    return before[:offset].ljust(offset, b"\0") + content + before[offset + len(content) :]


class CallsOnTwo(Calls):
    """Two mounts of one store, each step on either: what one did, the other's next call sees."""

    mounts = 2


@pytest.mark.parametrize("machine", [Calls, CallsOnTwo], ids=["one mount", "two mounts"])
def test_random_calls(machine: type[Calls]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(8),
            stateful_step_count=20,
            deadline=None,
            phases=PHASES,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
