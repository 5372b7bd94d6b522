"""No call hangs: a store that does not answer is answered for, in bounded time, and nothing is lost by it (design.md §5)."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.faultfs import FaultStore, fault_store
from tests.support.images import read_once, write_once
from tests.support.mounting import Mount, is_mounted, make_store, mounted
from tests.support.users import ALICE, BOB, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

OP_TIMEOUT = 4.0
IO_TIMEOUT = 9.0
MARGIN = 3.5
"""Seconds that a loaded machine may take longer; less than OP_TIMEOUT, so that two time-outs in a row do not fit."""
AT_ONCE = 2.5
RECOVERY = 20.0
"""Seconds within which a store that answers again is found to."""
CALLERS = 50

OPTIONS = (f"op_timeout={OP_TIMEOUT:g}", f"io_timeout={IO_TIMEOUT:g}")
MAY_LOG = (r"\b[Ss]tore\b", r"\btoo late\b", r"\bis partial\b")
"""That the store is down and up again is worth a warning, and what was lost by that; a traceback never is."""

Timed = tuple[int, float]
"""An errno, 0 for success, and the seconds that it took."""


@pytest.fixture
def faulty(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        yield running


@pytest.fixture
def mount(faulty: FaultStore, workdir: Path) -> Iterator[Mount]:
    """A store on the fault store, mounted with short time limits; whatever hangs at the end is released first."""
    store = make_store(faulty.path)
    with mounted(store, workdir / "mount", node="a", options=OPTIONS, may_log=MAY_LOG) as running:
        try:
            yield running
        finally:
            faulty.clear()
            faulty.release()


@pytest.fixture
def alice() -> Iterator[Agent]:
    with Agent(ALICE) as agent:
        yield agent


@pytest.fixture
def bob() -> Iterator[Agent]:
    with Agent(BOB) as agent:
        yield agent


@pytest.fixture(params=["top", "set"])
def directory(request: pytest.FixtureRequest, mount: Mount, alice: Agent) -> str:
    """Where directories are made: at the top, where each is a set, or inside a set."""
    if request.param == "top":
        return str(mount.path)
    alice.do(os.mkdir, str(mount.path / "set"))
    return str(mount.path / "set")


# --- calls that the agents make -----------------------------------------------------------------------------------------


def timed(call: Callable[..., object], *args: object) -> Timed:
    began = time.monotonic()
    number = errno_of_call(call, *args)
    return number, time.monotonic() - began


def use_directory(path: str) -> None:
    """Make it if it is not there, and a file in it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    write_once(f"{path}/file")
    assert os.listdir(path) == ["file"]


# --- waiting with a deadline --------------------------------------------------------------------------------------------


def serves_again(agent: Agent, path: str) -> None:
    """Wait until *path* can be made."""
    until(lambda: agent.do(timed, os.mkdir, path)[0] in {0, errno.EEXIST}, f"mkdir {path} still fails")


def until(done: Callable[[], bool], otherwise: str, within: float = RECOVERY) -> None:
    deadline = time.monotonic() + within
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


# --- metadata -----------------------------------------------------------------------------------------------------------


def test_fifty_makers_in_one_directory_wait_for_one_timeout_together(
    faulty: FaultStore, directory: str, alice: Agent
) -> None:
    asked = [f"d{number}" for number in range(CALLERS)]
    faulty.hang("mkdir")
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Agent(ALICE)) for _ in asked]
        began = time.monotonic()
        for caller, name in zip(callers, asked, strict=True):
            caller.begin(timed, os.mkdir, f"{directory}/{name}")
        results: list[Timed] = [caller.result(CALLERS * (OP_TIMEOUT + MARGIN)) for caller in callers]
        took = time.monotonic() - began

    assert {number for number, _ in results} == {errno.ETIMEDOUT}
    # Fifty processes of a loaded machine take their time to begin; each waiting for itself would be fifty times op_timeout.
    assert took < 3 * OP_TIMEOUT, f"fifty callers took {took:.1f} s together"

    faulty.release()
    serves_again(alice, f"{directory}/later")
    assert set(alice.do(os.listdir, directory)) - {"set"} <= {*asked, "later"}


