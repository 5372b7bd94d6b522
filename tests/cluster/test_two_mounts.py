"""Several mounts of one store: what one does the very next call on another sees, and of all who race one wins.

Each test runs on a plain directory too, where the mounts are the same path: the control that shows what is being asked.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import pytest

from tests.posix.places import remove
from tests.support.agents import Agent, race
from tests.support.gluster_cluster import Cluster
from tests.support.mounting import Mount, mounted
from tests.support.payers import until
from tests.support.users import ALICE, BOB, as_user, errno_of_call

pytestmark = pytest.mark.root

T = TypeVar("T")

ALTERNATIONS = 75
"""Calls on one mount, each followed at once by a look from another."""
RACES = 300
"""Rounds of those in which exactly one must win."""
OTHER_RACES = 100
CONTROL = 10
"""Of these the control, which only shows what is asked, makes one in so many."""
GLUSTER = 25
"""So do hosts of a GlusterFS cluster on one computer, where a call takes a hundred times as long."""
PROCESSES_PER_MOUNT = 2


@dataclass(frozen=True)
class Views:
    """One directory as its mounts show it."""

    roots: tuple[str, ...]
    below: str = ""
    """Where in them the test works: at the top, where each entry is a set of its own, or inside a set."""
    one_in: int = 1
    """Of the repetitions that a test is written for."""

    def path(self, mount: int, name: str) -> str:
        """*name* as seen through the mount of that number."""
        return os.path.join(self.roots[mount], self.below, name)

    def count(self, count: int) -> int:
        """How often to do what is to be done *count* times on ckfs."""
        return count // self.one_in

    @property
    def is_top(self) -> bool:
        return not self.below


@pytest.fixture
def plain(root_and_fuse: None, workdir: Path) -> tuple[str, ...]:
    directory = workdir / "plain"
    directory.mkdir()
    directory.chmod(0o1777)
    return (str(directory),) * 3


@pytest.fixture
def ckfs(two_mounts: tuple[Mount, Mount], store: Path, workdir: Path) -> Iterator[tuple[str, ...]]:
    with mounted(store, workdir / "c", node="c") as third:
        yield (*(str(mount.path) for mount in two_mounts), str(third.path))


@pytest.fixture(scope="module")
def three_hosts(gluster: Cluster, module_workdir: Path) -> Iterator[tuple[str, ...]]:
    store = gluster.make_store("--quota", "none")
    with gluster.mounted_on(store, module_workdir, ("host1", "host2", "host3")) as mounts:
        yield tuple(mounts.values())


@pytest.fixture
def gluster_hosts(three_hosts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Empty at the beginning of each test: a cluster takes its time to mount."""
    yield three_hosts
    for name in os.listdir(three_hosts[0]):
        remove(f"{three_hosts[0]}/{name}")


@pytest.fixture
def one_in(request: pytest.FixtureRequest) -> int:
    return {"plain": CONTROL, "gluster_hosts": GLUSTER}.get(request.node.callspec.params["roots"], 1)


@pytest.fixture(params=["top", "set"])
def views(request: pytest.FixtureRequest, roots: tuple[str, ...], one_in: int) -> Views:
    if request.param == "top":
        return Views(roots, one_in=one_in)
    as_user(ALICE, os.mkdir, os.path.join(roots[0], "set"), 0o755)
    return Views(roots, "set", one_in)


