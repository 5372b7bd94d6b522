"""Random calls on a job's batch sets, on two mounts of one store in process, against a small reference.

Its one invariant: the newest K complete checkpoints of a family of batch sets, byte for byte, are readable until one who may
removes them. No kernel is between, so that ckfs keeps the invariant also against calls that the kernel would refuse.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import trio
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from ckfs.errors import errno_of
from ckfs.fs.metadata import Changes
from ckfs.model import Caller, Role, State
from ckfs.names import FileHandle, Gid, Uid
from tests.fs.cores import ALICE, BOB, ROOT, Process, Seen, mounted_for_long
from tests.fs.nfs_stores import new_place
from tests.support.examples import PHASES, examples
from tests.support.gluster_cluster import Cluster

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

KEEP = 2
BASE, OLD, OTHER = "7.s.CK", "7.s.CK.old", "other"
"""A job's batch sets, and a set that no batch system manages."""
FAMILY = (BASE, OLD)
NODE, SERVER = 0, 1
ACTORS = st.sampled_from([(ALICE, NODE), (ROOT, NODE), (BOB, NODE), (ALICE, SERVER), (ROOT, SERVER)])
WORKERS = st.sampled_from([(ALICE, NODE), (ALICE, SERVER), (ROOT, NODE)])
SETS = st.sampled_from([BASE, BASE, BASE, OLD, OTHER])
ENTRIES = st.sampled_from(["a", "b", "c", ".t", "d/x", "d/y", "e/x"])
DIRECTORIES = st.sampled_from(["d", "e"])
FLAGS = st.sampled_from([0, 0, 1, 2])
WHOLE = {State.COMPLETE, State.SUPERSEDED}
ANSWERS = {
    0,
    errno.EACCES,
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.ENOENT,
    errno.EXDEV,
    errno.EPERM,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOSPC,
    errno.ESTALE,
}
"""Neither EBUSY nor EIO."""

Actor = tuple[Caller, int]


@dataclass(frozen=True)
class Complete:
    """The complete images of a checkpoint: of an entry of a set, or with an empty *name* of a set that is a file."""

    rank: int
    of_set: str
    name: str
    images: tuple[tuple[str, bytes], ...]
    all_are: bool
    """It has no others: the checkpoint is complete."""

    @property
    def path(self) -> str:
        return f"{self.of_set}/{self.name}".rstrip("/")


@dataclass(eq=False)
class Held:
    """An open file that its process may write."""

    process: Process
    which: int
    handle: FileHandle
    ino: int
    wrote: bool


class Reference:
    """Which checkpoints must be there. It knows contents, and in which order they were first seen whole."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.rank: dict[bytes, int] = {}
        self.said: dict[int, str] = {}
        """What was said of an inode: that it is pinned, or released."""

    def look(self, seen: dict[str, Seen]) -> None:
        self.seen = seen
        for file in seen.values():
            if stat.S_ISREG(file.mode) and file.state in WHOLE:
                self.rank.setdefault(file.content, len(self.rank))

    def complete(self) -> list[Complete]:
        """The newest first."""
        return [one for one in self.with_complete_images() if one.all_are]

    def with_complete_images(self) -> list[Complete]:
        """The newest first. Whoever adds an image to a directory, or fails to, takes away nothing of what is there."""
        found = [one for of_set in FAMILY for one in self._of_set(of_set)]
        return sorted(found, key=lambda one: (one.rank, one.of_set, one.name), reverse=True)

    def _of_set(self, of_set: str) -> Iterator[Complete]:
        inside = [path for path in self.seen if path.startswith(f"{of_set}/")]
        entries = {path.split("/")[1] for path in inside} or {""}
        for name in entries:
            path = f"{of_set}/{name}".rstrip("/")
            files = {inner: file for inner, file in self.seen.items() if self._is_in(inner, path)}
            images = {inner: file for inner, file in files.items() if stat.S_ISREG(file.mode)}
            whole = {inner: file for inner, file in images.items() if file.state in WHOLE}
            if whole and not name.startswith("."):
                rank = max(self.rank[file.content] for file in whole.values())
                contents = tuple((inner[len(path) :], file.content) for inner, file in whole.items())
                yield Complete(rank, of_set, name, contents, len(whole) == len(images))

    @staticmethod
    def _is_in(path: str, directory: str) -> bool:
        return path == directory or path.startswith(f"{directory}/")

    def said_of(self, one: Complete) -> str:
        return self.said.get(self.seen[one.path].ino) or self.said.get(self.seen[one.of_set].ino, "")

    def required(self, actor: Actor) -> list[Complete]:
        """What *actor*'s call must leave."""
        caller, which = actor
        if caller.is_root and which == SERVER:
            return []
        complete = self.complete()
        newest = {*complete[:KEEP], *self.with_complete_images()[:KEEP]}
        required = [one for one in newest if self.said_of(one) != "released"]
        required += [one for one in complete[KEEP:] if self.said_of(one) == "pinned"]
        if caller.is_root and complete and complete[0].of_set == BASE:
            return [one for one in required if one.of_set == BASE]  # OpenPBS's mom removes the older set
        return required

    def check(self, required: list[Complete], actor: Actor) -> None:
        """A node's root may have turned the sets."""
        for one in required:
            sets = FAMILY if actor[0].is_root else (one.of_set,)
            assert any(self._holds(of_set, one) for of_set in sets), f"lost {one}; there is {self.seen}"

    def _holds(self, of_set: str, one: Complete) -> bool:
        path = f"{of_set}/{one.name}".rstrip("/")
        there = {inner: self.seen.get(path + inner) for inner, _ in one.images}
        return all(
            file is not None and file.content == content and file.state in WHOLE
            for file, (_, content) in zip(there.values(), one.images, strict=True)
        )