def test_after_many_timeouts_every_name_can_be_used(faulty: FaultStore, directory: str, alice: Agent) -> None:
    asked = [f"d{number}" for number in range(10)]
    faulty.hang("mkdir")
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Agent(ALICE)) for _ in asked]
        for caller, name in zip(callers, asked, strict=True):
            caller.begin(timed, os.mkdir, f"{directory}/{name}")
        for caller in callers:
            caller.result()
    faulty.release()
    serves_again(alice, f"{directory}/later")
    for name in asked:
        path = f"{directory}/{name}"
        until(lambda path=path: alice.do(timed, use_directory, path)[0] == 0, f"{path} cannot be used")  # type: ignore[misc]  # mypy cannot infer the lambda's default
    assert set(alice.do(os.listdir, directory)) == {*asked, "later"}


def test_a_directory_that_is_made_too_late_is_there_or_not(
    faulty: FaultStore, directory: str, alice: Agent
) -> None:
    path = f"{directory}/late"
    faulty.hang("mkdir")
    number, took = alice.do(timed, os.mkdir, path)
    assert number == errno.ETIMEDOUT
    assert OP_TIMEOUT - 0.1 <= took < OP_TIMEOUT + MARGIN

    faulty.release()
    until(lambda: alice.do(timed, os.lstat, path)[0] in {0, errno.ENOENT}, "lstat still fails")
    until(lambda: alice.do(timed, os.mkdir, path)[0] in {0, errno.EEXIST}, "mkdir still fails")
    until(lambda: alice.do(timed, use_directory, path)[0] == 0, "the directory cannot be used")
    assert alice.do(read_once, f"{path}/file") == b"image"
    assert alice.do(os.listdir, directory) == ["late"]
    alice.do(os.unlink, f"{path}/file")
    alice.do(os.rmdir, path)
    assert alice.do(os.listdir, directory) == []


def test_taking_back_a_late_directory_never_takes_a_later_one(
    faulty: FaultStore, directory: str, alice: Agent
) -> None:
    path = f"{directory}/late"
    faulty.hang("mkdir")
    assert alice.do(timed, os.mkdir, path)[0] == errno.ETIMEDOUT
    faulty.release()
    made = False
    watched_until = time.monotonic() + 2.0
    while time.monotonic() < watched_until:
        if made:
            assert _is_there(alice, path), "a directory whose mkdir had succeeded is gone"
        else:
            number, _ = alice.do(timed, os.mkdir, path)
            assert number in {0, errno.EEXIST, errno.ETIMEDOUT}
            made = number == 0
    until(lambda: alice.do(timed, use_directory, path)[0] == 0, "the directory cannot be used")


def _is_there(agent: Agent, path: str) -> bool:
    return agent.do(timed, os.lstat, path)[0] == 0


@pytest.mark.parametrize("op", ["create", "unlink", "rename", "rmdir", "setxattr"])
def test_every_change_that_hangs_ends_in_time(
    faulty: FaultStore, mount: Mount, alice: Agent, op: str
) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    alice.do(os.mkdir, f"{top}/set/directory")
    alice.do(write_once, f"{top}/set/file")
    faulty.hang(op)
    calls: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
        "create": (write_once, (f"{top}/set/new",)),
        "unlink": (os.unlink, (f"{top}/set/file",)),
        "rename": (os.rename, (f"{top}/set/file", f"{top}/set/renamed")),
        "rmdir": (os.rmdir, (f"{top}/set/directory",)),
        "setxattr": (os.setxattr, (f"{top}/set/file", "user.mine", b"value")),
    }
    call, args = calls[op]
    number, took = alice.do(timed, call, *args)
    # A call may do without this operation of the store, or give it up as an answer of its own; it never waits for ever.
    assert number in {0, errno.ETIMEDOUT}
    assert took < OP_TIMEOUT + MARGIN
    faulty.release()
    serves_again(alice, f"{top}/set/later")


@pytest.mark.parametrize("op", ["lookup", "getattr", "readdir", "getxattr", "opendir", "open"])
def test_every_look_that_hangs_ends_in_time(faulty: FaultStore, mount: Mount, alice: Agent, op: str) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    alice.do(write_once, f"{top}/set/file")
    faulty.hang(op)
    took = 0.0
    for call, path in (
        (os.lstat, "set/file"),
        (os.listdir, "set"),
        (read_once, "set/file"),
        (os.listdir, ""),
    ):
        number, seconds = alice.do(timed, call, f"{top}/{path}")
        assert number in {0, errno.ETIMEDOUT}
        assert seconds < OP_TIMEOUT + MARGIN
        took += seconds
    faulty.release()
    until(lambda: alice.do(timed, read_once, f"{top}/set/file")[0] == 0, "read still fails")
    assert alice.do(read_once, f"{top}/set/file") == b"image"


