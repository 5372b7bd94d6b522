"""A brick that dies, a host that is cut off, servers that are silent: calls end, and what was acknowledged is there afterwards."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.gluster_cluster import Cluster
from tests.support.images import content, save
from tests.support.machines import wait_until
from tests.support.users import ALICE, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.cluster]

OP_TIMEOUT_S, IO_TIMEOUT_S = 5, 10
LONG_S = 120.0
"""Nothing that the tests wait for takes so long, on however busy a machine."""
PIECE_BYTES = 64 << 10
MIB = 1 << 20
MAY_LOG = [
    "store down",
    "store up again",
    "is partial: a write failed",
    "the store cannot be used",
    "closing a file",
]
ENDINGS = {errno.EIO, errno.ETIMEDOUT}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def mounts(gluster: Cluster, module_workdir: Path) -> Iterator[list[str]]:
    """Where each host has ckfs. Each reads partial images, to look at what of them was acknowledged."""
    store = gluster.make_store("--quota", "none")
    options = [f"op_timeout={OP_TIMEOUT_S}", f"io_timeout={IO_TIMEOUT_S}", "partial"]
    nodes = [host.name for host in gluster.hosts]
    with gluster.mounted_on(store, module_workdir, nodes, options=options, may_log=MAY_LOG) as mounted:
        yield list(mounted.values())


@pytest.fixture
def name(mounts: list[str]) -> str:
    """A set of Alice's."""
    made = f"set{next(_numbers)}"
    as_user(ALICE, os.mkdir, f"{mounts[0]}/{made}")
    return made


@pytest.fixture(autouse=True)
def whole_again(gluster: Cluster, mounts: list[str]) -> Iterator[None]:
    """Whatever a test has broken, the next one finds mended."""
    yield
    gluster.start_bricks()
    for mount in mounts:
        serves(mount)


def serves(mount: str) -> None:
    """By itself, and soon."""
    wait_until(lambda: errno_as(ALICE, os.listdir, mount) == 0, f"{mount} serves again", LONG_S)


