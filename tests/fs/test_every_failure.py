"""Every operation, with its store calls failing or being the last before the process dies, one at a time.

After a failure nothing is held; after a death a new mount finds all that was complete, and can use every name.

Of an operation's calls the first four are tried, and then evenly spaced ones up to the last, nine in all; the kinds of
error take turns. With ``CKFS_EVERY=1`` in the environment every call is tried, with every kind of error: half an hour.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from ckfs.errors import FsError
from ckfs.fs.metadata import Changes
from ckfs.model import Role, State
from ckfs.names import Uid
from ckfs.store.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fs.cores import ALICE, Mount, Process, Seen, copied, mounted, new_store
from tests.fs.failing import Failing, Killed
from tests.support.nfs import remove

pytestmark = pytest.mark.root

_EVERY = os.environ.get("CKFS_EVERY") == "1"
_MOST_CALLS = 2000
_POINTS = 9
"""Calls of an operation that are tried, ..."""
_FIRST = 4
"""... these many of them from the beginning."""
Act = Callable[[Mount], Awaitable[object]]
One = Callable[[Path, int, Callable[[], BaseException]], Awaitable[None]]
"""A round on a store: the number of the call that fails, and how."""


@dataclass(frozen=True)
class Operation:
    name: str
    act: Act
    loses: frozenset[bytes] = frozenset()
    """Contents that it is meant to destroy."""


async def _prepare(mount: Mount) -> None:
    alice = mount.alice
    await alice.mkdir("dir")
    await alice.save("dir/a", b"A")
    await alice.save("dir/b", b"B")
    await alice.symlink("dir/sym", b"there")
    await alice.mkdir("dir/sub")
    await alice.save("dir/sub/x", b"X")
    await alice.mkdir("dir/empty")
    await alice.save("file", b"F")
    await alice.save("other", b"O")
    await alice.save("shifted", b"S")
    await alice.save("place", b"P")
    await _exchange(alice, "shifted", "place")  # their files lie under each other's names
    await alice.mkdir("tree")
    await alice.save("tree/t", b"T")
    await alice.mkdir("empty")
    await mount.root.mkdir("7.server.CK")
    await mount.root.save("7.server.CK/image", b"I")


async def _exchange(process: Process, one: str, other: str) -> None:
    try:
        await process.rename(one, other, RENAME_EXCHANGE)
    except OSError:  # NFS has no such flag
        for old, new in ((one, "aside"), (other, one), ("aside", other)):
            await process.rename(old, new)


def _op(name: str, act: Act, *loses: bytes) -> Operation:
    return Operation(name, act, frozenset(loses))


async def _chmod(mount: Mount) -> None:
    await mount.alice.setattr("dir/a", Changes(mode=0o600))


def _given(path: str, uid: int) -> Act:
    return lambda mount: mount.root.setattr(path, Changes(uid=Uid(uid)))


async def _xattr(mount: Mount) -> None:
    async with mount.alice.at("dir/a") as ino:
        await mount.fs.extended.set(ino, b"user.k", b"v", mount.alice.caller)
        await mount.fs.extended.get(ino, b"user.k", ALICE)
        await mount.fs.extended.list(ino)
        await mount.fs.extended.remove(ino, b"user.k", mount.alice.caller)


async def _readlink(mount: Mount) -> None:
    async with mount.alice.at("dir/sym") as ino:
        await mount.fs.naming.readlink(ino)


OPERATIONS = (
    _op("mkdir set", lambda m: m.alice.mkdir("new")),
    _op("create set", lambda m: m.alice.save("new", b"N")),
    _op("mknod set", lambda m: m.alice.mknod("new")),
    _op("symlink set", lambda m: m.alice.symlink("new", b"t")),
    _op("unlink set", lambda m: m.alice.unlink("file"), b"F"),
    _op("unlink set under another's place", lambda m: m.alice.unlink("place"), b"S"),
    _op("rmdir set", lambda m: m.alice.rmdir("empty")),
    _op("rename file set", lambda m: m.alice.rename("file", "new")),
    _op("rename dir set", lambda m: m.alice.rename("tree", "new")),
    _op("rename to a name whose place is used", lambda m: m.alice.rename("shifted", "shifted2")),
    _op("rename over file set", lambda m: m.alice.rename("file", "other"), b"O"),
    _op("rename over shifted", lambda m: m.alice.rename("file", "place"), b"S"),
    _op("rename over dir set", lambda m: m.alice.rename("tree", "empty")),
    _op("rename set noreplace", lambda m: m.alice.rename("tree", "new", RENAME_NOREPLACE)),
    _op("exchange sets", lambda m: m.alice.rename("tree", "file", RENAME_EXCHANGE)),
    _op("dir set into set", lambda m: m.alice.rename("tree", "dir/new")),
    _op("file set into set", lambda m: m.alice.rename("file", "dir/new")),
    _op("file set over file in set", lambda m: m.alice.rename("file", "dir/a"), b"A"),
    _op("file out to the top", lambda m: m.alice.rename("dir/a", "new")),
    _op("file out over a set", lambda m: m.alice.rename("dir/a", "file"), b"F"),
    _op("file out noreplace", lambda m: m.alice.rename("dir/a", "new", RENAME_NOREPLACE)),
    _op("dir out to the top", lambda m: m.alice.rename("dir/sub", "new")),
    _op("dir out over a set", lambda m: m.alice.rename("dir/sub", "empty")),
    _op("link at the top", lambda m: m.alice.link("dir/a", "new")),
    _op("link set into set", lambda m: m.alice.link("file", "dir/new")),
    _op("give an unclaimed set", _given("7.server.CK", 2101)),
    _op("give a set", _given("dir", 2102)),
    _op("give a file set", _given("file", 2102)),
    _op("give a shifted set", _given("place", 2102)),
    _op("mkdir", lambda m: m.alice.mkdir("dir/new")),
    _op("create", lambda m: m.alice.save("dir/new", b"N")),
    _op("mknod", lambda m: m.alice.mknod("dir/new")),
    _op("symlink", lambda m: m.alice.symlink("dir/new", b"t")),
    _op("unlink", lambda m: m.alice.unlink("dir/a"), b"A"),
    _op("rmdir", lambda m: m.alice.rmdir("dir/empty")),
    _op("rename", lambda m: m.alice.rename("dir/a", "dir/new")),
    _op("rename from a temporary name", lambda m: m.alice.rename("dir/b", "dir/new")),
    _op("rename over", lambda m: m.alice.rename("dir/a", "dir/b"), b"B"),
    _op("exchange", lambda m: m.alice.rename("dir/a", "dir/sub", RENAME_EXCHANGE)),
    _op("link", lambda m: m.alice.link("dir/a", "dir/new")),
    _op("append", lambda m: m.alice.append("dir/a", b"+"), b"A"),
    _op("truncate", lambda m: m.alice.setattr("dir/a", Changes(size=0)), b"A"),
    _op("open with O_TRUNC", lambda m: _opened(m, "dir/a", os.O_WRONLY | os.O_TRUNC), b"A"),
    _op("chmod", _chmod),
    _op("utimes", lambda m: m.alice.setattr("dir/a", Changes(atime_ns=1, mtime_ns=1))),
    _op("xattr", _xattr),
    _op("readlink", _readlink),
    _op("list", lambda m: m.alice.list("dir")),
)


async def _opened(mount: Mount, path: str, flags: int) -> None:
    await mount.alice.close(await mount.alice.open(path, flags))


def _eio() -> OSError:
    return OSError(errno.EIO, "on purpose")


def _refused() -> OSError:
    return PermissionError(errno.EPERM, "on purpose")


def _nonsense() -> ValueError:
    return ValueError("on purpose")


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    """A store with something of everything in it, to be copied."""
    store = new_store(file_system)

    async def fill() -> None:
        async with mounted(store) as mount:
            await _prepare(mount)
            mount.check_nothing_held()

    trio.run(fill)
    return store


def _store_fds(store: Path) -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link for link in links if link.startswith(str(store)))


async def _act(mount: Mount, operation: Operation) -> BaseException | None:
    try:
        await operation.act(mount)
    except (OSError, FsError, ValueError, Killed) as error:
        return error
    return None


async def _until_closed(store: Path, expected: list[str]) -> None:
    """Descriptors are closed in threads that nobody waits for."""
    with trio.move_on_after(2):
        while _store_fds(store) != expected:  # noqa: ASYNC110 - the kernel sends no event when a descriptor is closed
            await trio.sleep(0.001)
    assert _store_fds(store) == expected, "a descriptor of the store is left open"


@dataclass(frozen=True)
class Rounds:
    """An operation on copies of one store, with another of its calls failing in each."""

    failing: Failing
    template: Path
    directory: Path
    problems: list[str] = field(default_factory=list)

    def count(self, one: One) -> int:
        """How many calls the operation makes when none fails."""
        self.run(one, _MOST_CALLS, _eio)
        assert self.failing.count < _MOST_CALLS, "the operation never ends"
        return self.failing.count

    def run(self, one: One, at: int, error: Callable[[], BaseException]) -> None:
        what = f"at {at} {error.__name__}{' without noreplace' * self.failing.lacks_noreplace}"
        store = self.directory / what.replace(" ", "-")  # its own path: what one round leaks is not another's
        copied(self.template, store)
        try:
            trio.run(one, store, at, error)
        except (AssertionError, OSError, FsError) as problem:
            self.problems.append(f"{what}: {type(problem).__name__}: {problem}")
        except BaseExceptionGroup as group:
            self.problems.append(f"{what}: {group.exceptions!r}")
        remove(store)


@pytest.fixture
def rounds(failing: Failing, template: Path, directory: Path) -> Rounds:
    return Rounds(failing, template, directory)


def _points(count: int, most: int = _POINTS, first: int = _FIRST) -> list[int]:
    """Which of *count* calls are tried: the *first*, then evenly spaced ones, with the last, *most* in all."""
    if _EVERY or count <= most:
        return list(range(1, count + 1))
    spaced = most - first
    return [*range(1, first + 1), *(first + (count - first) * n // spaced for n in range(1, spaced + 1))]


def test_the_points_tried_are_distinct_and_reach_the_last_call() -> None:
    for count in range(1, 100):
        points = _points(count)
        assert points == sorted(set(points))
        assert points[-1] == count
        assert _EVERY or len(points) == min(count, _POINTS)


@pytest.mark.long_on_nfs
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_after_any_failure_nothing_is_held_and_nothing_is_lost(operation: Operation, rounds: Rounds) -> None:
    failing = rounds.failing

    async def one(store: Path, at: int, error: Callable[[], BaseException]) -> None:
        async with mounted(store) as mount:
            await _until_closed(store, before := _store_fds_of_an_idle_mount(store))
            with failing.armed(at, error):
                await _act(mount, operation)
            where = f"call {at} ({failing.log[-1]}) of {failing.log}"
            await _until_closed(store, before)
            mount.check_nothing_held()
            for name in list(mount.core.following):  # what the mount itself does every few seconds
                await mount.fs.sets.following.follow(name)
            await _check_kept(mount, operation, where)

    errors = (_eio, _refused, _nonsense)
    turn = OPERATIONS.index(operation)  # so that the kinds meet other calls in the next operation
    for at in _points(rounds.count(one)):
        for error in errors if _EVERY else (errors[(turn + at) % 3],):
            rounds.run(one, at, error)
    assert not rounds.problems, "\n".join(rounds.problems)


@pytest.mark.long_on_nfs
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_after_a_death_at_any_call_nothing_is_lost_and_every_name_can_be_used(
    operation: Operation, rounds: Rounds
) -> None:
    failing = rounds.failing

    async def one(store: Path, at: int, error: Callable[[], BaseException]) -> None:
        async with mounted(store) as mount:
            with failing.armed(at, error):
                await _act(mount, operation)
                where = f"call {at} ({failing.log[-1]}) of {failing.log}"
        async with mounted(store, node="b") as after:
            await _check_kept(after, operation, where)
            # As an admin or the user would: do it again. Whatever this answers, nothing is lost by it.
            await _act(after, operation)
            await _check_kept(after, operation, f"done again after {where}")
        await _check_usable(store, where)

    for at in _points(rounds.count(one)):
        rounds.run(one, at, Killed)
    failing.lacks_noreplace = True
    count = rounds.count(one)
    if failing.missed_noreplace:  # to the others it makes no difference
        for at in _points(count, _POINTS // 2, _FIRST // 2):
            rounds.run(one, at, Killed)
    assert not rounds.problems, "\n".join(rounds.problems)


def _store_fds_of_an_idle_mount(store: Path) -> list[str]:
    return sorted([str(store), f"{store}/names", f"{store}/staging"])


async def _check_kept(mount: Mount, operation: Operation, where: str) -> None:
    mount.core.reads_partial = True  # what was half made is to be seen, too
    try:
        seen: dict[str, Seen] = await mount.root.walk()
    except (OSError, FsError) as error:
        raise AssertionError(f"the tree cannot be walked after {where}: {error!r}") from error
    contents = {file.content for file in seen.values()}
    lost = {b"A", b"B", b"X", b"F", b"O", b"S", b"P", b"T", b"I"} - operation.loses - contents
    assert not lost, f"lost {lost} after {where}; there is {sorted(seen)}"
    for path, file in seen.items():
        if (
            file.content
            and file.content not in operation.loses
            and not file.content.startswith((b"N", b"A+"))
        ):
            assert file.state is State.COMPLETE, f"{path} is {file.state} after {where}"
    # A store without RENAME_NOREPLACE (NFS) may keep a set under two names after a death between link and unlink;
    # removing one of them takes only that name (store/setnames.py).
    if "link" not in operation.name and "without noreplace" not in where and "rename" not in operation.name:
        inodes = [file.ino for file in seen.values() if file.content]
        assert len(inodes) == len(set(inodes)) or "out" in operation.name, (
            f"one file under two names after {where}"
        )


async def _check_usable(store: Path, where: str) -> None:
    async with mounted(store, node="c", role=Role.SERVER) as mount:  # where root removes
        names = set(await mount.root.list()) | {
            b"new",
            b"file",
            b"other",
            b"empty",
            b"tree",
            b"place",
            b"dir",
        }
        for name in sorted(names):
            path = name.decode()
            try:
                await mount.root.remove_tree(path)
                await mount.alice.mkdir(path) if not path.endswith(".CK") else await mount.root.mkdir(path)
                await mount.root.rmdir(path)
            except (OSError, FsError) as error:
                raise AssertionError(f"{path} cannot be used after {where}: {error!r}") from error
        assert not await mount.root.list()
        mount.check_nothing_held()