# --- while the store is down --------------------------------------------------------------------------------------------


def test_others_are_answered_at_once_while_the_store_is_down(
    faulty: FaultStore, mount: Mount, alice: Agent, bob: Agent
) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/alices")
    bob.do(os.mkdir, f"{top}/bobs")
    for name in ("one", "two"):
        bob.do(write_once, f"{top}/bobs/{name}")
    faulty.hang("*")
    number, took = alice.do(timed, os.mkdir, f"{top}/alices/d")
    assert number == errno.ETIMEDOUT
    assert took < OP_TIMEOUT + MARGIN

    for call, path in (
        (os.lstat, "one"),
        (os.unlink, "one"),
        (read_once, "two"),
        (os.listdir, ""),
        (os.mkdir, "d"),
    ):
        number, took = bob.do(timed, call, f"{top}/bobs/{path}")
        assert number == errno.ETIMEDOUT, call
        assert took < AT_ONCE, f"{call} took {took:.1f} s"

    faulty.release()
    serves_again(bob, f"{top}/bobs/later")
    assert bob.do(read_once, f"{top}/bobs/two") == b"image"


def test_a_file_that_hangs_holds_no_other_set_up(
    faulty: FaultStore, mount: Mount, alice: Agent, bob: Agent
) -> None:
    """Before the time-out, the store counts as up: only the call that hangs waits."""
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/alices")
    bob.do(os.mkdir, f"{top}/bobs")
    faulty.hang("write", path="held")
    alice.begin(timed, write_once, f"{top}/alices/held")
    faulty.hanging("write")
    number, took = bob.do(timed, use_directory, f"{top}/bobs/d")
    assert number == 0
    assert took < AT_ONCE
    faulty.release()
    assert alice.result()[0] == 0
    assert alice.do(read_once, f"{top}/alices/held") == b"image"


@pytest.mark.parametrize("op", ["mkdir", "rmdir"])
def test_a_change_at_the_top_that_hangs_holds_up_no_other_users_sets(
    faulty: FaultStore, mount: Mount, alice: Agent, bob: Agent, op: str
) -> None:
    """Until its time-out the kernel itself holds the mount's root; afterwards only what the store holds counts."""
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/alices")
    bob.do(os.mkdir, f"{top}/bobs")
    faulty.hang(op, path=f"users/{ALICE}/")
    hangs = {"mkdir": (os.mkdir, f"{top}/more"), "rmdir": (os.rmdir, f"{top}/alices")}
    assert alice.do(timed, *hangs[op])[0] == errno.ETIMEDOUT

    serves_again(bob, f"{top}/more of bobs")  # as soon as the store has answered a probe
    for call, *args in (
        (os.mkdir, f"{top}/third"),
        (os.rename, f"{top}/third", f"{top}/renamed"),
        (os.rmdir, f"{top}/renamed"),
        (use_directory, f"{top}/bobs"),
    ):
        number, took = bob.do(timed, call, *args)
        assert number == 0, call
        assert took < AT_ONCE, f"{call} took {took:.1f} s"
    for name in ("one", "two"):  # her own lie in the directory that is held
        number, took = alice.do(timed, os.mkdir, f"{top}/{name}")
        assert number == errno.ETIMEDOUT
        assert took < AT_ONCE

    faulty.release()
    serves_again(alice, f"{top}/later")


# --- data ---------------------------------------------------------------------------------------------------------------


def open_written(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"image")
    return fd


def test_an_fsync_may_take_longer_than_a_metadata_call(
    faulty: FaultStore, mount: Mount, alice: Agent
) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    fd = alice.do(open_written, f"{top}/set/image")
    faulty.slow("fsync", 2 * OP_TIMEOUT, path="image")
    number, took = alice.do(timed, os.fsync, fd)
    assert number == 0
    assert took >= 2 * OP_TIMEOUT
    faulty.clear()
    alice.do(os.close, fd)
    assert alice.do(read_once, f"{top}/set/image") == b"image"