def piece(number: int) -> bytes:
    return number.to_bytes(8, "big") * (PIECE_BYTES // 8)


@dataclass(frozen=True)
class Ended:
    """How a loop of calls ended: what was acknowledged before, with which error, and how long a call took at most."""

    acknowledged: int
    error: int
    longest_s: float


def repeat(call: Callable[[int], object], until: str) -> Ended:
    """Call it with 0, 1 and so on, until it fails or the file *until* is there."""
    longest_s = 0.0
    for number in itertools.count():
        begun = time.monotonic()
        try:
            call(number)
        except OSError as failure:
            return Ended(number, failure.errno or 0, max(longest_s, time.monotonic() - begun))
        longest_s = max(longest_s, time.monotonic() - begun)
        if os.path.exists(until):
            return Ended(number + 1, 0, longest_s)
    raise AssertionError


def write_and_sync(path: str, until: str) -> Ended:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def step(number: int) -> None:
        assert os.write(fd, piece(number)) == PIECE_BYTES
        os.fsync(fd)

    try:
        return repeat(step, until)
    finally:
        with contextlib.suppress(OSError):  # tells again what a write has told
            os.close(fd)


def read_again_and_again(path: str, expected: bytes, until: str) -> Ended:
    def step(_: int) -> None:
        assert content(path) == expected

    return repeat(step, until)


def rename_to_and_fro(one: str, other: str, until: str) -> Ended:
    return repeat(lambda number: os.rename(*((one, other), (other, one))[number % 2]), until)


def ended_in_time(ended: Ended) -> None:
    assert ended.error in ENDINGS, ended
    # Each of a few steps has its limit; what is beyond that is a busy machine's.
    assert ended.longest_s < 4 * IO_TIMEOUT_S + LONG_S / 2, ended


def has(path: str, size: int) -> Callable[[], bool]:
    def look() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(path).st_size >= size
        return False

    return look


# A brick


def test_a_writer_does_not_notice_that_a_brick_dies(
    gluster: Cluster, mounts: list[str], name: str, workdir: Path
) -> None:
    until = workdir / "until"
    with Agent(ALICE) as writer:
        writer.begin(write_and_sync, f"{mounts[0]}/{name}/image", str(until))
        wait_until(has(f"{mounts[1]}/{name}/image", MIB), "it writes", LONG_S)
        gluster.kill_brick(0)
        size = os.stat(f"{mounts[1]}/{name}/image").st_size
        wait_until(has(f"{mounts[1]}/{name}/image", size + MIB), "it goes on writing", LONG_S)
        until.touch()
        ended = writer.result(LONG_S)
    assert ended.error == 0
    expected = b"".join(map(piece, range(ended.acknowledged)))
    assert content(f"{mounts[1]}/{name}/image") == expected
    gluster.start_bricks()
    gluster.kill_brick(1)  # what it took is read from the one that was away, or from the third
    assert content(f"{mounts[2]}/{name}/image") == expected


# A host


def test_a_writer_that_is_cut_off_gets_an_error_and_nothing_acknowledged_is_lost(
    gluster: Cluster, mounts: list[str], name: str, workdir: Path
) -> None:
    here, there = mounts[0], mounts[1]
    with Agent(ALICE) as writer:
        writer.begin(write_and_sync, f"{here}/{name}/image", str(workdir / "never"))
        wait_until(has(f"{there}/{name}/image", MIB), "it writes", LONG_S)
        with gluster.hosts[0].machine.unplugged():
            ended = writer.result(LONG_S)
            as_user(ALICE, save, f"{there}/{name}/other", b"others go on")
            error = errno_as(ALICE, os.listdir, f"{here}/{name}")
    ended_in_time(ended)
    assert error in ENDINGS
    serves(here)
    expected = b"".join(map(piece, range(ended.acknowledged)))
    for mount in mounts:
        assert content(f"{mount}/{name}/image")[: len(expected)] == expected
        assert content(f"{mount}/{name}/other") == b"others go on"
    as_user(ALICE, save, f"{here}/{name}/later", b"later")
    assert content(f"{there}/{name}/later") == b"later"


def test_a_reader_that_is_cut_off_gets_an_error_and_reads_on_later(
    gluster: Cluster, mounts: list[str], name: str, workdir: Path
) -> None:
    here = mounts[0]
    image = b"".join(map(piece, range(32)))
    as_user(ALICE, save, f"{here}/{name}/image", image)
    with Agent(ALICE) as reader:
        reader.begin(read_again_and_again, f"{here}/{name}/image", image, str(workdir / "never"))
        with gluster.hosts[0].machine.unplugged():
            ended = reader.result(LONG_S)
    ended_in_time(ended)
    serves(here)
    assert content(f"{here}/{name}/image") == image


def test_a_rename_that_is_cut_off_has_happened_or_has_not(
    gluster: Cluster, mounts: list[str], name: str, workdir: Path
) -> None:
    """A set's, which takes several steps on a store without RENAME_NOREPLACE."""
    here, there = mounts[0], mounts[1]
    as_user(ALICE, save, f"{here}/{name}/image", b"moves")
    with Agent(ALICE) as mover:
        mover.begin(rename_to_and_fro, f"{here}/{name}", f"{here}/{name}-moved", str(workdir / "never"))
        wait_until(lambda: os.path.exists(f"{there}/{name}-moved"), "it moves", LONG_S)
        with gluster.hosts[0].machine.unplugged():
            ended = mover.result(LONG_S)
    ended_in_time(ended)
    serves(here)
    for mount in mounts:
        names = [entry for entry in os.listdir(mount) if entry.startswith(name)]
        assert names
        for entry in names:
            assert content(f"{mount}/{entry}/image") == b"moves"


# The servers


def test_a_store_that_was_silent_is_served_again(
    gluster: Cluster, mounts: list[str], name: str, workdir: Path
) -> None:
    with Agent(ALICE) as writer, contextlib.ExitStack() as silence:
        writer.begin(write_and_sync, f"{mounts[0]}/{name}/image", str(workdir / "never"))
        wait_until(has(f"{mounts[1]}/{name}/image", MIB), "it writes", LONG_S)
        for server in gluster.servers:
            silence.enter_context(server.unplugged())
        ended = writer.result(LONG_S)
        errors = {errno_as(ALICE, os.listdir, mount) for mount in mounts}
    ended_in_time(ended)
    assert errors <= ENDINGS
    for mount in mounts:
        serves(mount)
    expected = b"".join(map(piece, range(ended.acknowledged)))
    assert content(f"{mounts[2]}/{name}/image")[: len(expected)] == expected


SILENCE_S = 60
AT_THE_TOP: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "opendir": os.listdir,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
}
"""What pbs_mom does in its checkpoint directory, with a single thread."""
_MAY_TAKE_S = OP_TIMEOUT_S + 20.0
"""A busy machine may add its own; the volume's own patience (``network.ping-timeout``) is no longer than ckfs's."""