class Protection(RuleBasedStateMachine):
    kind = "plain"
    """Where the store is: see :func:`new_place`."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ckfs-test-model-"))
        self.directory.chmod(0o711)
        self.end = contextlib.ExitStack()
        self.end.callback(shutil.rmtree, self.directory)
        stores = self.end.enter_context(self.stores())
        roles = {NODE: Role.NODE, SERVER: Role.SERVER}
        self.on = [
            self.end.enter_context(mounted_for_long(stores[which], node=role.value, role=role))
            for which, role in roles.items()
        ]
        for mount in self.on:
            mount.core.reads_partial = True
        self.held: list[Held] = []
        self.reference = Reference()
        self.made = 0
        trio.run(self._prepare)

    @contextlib.contextmanager
    def stores(self) -> Iterator[tuple[Path, Path]]:
        """A new store, as the node reaches it and as the server does."""
        with new_place(self.kind, self.directory) as store:
            yield store, store

    async def _prepare(self) -> None:
        node = self.on[NODE]
        await node.root.mkdir(BASE)
        await node.root.setattr(BASE, Changes(uid=ALICE.uid, gid=ALICE.gid))
        await node.alice.mkdir(OTHER)
        await node.alice.mkdir(f"{BASE}/d")
        for path in (f"{BASE}/a", f"{BASE}/d/x", f"{BASE}/b", f"{OTHER}/a"):
            await node.alice.save(path, self.content())
            self.reference.look(await node.root.walk())

    def teardown(self) -> None:
        with self.end:
            for held in self.held:
                with contextlib.suppress(OSError):
                    trio.run(held.process.close, held.handle)
            for mount in self.on:
                mount.check_nothing_held()

    def content(self) -> bytes:
        """Like no other."""
        self.made += 1
        return b"<%d>" % self.made * 20

    def step(self, actor: Actor, call: Callable[[Process], Awaitable[object]]) -> int:
        """Make *call* as *actor*, and check that all is there that must be."""
        caller, which = actor
        required = self.reference.required(actor)

        async def calling() -> int:
            number = 0
            try:
                await call(self.on[which].process(caller))
            except Exception as error:  # noqa: BLE001 - as the transport does
                number = errno_of(error)
            seen = await self.on[1 - which].root.walk()
            self.reference.look(seen)
            return number

        number = trio.run(calling)
        self.reference.check(required, actor)
        assert number in ANSWERS, errno.errorcode.get(number)
        return number

    # Making images

    @rule(actor=WORKERS, of_set=SETS, entry=ENTRIES)
    def make_directly(self, actor: Actor, of_set: str, entry: str) -> None:
        path, content = f"{of_set}/{entry}", self.content()
        is_open = any(held.ino == self.ino_of(path) and held.wrote for held in self.held)
        if self.step(actor, lambda process: put(process, path, content)) == 0:
            assert self.reference.seen[path].content == content
            is_final = not entry.startswith(".")
            assert is_open or self.reference.seen[path].state is (
                State.COMPLETE if is_final else State.WRITING
            )

    @rule(actor=WORKERS, of_set=SETS, entry=ENTRIES)
    def make_and_rename(self, actor: Actor, of_set: str, entry: str) -> None:
        path, content = f"{of_set}/{entry}", self.content()

        async def call(process: Process) -> None:
            temporary = f"{path}.tmp"
            await put(process, temporary, content)
            try:
                await process.rename(temporary, path)
            except BaseException:
                await process.unlink(temporary)
                raise

        if self.step(actor, call) == 0 and not entry.startswith("."):
            file = self.reference.seen[path]
            assert (file.content, file.state) == (content, State.COMPLETE)

    @rule(actor=WORKERS, of_set=SETS, entry=ENTRIES)
    def fail(self, actor: Actor, of_set: str, entry: str) -> None:
        path, content = f"{of_set}/{entry}", self.content()

        async def call(process: Process) -> None:
            handle = await opened(process, path)
            try:
                await process.fs.content.write(handle, 0, content)
                with mock.patch.object(os, "pwrite", no_room):
                    await process.fs.content.write(handle, len(content), content)
            finally:
                await process.close(handle)

        if self.step(actor, call) == errno.ENOSPC:
            assert self.reference.seen[path].state not in WHOLE

    @rule(actor=WORKERS, of_set=SETS, entry=ENTRIES, truncate=st.booleans())
    def hold(self, actor: Actor, of_set: str, entry: str, truncate: bool) -> None:
        path = f"{of_set}/{entry}"
        assume(len(self.held) < 4)

        async def call(process: Process) -> None:
            is_there = self.ino_of(path) >= 0
            handle = await opened(process, path, os.O_TRUNC * truncate)
            ino = process.fs.content.core.handle(handle).node.ino
            self.held.append(Held(process, actor[1], handle, ino, wrote=truncate or not is_there))

        self.step(actor, call)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write_held(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        content = self.content()

        async def call(_: Process) -> None:
            await held.process.fs.content.write(held.handle, 0, content)
            held.wrote = True

        self.step((held.process.caller, held.which), call)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=st.integers(0, 30))
    def truncate_held(self, data: st.DataObject, size: int) -> None:
        held = data.draw(st.sampled_from(self.held))

        async def call(process: Process) -> None:
            node = process.fs.content.core.handle(held.handle).node
            await process.fs.metadata.setattr(node.ino, Changes(size=size), held.handle, held.process.caller)
            held.wrote = True

        self.step((held.process.caller, held.which), call)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close_held(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        self.held.remove(held)
        self.step((held.process.caller, held.which), lambda _: held.process.close(held.handle))

    def ino_of(self, path: str) -> int:
        file = self.reference.seen.get(path)
        return -1 if file is None else file.ino

    # Changing them

    @rule(actor=ACTORS, of_set=SETS, entry=ENTRIES)
    def append(self, actor: Actor, of_set: str, entry: str) -> None:
        path, content = f"{of_set}/{entry}", self.content()
        self.step(actor, lambda process: process.append(path, content))

    @rule(actor=ACTORS, of_set=SETS, entry=ENTRIES, size=st.integers(0, 30))
    def truncate(self, actor: Actor, of_set: str, entry: str, size: int) -> None:
        path = f"{of_set}/{entry}"
        before = self.reference.seen.get(path)
        if before is not None:  # what is cut short keeps its place in the order
            cut = before.content[:size].ljust(size, b"\0")
            self.reference.rank.setdefault(cut, self.reference.rank.get(before.content, 0))
        self.step(actor, lambda process: process.setattr(path, Changes(size=size)))

    @rule(actor=ACTORS, of_set=SETS, entry=ENTRIES, mode=st.sampled_from([0, 0o200, 0o777]))
    def chmod(self, actor: Actor, of_set: str, entry: str, mode: int) -> None:
        self.step(actor, lambda process: process.setattr(f"{of_set}/{entry}", Changes(mode=mode)))

    @rule(
        which=st.sampled_from([NODE, SERVER]),
        of_set=SETS,
        entry=ENTRIES,
        uid=st.sampled_from([0, 2101, 2102]),
    )
    def chown_image(self, which: int, of_set: str, entry: str, uid: int) -> None:
        path, changes = f"{of_set}/{entry}", Changes(uid=Uid(uid), gid=Gid(uid))
        self.step((ROOT, which), lambda process: process.setattr(path, changes))

    @rule(of_set=SETS, uid=st.sampled_from([2101, 2102]))
    def chown_set(self, of_set: str, uid: int) -> None:
        changes = Changes(uid=Uid(uid), gid=Gid(uid))
        self.step((ROOT, NODE), lambda process: process.setattr(of_set, changes))

    # Names

    @rule(actor=WORKERS, of_set=SETS, name=DIRECTORIES)
    def mkdir(self, actor: Actor, of_set: str, name: str) -> None:
        self.step(actor, lambda process: process.mkdir(f"{of_set}/{name}"))

    @rule(which=st.sampled_from([NODE, SERVER]), of_set=st.sampled_from(FAMILY))
    def make_set(self, which: int, of_set: str) -> None:
        async def call(process: Process) -> None:
            await process.mkdir(of_set)
            await process.setattr(of_set, Changes(uid=ALICE.uid, gid=ALICE.gid))

        self.step((ROOT, which), call)

    @rule(actor=ACTORS, of_set=SETS, entry=ENTRIES)
    def unlink(self, actor: Actor, of_set: str, entry: str) -> None:
        self.step(actor, lambda process: process.unlink(f"{of_set}/{entry}"))

    @rule(actor=ACTORS, of_set=SETS)
    def remtree(self, actor: Actor, of_set: str) -> None:
        """TORQUE's."""
        self.step(actor, lambda process: remove_what_goes(process, of_set))

    @rule(actor=ACTORS, data=st.data(), flags=FLAGS)
    def rename(self, actor: Actor, data: st.DataObject, flags: int) -> None:
        old, new = self.any_name(data), self.any_name(data)
        assume(not f"{new}/".startswith(f"{old}/") and not f"{old}/".startswith(f"{new}/"))
        one, other = self.reference.seen.get(old), self.reference.seen.get(new)
        # The kernel compares kinds itself.
        assume(one is not None and (flags or other is None or (one.mode ^ other.mode) & 0o170000 == 0))
        self.step(actor, lambda process: process.rename(old, new, flags))

    @rule(actor=ACTORS, data=st.data())
    def link(self, actor: Actor, data: st.DataObject) -> None:
        old, new = self.any_name(data), self.any_name(data)
        one = self.reference.seen.get(old)
        assume(one is not None and stat.S_ISREG(one.mode))
        self.step(actor, lambda process: process.link(old, new))

    def any_name(self, data: st.DataObject) -> str:
        of_set = data.draw(SETS)
        return data.draw(
            st.one_of(
                ENTRIES.map(lambda entry: f"{of_set}/{entry}"),
                DIRECTORIES.map(lambda name: f"{of_set}/{name}"),
                st.just(of_set),
            )
        )

    @rule(
        actor=st.sampled_from([(ALICE, NODE), (ALICE, SERVER), (BOB, NODE), (ROOT, SERVER)]),
        of_set=st.sampled_from(FAMILY),
        name=st.sampled_from(["a", "b", "d", ""]),
        said=st.sampled_from(["pinned", "released", ""]),
    )
    def say(self, actor: Actor, of_set: str, name: str, said: str) -> None:
        path = f"{of_set}/{name}".rstrip("/")

        async def call(process: Process) -> None:
            async with process.at(of_set) as ino:
                value = f"{said}/{name}" if name else said
                await process.fs.extended.set(ino, b"user.ckfs.keep", value.encode(), process.caller)

        if self.step(actor, call) == 0:
            assert actor[0].is_root or said != "released"
            self.reference.said[self.ino_of(path)] = said


