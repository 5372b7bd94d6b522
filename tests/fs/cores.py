"""The file system in process: a Core over a real store, reached by paths as a process would, without FUSE."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ckfs.errors import NotFound
from ckfs.fs.charging import Charging, charge
from ckfs.fs.core import Core
from ckfs.fs.filesystem import Filesystem, filesystem
from ckfs.fs.membership import Membership
from ckfs.fs.metadata import Changes
from ckfs.ledger.ledger import Ledger
from ckfs.model import Caller, JobFate, Owner, Role, State
from ckfs.names import ROOT_INODE, FileHandle, Gid, Inode, SetName, Uid
from ckfs.policy.enforcing import QuotaMode
from ckfs.policy.settings import default_text
from ckfs.store.entries import decode
from ckfs.store.gate import Gate
from ckfs.store.layout import initialise, open_store
from ckfs.store.realms import Arrangement
from ckfs.store.spots import Found
from ckfs.store.volumes import Here
from tests.support.nfs import is_on_client, made_for, on_server

ROOT = Caller(Uid(0), Gid(0), 0, 0o022)
STORE_ID = "7f0c1a52-5c6e-4f3b-9d6e-0a4c3f2b1d00"
"""For a ledger."""

ALICE = Caller(Uid(2101), Gid(2101), 0, 0o022)
BOB = Caller(Uid(2102), Gid(2102), 0, 0o022)

KEEPER = Owner(Uid(2190), Gid(2190))
"""The account that keeps a store where root is squashed."""

_QUIET_WITHIN_S = 20.0


@dataclass
class KnownJobs:
    """An OwnerLookup that knows what it is told."""

    jobs: dict[bytes, Owner] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)

    def owner_of_set(self, name: SetName) -> Owner | None:
        return self.jobs.get(name)

    def fate_of_set(self, name: SetName) -> JobFate:
        if name in self.jobs:
            return JobFate.KNOWN
        return JobFate.GONE if name in self.gone else JobFate.UNKNOWN

    def owner_named(self, name: str) -> Owner | None:
        return Owner(Uid(int(name)), Gid(int(name))) if name.isdigit() else None

    def name_of(self, uid: int) -> str | None:
        return None


@dataclass(frozen=True)
class Seen:
    """What a walk found of one file."""

    mode: int
    ino: Inode
    state: State
    content: bytes


class Process:
    """A process of *caller*, with paths relative to the mount. Every reference that it gets is forgotten again."""

    def __init__(self, fs: Filesystem, caller: Caller) -> None:
        self.fs = fs
        self.caller = caller

    @contextlib.asynccontextmanager
    async def at(self, path: str) -> AsyncIterator[Inode]:
        """The inode at *path*, known for the time of the block."""
        held: list[Inode] = []
        ino = ROOT_INODE
        try:
            for name in filter(None, path.split("/")):
                ino = (await self.fs.naming.lookup(ino, name.encode())).record.ino
                held.append(ino)
            yield ino
        finally:
            for known in reversed(held):
                self.fs.forget(known, 1)

    @contextlib.asynccontextmanager
    async def parent(self, path: str) -> AsyncIterator[tuple[Inode, bytes]]:
        head, _, name = path.rpartition("/")
        async with self.at(head) as ino:
            yield ino, name.encode()

    async def mkdir(self, path: str, mode: int = 0o755) -> Found:
        async with self.parent(path) as (ino, name):
            found = await self.fs.naming.mkdir(ino, name, mode, self.caller)
            self.fs.forget(found.record.ino, 1)
            return found

    async def mknod(self, path: str, mode: int = stat.S_IFREG | 0o644) -> None:
        async with self.parent(path) as (ino, name):
            self.fs.forget((await self.fs.naming.mknod(ino, name, mode, 0, self.caller)).record.ino, 1)

    async def symlink(self, path: str, target: bytes) -> None:
        async with self.parent(path) as (ino, name):
            self.fs.forget((await self.fs.naming.symlink(ino, name, target, self.caller)).record.ino, 1)

    async def link(self, old: str, new: str) -> None:
        async with self.at(old) as source, self.parent(new) as (ino, name):
            self.fs.forget((await self.fs.naming.link(source, ino, name, self.caller)).record.ino, 1)

    async def create(self, path: str, mode: int = 0o644, flags: int = os.O_RDWR) -> FileHandle:
        """The caller closes it. Its inode stays known through the handle alone."""
        async with self.parent(path) as (ino, name):
            handle, found = await self.fs.naming.create(ino, name, mode, flags, self.caller)
            self.fs.forget(found.record.ino, 1)
            return handle

    async def open(self, path: str, flags: int = os.O_RDONLY) -> FileHandle:
        async with self.at(path) as ino:
            return await self.fs.opening.open(ino, flags, self.caller)

    async def close(self, handle: FileHandle) -> None:
        """close(2): the flush may fail, the release happens."""
        try:
            await self.fs.content.flush(handle)
        finally:
            await self.fs.content.release(handle)

    async def save(self, path: str, content: bytes) -> None:
        handle = await self.create(path)
        try:
            await self.fs.content.write(handle, 0, content)
            await self.fs.content.fsync(handle, data_only=False)
        finally:
            await self.close(handle)

    async def load(self, path: str) -> bytes:
        handle = await self.open(path)
        try:
            return bytes(await self.fs.content.read(handle, 0, 1 << 20))
        finally:
            await self.close(handle)

    async def append(self, path: str, content: bytes) -> None:
        handle = await self.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            await self.fs.content.write(handle, 0, content)
        finally:
            await self.close(handle)

    async def setattr(self, path: str, changes: Changes) -> None:
        async with self.at(path) as ino:
            await self.fs.metadata.setattr(ino, changes, None, self.caller)

    async def stat(self, path: str) -> Found:
        async with self.at(path) as ino:
            return await self.fs.metadata.getattr(ino)

    async def state(self, path: str) -> State:
        return (await self.stat(path)).record.state

    async def unlink(self, path: str) -> None:
        async with self.parent(path) as (ino, name):
            await self.fs.naming.unlink(ino, name, self.caller)

    async def rmdir(self, path: str) -> None:
        async with self.parent(path) as (ino, name):
            await self.fs.naming.rmdir(ino, name, self.caller)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        """As the kernel does: both names are looked up first."""
        with_new = contextlib.AsyncExitStack()
        async with self.at(old), with_new:
            with contextlib.suppress(FileNotFoundError, NotFound):
                await with_new.enter_async_context(self.at(new))
            async with self.parent(old) as (source, old_name), self.parent(new) as (target, new_name):
                await self.fs.naming.rename(source, old_name, target, new_name, flags, self.caller)

    async def list(self, path: str = "") -> dict[bytes, Found]:
        """Names with what the listing says of them."""
        entries: dict[bytes, Found] = {}
        async with self.at(path) as ino:
            handle = await self.fs.listing.opendir(ino, self.caller)
            offset, more = 0, True

            def emit(name: bytes, found: Found, next_offset: int) -> bool:
                nonlocal offset, more
                offset, more = next_offset, True
                assert name in (b".", b"..") or name not in entries, f"{name!r} is listed twice"
                entries[name] = found
                return True

            try:
                while more:
                    more = False
                    await self.fs.listing.readdir(handle, offset, emit)
            finally:
                await self.fs.listing.releasedir(handle)
                for name, found in entries.items():
                    if name not in (b".", b".."):
                        self.fs.forget(found.record.ino, 1)
        return {name: found for name, found in entries.items() if name not in (b".", b"..")}

    async def walk(self, path: str = "") -> dict[str, Seen]:
        """Everything below *path*. Each entry that is listed can be looked up, and is the same file then."""
        below: dict[str, Seen] = {}
        for name, listed in (await self.list(path)).items():
            inner = f"{path}/{name.decode()}".lstrip("/")
            found = await self.stat(inner)
            assert found.record.ino == listed.record.ino, f"{inner} is listed as another file"
            content = await self.load(inner) if found.record.is_regular else b""
            below[inner] = Seen(found.record.mode, found.record.ino, found.record.state, content)
            if found.record.is_directory:
                below |= await self.walk(inner)
        return below

    async def remove_tree(self, path: str) -> None:
        """rm -r; nothing if it is not there."""
        try:
            found = await self.stat(path)
        except FileNotFoundError:
            return
        await self._remove(path, found)

    async def _remove(self, path: str, found: Found) -> None:
        if not found.record.is_directory:
            await self.unlink(path)
            return
        for name, inner in (await self.list(path)).items():
            await self._remove(f"{path}/{name.decode()}", inner)
        await self.rmdir(path)


@dataclass
class Mount:
    """A Core in process, and processes on it."""

    core: Core
    fs: Filesystem

    def process(self, caller: Caller) -> Process:
        return Process(self.fs, caller)

    @property
    def alice(self) -> Process:
        return self.process(ALICE)

    @property
    def bob(self) -> Process:
        return self.process(BOB)

    @property
    def root(self) -> Process:
        return self.process(ROOT)

    def check_nothing_held(self) -> None:
        """No reference, handle, lock or thread of a call that is over."""
        assert len(self.core.inodes) == 1, f"inodes left: {list(self.core.inodes._nodes)}"
        assert len(self.core.handles) == 0, "handles left"
        assert len(self.core.locks) == 0, "locks left"
        gate = self.core.gate
        limiters: dict[object, trio.CapacityLimiter] = {"metadata": gate._metadata, "data": gate._data}
        limiters.update(gate._sets.items())
        borrowed = {kind: limiter.borrowed_tokens for kind, limiter in limiters.items()}
        assert not any(borrowed.values()), f"threads left: {borrowed}"

    async def until_nothing_is_held(self) -> None:
        """As :meth:`check_nothing_held`, once what goes on in the background, as digests do, has come to an end."""
        with trio.move_on_after(_QUIET_WITHIN_S):
            while self.core.gate.is_busy:  # noqa: ASYNC110 - nobody else is told of it
                await trio.sleep(0.01)
        self.check_nothing_held()


def new_store(
    directory: Path, arrangement: Arrangement = Arrangement.SHARED, mode: QuotaMode = QuotaMode.LEDGER
) -> Path:
    path = directory / "store"
    keeper = KEEPER if is_on_client(path) else Owner(ROOT.uid, ROOT.gid)
    if is_on_client(path):
        made_for(path, keeper.uid, keeper.gid)
    assert initialise(str(path), keeper, arrangement, default_text(mode))
    return path


def keeper_of(path: Path) -> Owner:
    """Who keeps the store at *path*: root, or where root is squashed an account of its own."""
    status = os.stat(path)
    return Owner(Uid(status.st_uid), Gid(status.st_gid))


def lies_at(store: Path, name: str) -> Path:
    """Where the set *name* lies, and root may change it: a copy that was made for its owner has not the set's name."""
    entry = decode(os.fsencode(os.readlink(on_server(store) / "names" / name)))
    return on_server(store).joinpath(*map(os.fsdecode, entry.spot.components))


