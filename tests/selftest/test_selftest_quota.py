"""Quotas by the store's engine, tried on a real btrfs; and that a driver which passed is known to have."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.engines import proven
from tests.support.loops import btrfs
from tests.support.mounting import command, environment, run_ckfs
from tests.support.selftests import left_in, selftest

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

WITHIN_S = 60.0
QUOTA_CHECKS = ("quota.limit", "quota.enforced", "late.errors")


@pytest.fixture(scope="module")
def top(module_workdir: Path) -> Iterator[Path]:
    with btrfs(module_workdir) as mounted:
        yield mounted


def qgroups(top: Path) -> list[str]:
    """Of subvolumes, beside the file system's own."""
    done = subprocess.run(["btrfs", "qgroup", "show", top], check=True, capture_output=True, text=True)
    return [
        line for line in done.stdout.splitlines() if line.startswith("0/") and not line.startswith("0/5 ")
    ]


def subvolumes(top: Path) -> str:
    done = subprocess.run(["btrfs", "subvolume", "list", top], check=True, capture_output=True, text=True)
    return done.stdout


def nothing_is_left(top: Path) -> None:
    """btrfs removes subvolumes behind the caller's back."""
    assert left_in(top) == []
    deadline = time.monotonic() + WITHIN_S
    while qgroups(top) or subvolumes(top):
        assert time.monotonic() < deadline, qgroups(top)
        subprocess.run(["btrfs", "filesystem", "sync", top], check=True)
        time.sleep(0.1)


def test_a_limit_is_set_read_and_met_before_there_is_a_store(top: Path) -> None:
    report = selftest(top, "--engine", "auto", "--only", "quota,late")
    rows = report.rows
    assert [rows[check].verdict for check in QUOTA_CHECKS] == ["ok", "ok", "ok"]
    assert rows["quota.enforced"].figures["engine"] == "btrfs"
    assert rows["late.errors"].figures["error"] == "EDQUOT"
    assert report.status == 0
    nothing_is_left(top)


def test_in_a_store_the_driver_is_known_to_have_passed(top: Path) -> None:
    store = top / "store"
    assert run_ckfs("init", "--quota", "engine", store).returncode == 0
    assert [selftest(store, "--only", "quota").rows[check].verdict for check in QUOTA_CHECKS] == [
        "ok",
        "ok",
        "ok",
    ]
    assert os.getxattr(store / "users", proven.ATTRIBUTE).startswith(b"btrfs ")
    nothing_is_left(top)


def test_what_one_left_with_the_engine_that_was_killed_is_removed_by_the_next(top: Path) -> None:
    process = subprocess.Popen(
        command("selftest", top, "--engine", "btrfs", "--only", "quota"),
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + WITHIN_S
    while not list(top.glob(".ckfs-selftest-*/*/users/*/file")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(WITHIN_S)
    assert len(left_in(top)) == 1
    assert selftest(top, "--engine", "btrfs", "--only", "root").rows["store.left_overs"].figures == {
        "removed": 1
    }
    nothing_is_left(top)


def test_a_file_system_without_an_engine_is_not_tried(workdir: Path) -> None:
    rows = selftest(workdir, "--engine", "statvfs", "--only", "quota").rows
    assert {rows[check].verdict for check in QUOTA_CHECKS} == {"not tried"}


def test_an_engine_that_cannot_work_there_fails(workdir: Path) -> None:
    report = selftest(workdir, "--engine", "btrfs", "--only", "quota")
    assert report.rows["quota.limit"].verdict == "fail"
    assert report.status == 1
    assert left_in(workdir) == []


def test_who_is_near_his_limit_is_asked_instead_of_the_engine(top: Path) -> None:
    report = selftest(top, "--engine", "btrfs", "--limited", "bin", "--only", "quota,late")
    rows = [row["check"] for row in report.document["checks"]]
    assert rows[-4:] == ["quota.limit", "quota.enforced", "late.errors", "store.nothing_left"]
    assert "uid 2 wrote 256 MiB and met no limit" in report.rows["late.errors"].says
    nothing_is_left(top)