def test_data_calls_that_hang_end_with_etimedout(faulty: FaultStore, mount: Mount, alice: Agent) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    fd = alice.do(open_written, f"{top}/set/image")
    faulty.hang("fsync", "write", path="image")
    number, took = alice.do(timed, os.fsync, fd)
    assert number == errno.ETIMEDOUT
    assert IO_TIMEOUT - 0.1 <= took < IO_TIMEOUT + MARGIN
    faulty.release()
    alice.do(timed, os.close, fd)
    serves_again(alice, f"{top}/set/later")


def test_a_write_that_hangs_fails_in_write_itself(faulty: FaultStore, mount: Mount, alice: Agent) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    fd = alice.do(open_written, f"{top}/set/image")
    faulty.hang("write", path="image")
    number, took = alice.do(timed, os.write, fd, b"more")
    assert number == errno.ETIMEDOUT
    assert took < IO_TIMEOUT + MARGIN
    faulty.release()
    alice.do(timed, os.close, fd)
    serves_again(alice, f"{top}/set/later")


def test_a_read_that_hangs_ends_in_time(faulty: FaultStore, mount: Mount, alice: Agent) -> None:
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    alice.do(write_once, f"{top}/set/image")
    faulty.hang("read", path="image")
    number, took = alice.do(timed, read_once, f"{top}/set/image")
    assert number == errno.ETIMEDOUT
    assert took < IO_TIMEOUT + MARGIN
    faulty.release()
    until(lambda: alice.do(timed, read_once, f"{top}/set/image")[0] == 0, "read still fails")
    assert alice.do(read_once, f"{top}/set/image") == b"image"


def test_many_reads_that_hang_leave_room_for_metadata(
    faulty: FaultStore, workdir: Path, alice: Agent
) -> None:
    """More than the tasks that answer requests used to be: each call that waits has one until it is answered."""
    store = make_store(faulty.path)
    options = [OPTIONS[0], "io_timeout=60"]
    with Agent(ALICE) as reader, mounted(store, workdir / "mount", options=options, may_log=MAY_LOG) as mount:
        path = f"{mount.path}/set/image"
        alice.do(os.mkdir, f"{mount.path}/set")
        alice.do(write_once, path, bytes(1 << 20))
        faulty.hang("read", path="image")
        try:
            reader.begin(read_many, path, 300)
            faulty.hanging("read")
            time.sleep(1.0)  # until the rest of them have been asked too
            for call, of in ((os.lstat, path), (os.listdir, str(mount.path)), (os.mkdir, f"{mount.path}/2")):
                alice.begin(timed, call, of)
                number, took = alice.result(2 * OP_TIMEOUT)
                assert number == 0
                assert took < OP_TIMEOUT
        finally:
            faulty.release()
        assert reader.result() == 300


def read_many(path: str, times: int) -> int:
    """Read past the page cache, which would let one read through at a time; how many reads succeeded."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(number: int) -> int:
        return os.preadv(fd, [mmap.mmap(-1, 4096)], 4096 * (number % 256))

    with ThreadPoolExecutor(times) as threads:
        succeeded = sum(length == 4096 for length in threads.map(read, range(times)))
    os.close(fd)
    return succeeded


# --- the end of a mount whose store hangs -------------------------------------------------------------------------------


@pytest.mark.parametrize("killable", [True, False], ids=["killable", "hard"])
@pytest.mark.parametrize("how", ["SIGTERM", "umount"])
def test_a_mount_ends_while_its_store_hangs(
    faulty: FaultStore, mount: Mount, alice: Agent, how: str, killable: bool
) -> None:
    """*hard*: a thread that waits for the store cannot even be killed, so that the process goes when the store answers."""
    top = str(mount.path)
    alice.do(os.mkdir, f"{top}/set")
    faulty.hang("*", killable=killable)
    alice.begin(timed, os.mkdir, f"{top}/set/d")
    until(lambda: bool(faulty.stats()["hanging"]), "nothing hangs")

    mount.ended = True
    if how == "SIGTERM":
        mount.process.send_signal(signal.SIGTERM)
    else:
        assert alice.result(OP_TIMEOUT + MARGIN)[0] == errno.ETIMEDOUT
        until(lambda: _unmounted(mount), "umount fails")
    until(lambda: not is_mounted(mount.path), "it is still mounted")
    if how == "SIGTERM":
        assert alice.result(OP_TIMEOUT + MARGIN)[0] != 0
    if not killable:
        faulty.release()
    assert mount.process.wait(RECOVERY) == 0


def _unmounted(mount: Mount) -> bool:
    return subprocess.run(["umount", str(mount.path)], check=False, capture_output=True).returncode == 0