@dataclass(frozen=True)
class Silence:
    """What a mom's calls met: the errnos of each kind, how long one took at most, and how many there were."""

    errors: dict[str, set[int]]
    longest_s: float
    count: int


def calls_of_a_mom(mount: str, name: str, for_s: float) -> Silence:
    """One after the other, for so many seconds."""
    errors: dict[str, set[int]] = {kind: set() for kind in AT_THE_TOP}
    longest_s, count, until_s = 0.0, 0, time.monotonic() + for_s
    while time.monotonic() < until_s:
        for kind, call in AT_THE_TOP.items():
            path = mount if kind == "opendir" else f"{mount}/{name}-{kind}"
            begun_s = time.monotonic()
            errors[kind].add(errno_of_call(call, path))
            longest_s = max(longest_s, time.monotonic() - begun_s)
            count += 1
        time.sleep(0.1)  # a mom does other things, too
    return Silence(errors, longest_s, count)


@pytest.mark.long_on_cluster
def test_a_minute_of_silence_ends_every_call_in_time_and_nothing_acknowledged_is_lost(
    gluster: Cluster, mounts: list[str], name: str, workdir: Path
) -> None:
    for kind in ("stat", "rmdir"):
        as_user(ALICE, os.mkdir, f"{mounts[0]}/{name}-{kind}")
    as_user(ALICE, save, f"{mounts[0]}/{name}-unlink", b"there")
    with Agent(ALICE) as writer, Agent(ALICE) as mom, contextlib.ExitStack() as silence:
        writer.begin(write_and_sync, f"{mounts[1]}/{name}/image", str(workdir / "never"))
        wait_until(has(f"{mounts[2]}/{name}/image", MIB), "it writes", LONG_S)
        for server in gluster.servers:
            silence.enter_context(server.unplugged())
        mom.begin(calls_of_a_mom, mounts[0], name, float(SILENCE_S))
        met = mom.result(SILENCE_S + LONG_S)
        ended = writer.result(LONG_S)
    print(f"{met.count} calls in {SILENCE_S} s, the longest {met.longest_s:.2f} s: {met.errors}")
    # What began just before the cables were pulled may have gone through; what the kernel knows it answers.
    for kind, errors in met.errors.items():
        assert errors <= ENDINGS | {0, errno.ENOENT, errno.EEXIST}, (kind, errors)
        assert errors & ENDINGS, (kind, errors)
    assert met.longest_s < _MAY_TAKE_S
    ended_in_time(ended)
    for mount in mounts:
        serves(mount)
    expected = b"".join(map(piece, range(ended.acknowledged)))
    for mount in mounts:
        assert content(f"{mount}/{name}/image")[: len(expected)] == expected
        wait_until(lambda mount=mount: errno_of_call(os.stat, f"{mount}/{name}-stat") == 0, "it is there")  # type: ignore[misc]  # a lambda with a default
    as_user(ALICE, save, f"{mounts[0]}/{name}/later", b"later")
    assert content(f"{mounts[2]}/{name}/later") == b"later"
