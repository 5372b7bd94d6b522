"""Whatever the store answers, callers get an errno that they can understand, and the mount goes on (design.md §7).

Each operation of the store fails with EIO and two more errnos, in turns; with ``CKFS_EVERY=1`` in the environment with all.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckfs.errors import errno_of
from tests.support.agents import Agent
from tests.support.faultfs import FaultStore, fault_store
from tests.support.images import read_once, write_once
from tests.support.mounting import Mount, make_store, mounted
from tests.support.users import ALICE, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

ERRNOS = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ESTALE,
    errno.EACCES,
    errno.ENOSYS,
    errno.ENOTCONN,
    errno.EINTR,
)
NEVER = (errno.ENOSYS, errno.ENOTCONN, errno.EINTR)
"""What callers must not see: see ckfs.errors."""

STORE_OPS = (
    "lookup",
    "getattr",
    "setattr",
    "mkdir",
    "create",
    "open",
    "read",
    "write",
    "fsync",
    "fsyncdir",
    "flush",
    "rename",
    "link",
    "symlink",
    "unlink",
    "rmdir",
    "opendir",
    "readdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
)
PASSES_ENOSYS = frozenset(
    {
        "lookup",
        "getattr",
        "setattr",
        "mkdir",
        "read",
        "write",
        "rename",
        "unlink",
        "rmdir",
        "readdir",
        "statfs",
    }
)
"""For the others the store's kernel remembers ENOSYS, and answers something else for the rest of its life."""

MAY_LOG = (
    r"WARNING",
    r"ERROR",
    r"stay at .*: Input/output error",
    r"is looked after later: ",
    r"do not hear of this one now: ",
)
"""A store that fails may be complained about, in words: a traceback is never expected."""


# --- every call on the mount, as an agent makes it ----------------------------------------------------------------------