def copied(store: Path, to: Path) -> Path:
    """A store, or a part of one, once more, with all that belongs to its files: by root on the server, if that is another one."""
    subprocess.run(["cp", "-a", on_server(store), on_server(to)], check=True)
    return to


@contextlib.asynccontextmanager
async def mounted(
    path: Path,
    *,
    node: str = "a",
    jobs: KnownJobs | None = None,
    read_only: bool = False,
    timeout_s: float = 10.0,
    role: Role = Role.NODE,
) -> AsyncIterator[Mount]:
    """The store at *path*, as one mount."""
    with mounted_for_long(
        path, node=node, jobs=jobs, read_only=read_only, timeout_s=timeout_s, role=role
    ) as mount:
        yield mount


@contextlib.contextmanager
def mounted_for_long(
    path: Path,
    *,
    node: str = "a",
    jobs: KnownJobs | None = None,
    read_only: bool = False,
    timeout_s: float = 10.0,
    role: Role = Role.NODE,
    ledger: Ledger | None = None,
) -> Iterator[Mount]:
    """As :func:`mounted`, from outside of any event loop: each call may have a loop of its own."""
    store = open_store(str(path), keeper_of(path), read_only=read_only, here=Here(node))
    with contextlib.closing(store):
        gate = Gate(store.door.probe, op_timeout_s=timeout_s, io_timeout_s=timeout_s, volumes=store.volumes)
        member = None if read_only else Membership(store.mounts, node.encode())
        core = Core(
            store,
            gate,
            store.read_policy(),
            jobs or KnownJobs(),
            role,
            node.encode(),
            timeout_s,
            member,
            ledger=ledger,
        )
        yield Mount(core, filesystem(core))
        if member is not None:
            member.leave(finished=all(handle.mount is None for handle in core.handles.all()))


def charging_of(mount: Mount) -> Charging:
    """Of a mount that :func:`charged` gave."""
    assert isinstance(mount.core.charging, Charging)
    return mount.core.charging


@contextlib.asynccontextmanager
async def charged(
    path: Path, ledger: Ledger, *, node: str = "a", role: Role = Role.NODE, timeout_s: float = 10.0
) -> AsyncIterator[Mount]:
    """As :func:`mounted`, and everything is charged in *ledger*; at the end it has been told all."""
    with mounted_for_long(path, node=node, role=role, timeout_s=timeout_s, ledger=ledger) as mount:
        charge(mount.core)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.core.charging.run)
            yield mount
            nursery.cancel_scope.cancel()
        mount.core.charging.leave()
