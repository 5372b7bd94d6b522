"""Whatever ends a selftest, nothing is left: by itself, or by the next one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.selftest.scratch import Worker
from tests.support.faultfs import FaultStore, fault_store
from tests.support.mounting import command, environment
from tests.support.selftests import left_in, selftest

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

WITHIN_S = 60.0
INTERRUPTIBLE = ("env", "--default-signal=INT,HUP")
"""Before a command: whoever runs the tests in the background, or by nohup, lets these signals be ignored."""


@pytest.fixture
def faulty(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        yield running


@contextlib.contextmanager
def in_the_middle(faulty: FaultStore) -> Iterator[subprocess.Popen[str]]:
    """A selftest that waits for the store in one of its checks."""
    faulty.hang("fsync", path="/synced$")
    process = subprocess.Popen(
        [*INTERRUPTIBLE, *command("selftest", faulty.path, "--only", "fsync", "--timeout", "600")],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        faulty.hanging("fsync", within=WITHIN_S)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_interrupts_it_finds_nothing_left(faulty: FaultStore, number: signal.Signals) -> None:
    with in_the_middle(faulty) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, errors) == (130, "")
    assert "store.nothing_left" in output
    assert left_in(faulty.backing) == []
    processes_are_gone(faulty)


def test_who_interrupts_it_at_its_very_beginning_finds_nothing_left(faulty: FaultStore) -> None:
    """The scratch directory is there, and what it takes to work in it is not yet."""
    faulty.hang("mkdir", path="selftest-[0-9a-f]*/")
    process = subprocess.Popen(
        [*INTERRUPTIBLE, *command("selftest", faulty.path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        faulty.hanging("mkdir", within=WITHIN_S)
        assert len(left_in(faulty.backing)) == 1
        process.send_signal(signal.SIGINT)
    finally:
        process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130
    assert left_in(faulty.backing) == []


def test_what_a_killed_one_left_is_named_and_removed_by_the_next(faulty: FaultStore) -> None:
    with in_the_middle(faulty) as process:
        process.kill()
        process.wait(WITHIN_S)
        (left,) = left_in(faulty.backing)
        processes_are_gone(faulty)
    faulty.release()
    report = selftest(faulty.path, "--only", "root")
    row = report.rows["store.left_overs"]
    assert row.verdict == "ok"
    assert f"{left}, left by process {process.pid} on {os.uname().nodename}, was removed" in row.says
    assert row.figures == {"removed": 1}
    assert left_in(faulty.backing) == []


def test_one_that_runs_is_left_alone(faulty: FaultStore) -> None:
    with in_the_middle(faulty):
        (own,) = left_in(faulty.backing)
        report = selftest(faulty.path, "--only", "root")
        row = report.rows["store.left_overs"]
        assert row.verdict == "warn"
        assert "may be running" in row.says
        assert left_in(faulty.backing) == [own]


def test_of_another_host_one_is_taken_for_left_behind_after_an_hour(workdir: Path) -> None:
    now, hour_ns = time.time_ns(), 3_600_000_000_000
    other = Worker("tqn7", "0" * 8, 4711, "12")
    names = {f".ckfs-selftest-{number:016x}": age for number, age in enumerate((2 * hour_ns, hour_ns // 2))}
    for name, age_ns in names.items():
        (workdir / name).mkdir()
        (workdir / name / "who").write_bytes(other.encode())
        os.utime(workdir / name, ns=(now - age_ns, now - age_ns))
    old, young = names
    says = selftest(workdir, "--only", "root").rows["store.left_overs"].says
    assert f"{old}, left by process 4711 on tqn7, was removed" in says
    assert f"{young} is of process 4711 on tqn7, which may be running" in says
    assert left_in(workdir) == [young]


def test_what_only_looks_like_one_stays(workdir: Path) -> None:
    (workdir / ".ckfs-selftest-0123").mkdir()
    (workdir / ".ckfs-selftest-0123456789abcdef").write_text("a file")
    os.mkdir(workdir / ".ckfs-selftest-0123456789abcde0")
    os.chown(workdir / ".ckfs-selftest-0123456789abcde0", 2101, 2101)
    before = sorted(os.listdir(workdir))
    assert selftest(workdir, "--only", "root").rows["store.left_overs"].verdict == "ok"
    assert sorted(os.listdir(workdir)) == before


def processes_are_gone(faulty: FaultStore) -> None:
    """The checks end with the command: none works on."""
    deadline = time.monotonic() + WITHIN_S
    while faulty.stats()["hanging"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
