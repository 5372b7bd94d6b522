"""A store that falls silent, and answers again: what one caller meets who makes one call after the other, as pbs_mom does, and that
the mount serves again by itself, with all that was acknowledged."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.faultfs import FaultStore, fault_store
from tests.support.mounting import Mount, make_store, mounted
from tests.support.users import ALICE, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

OP_TIMEOUT = 4.0
MARGIN = 3.5
"""Seconds that a loaded machine may take longer; less than OP_TIMEOUT, so that two time-outs in a row do not fit."""
WHOLE = OP_TIMEOUT + 3 * MARGIN
"""For all the calls together: one that waits, and four that do not."""
PATIENCE_S = 60.0

MAY_LOG = (r"\b[Ss]tore\b", r"\btoo late\b", r"\bis partial\b")

Call = Callable[[str], object]
Timed = tuple[int, float]

SETS = ("7.server.CK", "8.server.CK")
CALLS: dict[str, tuple[Call, str]] = {
    "stat": (os.stat, SETS[0]),
    "readdir": (os.listdir, ""),
    "unlink": (os.unlink, "1.server.SC"),
    "rmdir": (os.rmdir, SETS[1]),
    "mkdir": (os.mkdir, "9.server.CK"),
}
"""What pbs_mom does in its checkpoint directory, each with the name that it is about."""
IN_ORDER = list(CALLS)
OPERATIONS = [
    "*",
    "lookup",
    "getattr",
    "opendir",
    "readdir",
    "getxattr",
    "readlink",
    "unlink",
    "rmdir",
    "mkdir",
    "rename",
    "symlink",
]


@pytest.fixture
def faulty(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        yield running


@pytest.fixture
def mount(faulty: FaultStore, workdir: Path) -> Iterator[Mount]:
    options = (f"op_timeout={OP_TIMEOUT:g}",)
    store = make_store(faulty.path)
    with mounted(store, workdir / "mount", node="a", options=options, may_log=MAY_LOG) as running:
        try:
            yield running
        finally:
            faulty.clear()
            faulty.release()


@pytest.fixture
def mom() -> Iterator[Agent]:
    """Root, with one thread."""
    with Agent(0) as agent:
        yield agent


def timed(call: Callable[..., object], *args: object) -> Timed:
    began = time.monotonic()
    number = errno_of_call(call, *args)
    return number, time.monotonic() - began


def make_file(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def open_written(path: str, data: bytes) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, data)
    return fd


def save(path: str, data: bytes) -> None:
    os.close(open_written(path, data))


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def eventually(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def serves(agent: Agent, top: str) -> bool:
    return bool(agent.do(timed, os.mkdir, f"{top}/later.CK")[0] in {0, errno.EEXIST})


# One thread, one call after the other


@pytest.mark.parametrize("first", IN_ORDER)
def test_a_single_thread_waits_once_and_is_answered_at_once_after_that(
    faulty: FaultStore, mount: Mount, mom: Agent, first: str
) -> None:
    top = str(mount.path)
    begin(mom, top)
    faulty.hang("*")
    at = IN_ORDER.index(first)
    took = []
    for name in IN_ORDER[at:] + IN_ORDER[:at]:
        call, path = CALLS[name]
        number, seconds = mom.do(timed, call, f"{top}/{path}")
        assert number == errno.ETIMEDOUT, name
        assert seconds < OP_TIMEOUT + MARGIN, f"{name} took {seconds:.1f} s"
        took.append(seconds)
    assert sum(took) < WHOLE, f"together they took {sum(took):.1f} s"

    faulty.release()
    eventually(lambda: serves(mom, top), "it does not serve again")
    assert SETS[0] in mom.do(os.listdir, top)


@pytest.mark.parametrize("op", OPERATIONS)
def test_each_call_ends_in_time_whatever_of_the_store_hangs(
    faulty: FaultStore, mount: Mount, mom: Agent, op: str
) -> None:
    """Where all else answers the store counts as up again, so each call may wait once, and no longer."""
    top = str(mount.path)
    begin(mom, top)
    faulty.hang(op)
    for name, (call, path) in CALLS.items():
        number, seconds = mom.do(timed, call, f"{top}/{path}")
        assert number in {0, errno.ETIMEDOUT}, f"{name}: {errno.errorcode.get(number, number)}"
        assert seconds < OP_TIMEOUT + MARGIN, f"{name} took {seconds:.1f} s"
    faulty.release()
    eventually(lambda: serves(mom, top), "it does not serve again")


def begin(mom: Agent, top: str) -> None:
    for name in SETS:
        mom.do(os.mkdir, f"{top}/{name}")
    mom.do(make_file, f"{top}/1.server.SC")


# It answers again


def test_after_a_silence_it_serves_again_with_all_that_was_acknowledged(
    faulty: FaultStore, mount: Mount, mom: Agent
) -> None:
    top = str(mount.path)
    with Agent(ALICE) as alice, Agent(ALICE) as writer:
        alice.do(os.mkdir, f"{top}/set")
        alice.do(save, f"{top}/set/complete", b"complete")
        kept = alice.do(open_written, f"{top}/set/synced", b"synced")
        alice.do(os.fsync, kept)
        torn = writer.do(open_written, f"{top}/set/torn", b"begun")
        writer.do(os.fsync, torn)

        faulty.hang("*")
        writer.begin(timed, os.write, torn, b", and under way")
        faulty.hanging("write")
        for call, args in (
            (os.mkdir, (f"{top}/set/d",)),
            (os.stat, (f"{top}/set/complete",)),
            (os.write, (kept, b"more")),
            (os.fsync, (kept,)),
            (os.listdir, (top,)),
        ):
            number, seconds = alice.do(timed, call, *args)
            assert number in {errno.ETIMEDOUT, errno.EIO}, call
            assert seconds < OP_TIMEOUT + MARGIN
        faulty.release()

        # What was under way has io_timeout, and is not hurt by a shorter silence.
        assert writer.result()[0] == 0
        eventually(lambda: serves(mom, top), "it does not serve again")
        assert writer.do(timed, os.fsync, torn)[0] == 0
        writer.do(os.close, torn)
        assert alice.do(content, f"{top}/set/complete") == b"complete"
        assert alice.do(content, f"{top}/set/torn") == b"begun, and under way"
        assert (faulty.backing / "store/users" / str(ALICE) / "set/synced").read_bytes() == b"synced"
        alice.do(timed, os.close, kept)
        alice.do(save, f"{top}/set/after", b"after")
        assert alice.do(content, f"{top}/set/after") == b"after"