def synced(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def synced_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def prepare(top: str, name: str) -> str:
    """A set *name* in which each of CALLS finds what it works on; its path."""
    path = f"{top}/{name}"
    os.mkdir(path)
    for directory in ("emptied", "listed"):
        os.mkdir(f"{path}/{directory}")
    for file in (
        "read",
        "removed",
        "renamed",
        "target",
        "linked",
        "changed",
        "truncated",
        "tagged",
        "kept",
        "synced",
    ):
        write_once(f"{path}/{file}")
    os.truncate(
        f"{path}/removed", 0
    )  # so that its removal is an unlink in the store, and no move to the trash
    os.setxattr(f"{path}/tagged", "user.mine", b"value")
    os.symlink("kept", f"{path}/soft")
    return path


CALLS: dict[str, Callable[[str], object]] = {
    "mkdir a set": lambda at: os.mkdir(f"{at}-other"),
    "create a set": lambda at: write_once(f"{at}-file"),
    "mkdir": lambda at: os.mkdir(f"{at}/directory"),
    "create": lambda at: write_once(f"{at}/file"),
    "read": lambda at: read_once(f"{at}/read"),
    "append": lambda at: write_once(f"{at}/kept", b"", os.O_APPEND),
    "overwrite": lambda at: write_once(f"{at}/changed", b"other", os.O_TRUNC),
    "fsync": lambda at: synced(f"{at}/synced"),
    "fsync a directory": lambda at: synced_directory(at),
    "truncate": lambda at: os.truncate(f"{at}/truncated", 2),
    "lstat": lambda at: os.lstat(f"{at}/kept"),
    "lstat of nothing": lambda at: os.lstat(f"{at}/nothing"),
    "readdir": lambda at: os.listdir(f"{at}/listed"),
    "readdir of the top": lambda at: os.listdir(os.path.dirname(at)),
    "rename": lambda at: os.rename(f"{at}/renamed", f"{at}/new-name"),
    "rename over": lambda at: os.rename(f"{at}/synced", f"{at}/target"),
    "rename a set": lambda at: os.rename(f"{at}-other", f"{at}-another"),
    "link": lambda at: os.link(f"{at}/linked", f"{at}/link"),
    "symlink": lambda at: os.symlink("kept", f"{at}/soft-too"),
    "readlink": lambda at: os.readlink(f"{at}/soft"),
    "mkfifo": lambda at: os.mkfifo(f"{at}/fifo"),
    "unlink": lambda at: os.unlink(f"{at}/removed"),
    "rmdir": lambda at: os.rmdir(f"{at}/emptied"),
    "chmod": lambda at: os.chmod(f"{at}/changed", 0o640),
    "utime": lambda at: os.utime(f"{at}/changed", (1, 1)),
    "setxattr": lambda at: os.setxattr(f"{at}/changed", "user.mine", b"value"),
    "getxattr": lambda at: os.getxattr(f"{at}/tagged", "user.mine"),
    "listxattr": lambda at: os.listxattr(f"{at}/tagged"),
    "removexattr": lambda at: os.removexattr(f"{at}/tagged", "user.mine"),
    "statfs": os.statvfs,
}


def errno_of_named(name: str, at: str) -> int:
    return errno_of_call(CALLS[name], at)


def all_errnos(at: str) -> dict[str, int]:
    """What each call on the set *at* answers."""
    return {name: errno_of_named(name, at) for name in CALLS}


def clear_away(at: str) -> None:
    """Remove the set and what CALLS made beside it: hundreds of sets would slow the later rows down."""
    for path in (at, f"{at}-other", f"{at}-another"):
        shutil.rmtree(path, ignore_errors=True)
    errno_of_call(os.unlink, f"{at}-file")


def works(top: str, name: str) -> None:
    """A new set can be made, filled, read and removed."""
    path = f"{top}/{name}"
    os.mkdir(path)
    write_once(f"{path}/file")
    assert os.listdir(path) == ["file"]
    assert read_once(f"{path}/file") == b"image"
    os.unlink(f"{path}/file")
    os.rmdir(path)


# --- fixtures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faulty:
    """A mount over a fault store."""

    mount: Mount
    store: FaultStore

    @property
    def top(self) -> str:
        return str(self.mount.path)


@pytest.fixture(scope="module")
def shared(root_and_fuse: None, module_workdir: Path) -> Iterator[Faulty]:
    """One for the whole module, which is part of what it shows: no fault leaves anything behind."""
    with fault_store(module_workdir) as store:
        directory = make_store(store.path)
        with mounted(directory, module_workdir / "mount", node="a", may_log=MAY_LOG) as mount:
            try:
                yield Faulty(mount, store)
            finally:
                store.clear()


@pytest.fixture
def faulty(shared: Faulty) -> Iterator[Faulty]:
    yield shared
    shared.store.clear()


@pytest.fixture
def alice() -> Iterator[Agent]:
    with Agent(ALICE) as agent:
        yield agent


# --- the table ----------------------------------------------------------------------------------------------------------


def _numbers(op: str) -> list[int]:
    """The errnos to try for *op*: EIO, one that callers may see, and one that they must not."""
    fit = [number for number in ERRNOS if number != errno.ENOSYS or op in PASSES_ENOSYS]
    if os.environ.get("CKFS_EVERY") == "1":
        return fit
    turn = STORE_OPS.index(op)
    shown = [number for number in fit if number not in (errno.EIO, *NEVER)]
    hidden = [number for number in fit if number in NEVER]
    return [errno.EIO, shown[turn % len(shown)], hidden[turn % len(hidden)]]


ROWS = [
    pytest.param(op, number, id=f"{op}-{errno.errorcode[number]}")
    for op in STORE_OPS
    for number in _numbers(op)
]


@pytest.mark.parametrize(("op", "number"), ROWS)
def test_every_call_gets_an_errno_and_the_mount_goes_on(
    faulty: Faulty, alice: Agent, op: str, number: int
) -> None:
    name = f"{op}-{number}"
    at = alice.do(prepare, faulty.top, name)
    # Python repeats many calls after EINTR, for ever if need be, as C programs do.
    faulty.store.fail(op, number, 1 if number == errno.EINTR else None)
    answers = alice.do(all_errnos, at)
    faulty.store.clear()

    unfit = {call: answer for call, answer in answers.items() if answer in NEVER or not 0 <= answer <= 511}
    assert unfit == {}
    assert faulty.mount.process.poll() is None
    alice.do(works, faulty.top, f"{name}-after")
    alice.do(clear_away, at)
    assert "Traceback" not in faulty.mount.log()


@pytest.mark.parametrize(
    ("op", "call"), [("mkdir", "mkdir"), ("unlink", "unlink"), ("rmdir", "rmdir"), ("write", "create")]
)
def test_the_stores_errno_is_the_callers(faulty: Faulty, alice: Agent, op: str, call: str) -> None:
    at = alice.do(prepare, faulty.top, f"exact-{op}")
    for number in ERRNOS:  # EINTR, after which the call may succeed, is the last
        faulty.store.fail(op, number, 1 if number == errno.EINTR else None)
        answer = alice.do(errno_of_named, call, at)
        expected = {errno_of(OSError(number, "injected"))} | ({0} if number == errno.EINTR else set())
        assert answer in expected, errno.errorcode[number]
        faulty.store.clear()
    alice.do(clear_away, at)


@pytest.mark.parametrize("number", [512, 524, 530, 0, -5, 1 << 31])
def test_what_fuse_cannot_even_carry_becomes_eio(number: int) -> None:
    """NFS answers 524, ENOTSUPP, now and then; a fault store on FUSE cannot, so that only the mapping is asked."""
    assert errno_of(OSError(number, "from the kernel")) == errno.EIO


# --- writes -------------------------------------------------------------------------------------------------------------


def write_until_it_fails(path: str) -> tuple[int, int, int]:
    """The errno of the first write(2) that fails (0 if none of 64 does), that of fsync, and that of close."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    written = next(filter(None, (errno_of_call(os.write, fd, b"x" * 65_536) for _ in range(64))), 0)
    return written, errno_of_call(os.fsync, fd), errno_of_call(os.close, fd)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_full_store_is_told_by_write_itself(faulty: Faulty, alice: Agent, number: int) -> None:
    at = alice.do(prepare, faulty.top, f"full-{number}")
    faulty.store.fail("write", number)
    written, _, closed = alice.do(write_until_it_fails, f"{at}/full")
    assert written == number
    assert closed == 0  # by then the caller knows
    faulty.store.clear()
    alice.do(os.unlink, f"{at}/full")
    alice.do(write_once, f"{at}/full")
    assert alice.do(read_once, f"{at}/full") == b"image"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_an_fsync_that_fails_is_told(faulty: Faulty, alice: Agent, number: int) -> None:
    at = alice.do(prepare, faulty.top, f"unsynced-{number}")
    faulty.store.fail("fsync", number)
    assert alice.do(errno_of_named, "fsync", at) == number


# --- a store that goes away ---------------------------------------------------------------------------------------------


def open_for_writing(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)


MAY_SUCCEED = frozenset({"statfs", "readdir of the top", "rename a set"})
"""What needs nothing of the store, or nothing that is there."""


def _check_gone(agent: Agent, at: str, fd: int) -> None:
    answers = agent.do(all_errnos, at)
    for call, answer in answers.items():
        assert answer not in NEVER, call
        assert 0 <= answer <= 511, call
        assert answer or call in MAY_SUCCEED, f"{call} succeeded without a store"
    agent.do(errno_of_call, os.write, fd, b"more")
    agent.do(errno_of_call, os.fsync, fd)
    assert agent.do(errno_of_call, os.fstat, fd) not in NEVER
    agent.do(errno_of_call, os.close, fd)


def test_a_store_that_dies_gives_errnos_and_the_mount_ends_cleanly(workdir: Path, alice: Agent) -> None:
    with fault_store(workdir) as store:
        directory = make_store(store.path)
        with mounted(directory, workdir / "mount", node="a", may_log=MAY_LOG) as mount:
            at = alice.do(prepare, str(mount.path), "set")
            fd = alice.do(open_for_writing, f"{at}/open")
            store.die()
            _check_gone(alice, at, fd)
            assert mount.process.poll() is None
            mount.umount()


def test_a_removed_store_gives_errnos_and_the_mount_ends_cleanly(workdir: Path, alice: Agent) -> None:
    store = make_store(workdir)
    with mounted(store, workdir / "mount", node="a", may_log=MAY_LOG) as mount:
        at = alice.do(prepare, str(mount.path), "set")
        fd = alice.do(open_for_writing, f"{at}/open")
        shutil.rmtree(store)
        _check_gone(alice, at, fd)
        assert mount.process.poll() is None
        mount.umount()