@pytest.fixture(params=["plain", "ckfs", pytest.param("gluster_hosts", marks=pytest.mark.cluster)])
def roots(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    """Alice on each of two mounts."""
    with Agent(ALICE) as first, Agent(ALICE) as second:
        yield [first, second]


# --- calls that the agents make -----------------------------------------------------------------------------------------


def write(path: str, data: bytes, flags: int = os.O_CREAT | os.O_EXCL, mode: int = 0o644) -> None:
    """Open for writing with *flags*, write and close."""
    fd = os.open(path, os.O_WRONLY | flags, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(partial(os.read, fd, 1 << 16), b""))
    finally:
        os.close(fd)


def inode(path: str) -> int:
    return os.lstat(path).st_ino


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner_of(path: str) -> int:
    return os.lstat(path).st_uid


def size_of(path: str) -> int:
    return os.lstat(path).st_size


def inodes_listed(path: str) -> dict[str, int]:
    with os.scandir(path) as entries:
        return {entry.name: entry.inode() for entry in entries}


# --- the very next call -------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Who changes and who looks: they change places at every step."""

    views: Views
    agents: list[Agent]
    _turn: Iterator[int] = field(default_factory=lambda: cycle((0, 1)))
    _writer: int = 0

    def turn(self) -> int:
        self._writer = next(self._turn)
        return self._writer

    def change(self, call: Callable[..., object], name: str, *args: object) -> None:
        """``call`` with the path of *name* on the mount whose turn it is."""
        self.agents[self._writer].do(call, self.views.path(self._writer, name), *args)

    def rename(self, old: str, new: str) -> None:
        self.change(os.rename, old, self.views.path(self._writer, new))

    def seen(self, call: Callable[..., T], name: str, *args: object) -> T:
        """What ``call`` tells on the other mount."""
        other = 1 - self._writer
        return self.agents[other].do(call, self.views.path(other, name), *args)

    def absent(self, name: str) -> bool:
        """Whether the other mount answers ENOENT for *name*."""
        return self.seen(_errno_of_stat, name) == errno.ENOENT


def _errno_of_stat(path: str) -> int:
    return errno_of_call(os.lstat, path)


@pytest.fixture
def pair(views: Views, agents: list[Agent]) -> Pair:
    return Pair(views, agents)


def turns(pair: Pair, count: int = ALTERNATIONS) -> Iterator[int]:
    """Numbers of steps, before each of which the two change places."""
    for number in range(pair.views.count(count)):
        pair.turn()
        yield number


def test_what_one_creates_the_other_sees_at_once_though_it_had_looked_before(pair: Pair) -> None:
    for number in turns(pair):
        name = f"f{number}"
        assert pair.absent(name)
        pair.change(write, name, b"content of %d" % number)
        assert pair.seen(size_of, name) == len(b"content of %d" % number)
        assert pair.seen(read, name) == b"content of %d" % number


def test_a_directory_is_seen_and_its_removal_too(pair: Pair) -> None:
    for _ in turns(pair):
        assert pair.absent("d")
        pair.change(os.mkdir, "d", 0o750)
        assert pair.seen(mode_of, "d") == 0o750
        assert "d" in pair.seen(os.listdir, "")
        pair.change(os.rmdir, "d")
        assert pair.absent("d")
        assert "d" not in pair.seen(os.listdir, "")


def test_one_makes_a_directory_and_the_other_fills_it(pair: Pair) -> None:
    for number in turns(pair, ALTERNATIONS // 2):
        name = f"d{number}"
        assert pair.absent(name)
        assert pair.absent(f"{name}/f")
        pair.change(os.mkdir, name)
        pair.seen(write, f"{name}/f", b"x")
        pair.turn()
        assert pair.seen(read, f"{name}/f") == b"x"


def test_what_is_written_and_closed_is_read(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"")
    for number in turns(pair):
        pair.change(write, "f", b"%04d" % number, os.O_APPEND)
        assert pair.seen(size_of, "f") == 4 * (number + 1)
        assert pair.seen(read, "f") == b"".join(b"%04d" % n for n in range(number + 1))


def test_what_is_overwritten_is_read_anew(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"before")
    for number in turns(pair):
        data = b"%d" % number * (number % 7 + 1)
        pair.change(write, "f", data, os.O_TRUNC)
        assert pair.seen(size_of, "f") == len(data)
        assert pair.seen(read, "f") == data


def test_a_truncation_is_seen(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"x" * 10_000)
    for number in turns(pair):
        pair.change(os.truncate, "f", 10_000 - number)
        assert pair.seen(size_of, "f") == 10_000 - number
        assert len(pair.seen(read, "f")) == 10_000 - number


def test_a_rename_is_seen_under_both_names(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "0", b"moves")
    number_of_file = pair.seen(inode, "0")
    for number in turns(pair):
        old, new = str(number), str(number + 1)
        assert pair.absent(new)
        pair.rename(old, new)
        assert pair.seen(read, new) == b"moves"
        assert pair.seen(inode, new) == number_of_file
        assert pair.absent(old)


def test_a_renamed_directory_takes_its_content_along(pair: Pair) -> None:
    pair.turn()
    pair.change(os.mkdir, "0")
    pair.change(write, "0/f", b"moves")
    for number in turns(pair, ALTERNATIONS // 2):
        old, new = str(number), str(number + 1)
        assert pair.seen(read, f"{old}/f") == b"moves"
        assert pair.absent(f"{new}/f")
        pair.rename(old, new)
        assert pair.seen(read, f"{new}/f") == b"moves"
        assert pair.absent(f"{old}/f")


def test_a_file_renamed_over_another_is_read(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"first")
    for number in turns(pair):
        pair.change(write, "f.tmp", b"version %d" % number)
        pair.seen(size_of, "f")
        pair.rename("f.tmp", "f")
        assert pair.seen(read, "f") == b"version %d" % number
        assert pair.absent("f.tmp")


def test_a_removed_file_is_gone_and_can_be_made_again(pair: Pair) -> None:
    for number in turns(pair):
        pair.change(write, "f", b"%d" % number)
        assert pair.seen(read, "f") == b"%d" % number
        pair.change(os.unlink, "f")
        assert pair.absent("f")


def test_what_one_made_the_other_removes(pair: Pair) -> None:
    for _ in turns(pair):
        pair.change(write, "f", b"x")
        pair.seen(os.unlink, "f")
        pair.turn()
        assert pair.absent("f")


def test_a_mode_is_seen(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"x")
    for number, mode in zip(turns(pair), cycle((0o600, 0o640, 0o755, 0o400)), strict=False):
        pair.change(os.chmod, "f", mode)
        assert pair.seen(mode_of, "f") == mode, number


def test_a_mode_that_is_set_while_another_mount_ends_writing_stays(pair: Pair) -> None:
    """close(2) does not wait until a mount has said what the image is worth."""
    for number in turns(pair):
        name = f"f{number}"
        pair.change(write, name, b"x")
        pair.seen(os.chmod, name, 0o600)
        pair.change(os.listdir, "")  # waits for what was closed
        assert pair.seen(mode_of, name) == 0o600, number


def test_who_may_pass_through_a_directory_is_seen(pair: Pair) -> None:
    pair.turn()
    pair.change(os.mkdir, "d", 0o700)
    pair.change(write, "d/f", b"x")
    for number, mode in zip(turns(pair), cycle((0o600, 0o700)), strict=False):
        pair.change(os.chmod, "d", mode)
        assert pair.seen(_errno_of_stat, "d/f") == (errno.EACCES if mode == 0o600 else 0), number


def test_an_attribute_is_seen(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"x")
    for number in turns(pair):
        pair.change(os.setxattr, "f", "user.step", b"%d" % number)
        assert pair.seen(os.getxattr, "f", "user.step") == b"%d" % number
        pair.change(os.removexattr, "f", "user.step")
        assert "user.step" not in pair.seen(os.listxattr, "f")


def test_a_time_is_seen(pair: Pair) -> None:
    pair.turn()
    pair.change(write, "f", b"x")
    for number in turns(pair):
        moment = 1_000_000_000 + number
        pair.change(os.utime, "f", (moment, moment))
        assert pair.seen(_mtime_of, "f") == moment


def _mtime_of(path: str) -> float:
    return os.lstat(path).st_mtime


@pytest.mark.parametrize(
    "make", [partial(write, data=b"x"), partial(os.mkdir, mode=0o755)], ids=["file", "dir"]
)
def test_a_new_owner_is_seen(views: Views, make: Callable[[str], None]) -> None:
    as_user(ALICE, make, views.path(0, "given"))
    with Agent(0) as first, Agent(0) as second:
        pair = Pair(views, [first, second])
        for _, uid in zip(turns(pair, ALTERNATIONS // 3), cycle((BOB, ALICE)), strict=False):
            pair.change(os.chown, "given", uid, uid)
            assert pair.seen(owner_of, "given") == uid


# --- open files ---------------------------------------------------------------------------------------------------------


def test_an_open_file_outlives_its_removal_elsewhere(views: Views, agents: list[Agent]) -> None:
    reader, remover = agents
    for number in range(views.count(ALTERNATIONS // 3)):
        name = f"f{number}"
        data = b"still here %d" % number
        reader.do(write, views.path(0, name), data)
        fd = reader.do(os.open, views.path(0, name), os.O_RDWR)
        remover.do(os.unlink, views.path(1, name))
        assert reader.do(os.pread, fd, 100, 0) == data
        assert reader.do(os.pwrite, fd, b"STILL", 0) == 5
        assert reader.do(os.pread, fd, 100, 0) == b"STILL" + data[5:]
        assert reader.do(_errno_of_stat, views.path(0, name)) == errno.ENOENT
        reader.do(os.close, fd)


def test_an_open_file_outlives_its_whole_set(
    roots: tuple[str, ...], agents: list[Agent], one_in: int
) -> None:
    reader, remover = agents
    for number in range(ALTERNATIONS // 3 // one_in):
        set_name = f"set{number}"
        reader.do(os.mkdir, os.path.join(roots[0], set_name))
        reader.do(write, os.path.join(roots[0], set_name, "f"), b"still here")
        fd = reader.do(os.open, os.path.join(roots[0], set_name, "f"), os.O_RDONLY)
        remover.do(os.unlink, os.path.join(roots[1], set_name, "f"))
        remover.do(os.rmdir, os.path.join(roots[1], set_name))
        assert reader.do(os.pread, fd, 100, 0) == b"still here"
        assert reader.do(_errno_of_stat, os.path.join(roots[0], set_name)) == errno.ENOENT
        reader.do(os.close, fd)


def test_an_open_file_stays_itself_when_another_takes_its_name_elsewhere(
    views: Views, agents: list[Agent]
) -> None:
    reader, writer = agents
    reader.do(write, views.path(0, "f"), b"version 0")
    for number in range(views.count(ALTERNATIONS // 3)):
        fd = reader.do(os.open, views.path(0, "f"), os.O_RDONLY)
        writer.do(write, views.path(1, "f.new"), b"version %d" % (number + 1))
        writer.do(os.rename, views.path(1, "f.new"), views.path(1, "f"))
        assert reader.do(os.pread, fd, 100, 0) == b"version %d" % number
        assert reader.do(read, views.path(0, "f")) == b"version %d" % (number + 1)
        reader.do(os.close, fd)


def test_a_working_directory_follows_its_rename_elsewhere(
    roots: tuple[str, ...], agents: list[Agent]
) -> None:
    inside, outside = agents
    inside.do(os.mkdir, os.path.join(roots[0], "set0"))
    inside.do(os.mkdir, os.path.join(roots[0], "set0/d"))
    inside.do(os.chdir, os.path.join(roots[0], "set0/d"))
    outside.do(os.rename, os.path.join(roots[1], "set0/d"), os.path.join(roots[1], "set0/e"))
    inside.do(write, "f", b"found by the directory")
    assert outside.do(read, os.path.join(roots[1], "set0/e/f")) == b"found by the directory"


def test_who_stands_in_a_directory_that_is_closed_elsewhere_does_not_go_on_for_long(
    roots: tuple[str, ...], agents: list[Agent]
) -> None:
    inside, outside = agents
    inside.do(os.mkdir, os.path.join(roots[0], "set0"), 0o700)
    inside.do(write, os.path.join(roots[0], "set0/f"), b"x")
    inside.do(os.chdir, os.path.join(roots[0], "set0"))

    def answers(number: int) -> bool:
        return inside.do(_errno_of_stat, "f") == number

    for mode, number in [(0o600, errno.EACCES), (0o700, 0)]:
        outside.do(os.chmod, os.path.join(roots[1], "set0"), mode)
        until(partial(answers, number), lambda: "it is as it was")


# --- races --------------------------------------------------------------------------------------------------------------


def _race(
    views: Views, uids: tuple[int, ...], call: Callable[[str, int, int], int], rounds: int
) -> list[list[int]]:
    """What two processes on each mount get from ``call(root, racer, round)``; the uids take turns."""
    count = len(views.roots) * PROCESSES_PER_MOUNT
    chosen = islice(cycle(uids), count)
    racers = [
        (uid, _counting(partial(call, views.path(number % len(views.roots), ""), number)))
        for number, uid in enumerate(chosen)
    ]
    return race(racers, rounds)


def _counting(call: Callable[[int], int]) -> Callable[[], int]:
    rounds = itertools.count()
    return lambda: call(next(rounds))


def _mkdir(root: str, racer: int, number: int) -> int:
    return errno_of_call(os.mkdir, f"{root}/r{number}", 0o700)


def _create(root: str, racer: int, number: int) -> int:
    return errno_of_call(partial(write, data=b"%d" % racer, mode=0o600), f"{root}/r{number}")


def _mkdir_or_create(root: str, racer: int, number: int) -> int:
    return (_mkdir, _create)[racer // 2 % 2](root, racer, number)


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("call", [_mkdir, _create, _mkdir_or_create])
def test_exactly_one_of_all_who_take_a_name_wins(views: Views, call: Callable[[str, int, int], int]) -> None:
    uids = (ALICE, BOB) if views.is_top else (ALICE,)
    rounds = views.count(RACES)
    outcomes = _race(views, uids, call, rounds)
    for number, results in enumerate(outcomes):
        assert sorted(results) == [0, *[errno.EEXIST] * (len(results) - 1)], f"round {number}: {results}"
    for number, results in enumerate(outcomes):
        winner = results.index(0)
        seen = {_identity(views.path(mount, f"r{number}")) for mount in range(len(views.roots))}
        assert len(seen) == 1, f"round {number}: {seen}"
        ((kind, uid, _),) = seen
        assert uid == uids[winner % len(uids)], f"round {number}"
        if kind == stat.S_IFREG:
            assert read(views.path(0, f"r{number}")) == b"%d" % winner
    wanted = sorted(f"r{number}" for number in range(rounds))
    for mount in range(len(views.roots)):
        assert [n for n in sorted(os.listdir(views.path(mount, ""))) if n != "set"] == wanted


def _identity(path: str) -> tuple[int, int, int]:
    st = os.lstat(path)
    return stat.S_IFMT(st.st_mode), st.st_uid, st.st_ino


def _make_each(make: Callable[[str], None], root: str, count: int) -> None:
    for number in range(count):
        make(f"{root}/r{number}")


def _unlink(root: str, racer: int, number: int) -> int:
    return errno_of_call(os.unlink, f"{root}/r{number}")


def _rmdir(root: str, racer: int, number: int) -> int:
    return errno_of_call(os.rmdir, f"{root}/r{number}")


def _rename_away(root: str, racer: int, number: int) -> int:
    return errno_of_call(os.rename, f"{root}/r{number}", f"{root}/taken{number}-{racer}")


@pytest.mark.long_on_cluster
@pytest.mark.parametrize(
    ("make", "call"),
    [
        (partial(write, data=b"x"), _unlink),
        (partial(os.mkdir, mode=0o755), _rmdir),
        (partial(write, data=b"x"), _rename_away),
        (partial(os.mkdir, mode=0o755), _rename_away),
    ],
    ids=["unlink", "rmdir", "rename-file", "rename-dir"],
)
def test_exactly_one_of_all_who_take_a_file_away_wins(
    views: Views, make: Callable[[str], None], call: Callable[[str, int, int], int]
) -> None:
    rounds = views.count(RACES)
    as_user(ALICE, _make_each, make, views.path(0, ""), rounds)
    outcomes = _race(views, (ALICE,), call, rounds)
    for number, results in enumerate(outcomes):
        assert sorted(results) == [0, *[errno.ENOENT] * (len(results) - 1)], f"round {number}: {results}"
    renamed = {f"taken{number}-{results.index(0)}" for number, results in enumerate(outcomes)}
    for mount in range(len(views.roots)):
        assert set(os.listdir(views.path(mount, ""))) - {"set"} == (
            renamed if call is _rename_away else set()
        )


def _rename_over_or_unlink(root: str, racer: int, number: int) -> int:
    """One racer in three removes the name that the others put their own file under."""
    if racer % 3 == 2:
        return errno_of_call(os.unlink, f"{root}/target")
    source = f"{root}/source-{racer}-{number}"
    write(source, b"racer %d round %d " % (racer, number) * 100)
    return errno_of_call(os.rename, source, f"{root}/target")


@pytest.mark.long_on_cluster
def test_racing_renames_over_a_name_all_succeed_and_leave_one_whole_file(views: Views) -> None:
    as_user(ALICE, write, views.path(0, "target"), b"first")
    rounds = views.count(OTHER_RACES)
    outcomes = _race(views, (ALICE,), _rename_over_or_unlink, rounds)
    for number, results in enumerate(outcomes):
        renames = [result for racer, result in enumerate(results) if racer % 3 != 2]
        unlinks = [result for racer, result in enumerate(results) if racer % 3 == 2]
        assert set(renames) == {0}, f"round {number}: {results}"
        assert set(unlinks) <= {0, errno.ENOENT}, f"round {number}: {results}"
    allowed = {b"racer %d round %d " % (racer, rounds - 1) * 100 for racer in range(6) if racer % 3 != 2}
    content = set()
    for mount in range(len(views.roots)):
        assert set(os.listdir(views.path(mount, ""))) <= {"target", "set"}
        with contextlib.suppress(FileNotFoundError):
            content.add(read(views.path(mount, "target")))
    assert len(content) <= 1
    assert content <= allowed


# --- inode numbers ------------------------------------------------------------------------------------------------------


def _all_inodes(root: str) -> dict[str, int]:
    found = {".": inode(root)}
    for directory, subdirectories, files in os.walk(root):
        listed = inodes_listed(directory)
        for name in (*subdirectories, *files):
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = inode(path)
            assert listed[name] == inode(path), f"readdir tells another inode number of {path}"
    return found


def _fill(root: str) -> None:
    for name in ("set", "other", "set/d", "set/d/e"):
        os.mkdir(f"{root}/{name}")
    for name in ("file", "set/f", "set/d/f", "set/d/e/f", "other/f"):
        write(f"{root}/{name}", name.encode())
    os.symlink("f", f"{root}/set/l")


def test_inode_numbers_are_distinct_and_the_same_on_every_mount(roots: tuple[str, ...]) -> None:
    as_user(ALICE, _fill, roots[0])
    first, *others = (as_user(ALICE, _all_inodes, root) for root in roots)
    assert len(set(first.values())) == len(first)
    assert all(other == first for other in others)


def test_inode_numbers_stay_through_rename_truncation_and_chown(roots: tuple[str, ...]) -> None:
    as_user(ALICE, _fill, roots[0])
    before = _all_inodes(roots[0])
    as_user(ALICE, os.rename, f"{roots[1]}/set/f", f"{roots[1]}/set/d/moved")
    as_user(ALICE, os.rename, f"{roots[1]}/other", f"{roots[1]}/renamed")
    as_user(ALICE, write, f"{roots[1]}/set/d/f", b"new content", os.O_TRUNC)
    os.chown(f"{roots[1]}/renamed", BOB, BOB)
    for root in roots:
        now = _all_inodes(root)
        assert now["set/d/moved"] == before["set/f"]
        assert now["renamed"] == before["other"]
        assert now["renamed/f"] == before["other/f"]
        assert now["set/d/f"] == before["set/d/f"]


def test_inode_numbers_stay_across_a_remount(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", node="a") as mount:
        as_user(ALICE, _fill, str(mount.path))
        before = as_user(ALICE, _all_inodes, str(mount.path))
    with mounted(store, workdir / "elsewhere", node="b") as mount:
        assert as_user(ALICE, _all_inodes, str(mount.path)) == before