def no_room(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "on purpose")


async def opened(process: Process, path: str, flags: int = os.O_TRUNC) -> FileHandle:
    try:
        return await process.create(path, flags=os.O_WRONLY | os.O_EXCL)
    except Exception as error:
        if errno_of(error) != errno.EEXIST:
            raise
        return await process.open(path, os.O_WRONLY | flags)


async def put(process: Process, path: str, content: bytes) -> None:
    handle = await opened(process, path)
    try:
        await process.fs.content.write(handle, 0, content)
    finally:
        await process.close(handle)


async def remove_what_goes(process: Process, path: str) -> None:
    for name, found in (await process.list(path)).items():
        inner = f"{path}/{name.decode()}"
        with contextlib.suppress(Exception):
            await (remove_what_goes if found.record.is_directory else Process.unlink)(process, inner)
    await process.rmdir(path)


class ProtectionOnNfs(Protection):
    """Each example mounts what behaves like NFS: there are few."""

    kind = "nfs"


class ProtectionOnGluster(Protection):
    """Node and server are hosts of a GlusterFS cluster that squashes root. Each call takes long there."""

    cluster: Cluster

    @contextlib.contextmanager
    def stores(self) -> Iterator[tuple[Path, Path]]:
        name = self.cluster.make_store("--quota", "none")
        node, server, _ = self.cluster.hosts
        yield node.volume / name, server.volume / name


def run(machine: type[Protection], count: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(count),
            stateful_step_count=30,
            deadline=None,
            phases=PHASES,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.parametrize(
    ("machine", "count"),
    [
        pytest.param(Protection, 12, id="plain"),
        pytest.param(ProtectionOnNfs, 2, id="nfs", marks=pytest.mark.root),
    ],
)
def test_the_newest_complete_checkpoints_stay_readable(machine: type[Protection], count: int) -> None:
    run(machine, count)


@pytest.mark.cluster
@pytest.mark.long_on_cluster
def test_the_newest_complete_checkpoints_stay_readable_on_gluster(
    gluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProtectionOnGluster, "cluster", gluster, raising=False)
    run(ProtectionOnGluster, 4)
