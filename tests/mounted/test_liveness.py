"""Mounts that are cut off, killed or away for too long, as programs on others see their images: real daemons, a short lease."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounting import Mount, make_store, mounted
from tests.support.passed import stopped
from tests.support.users import ALICE

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

LEASE_S = 0.4
LIMIT_S = 30.0
SET = "7.server.CK"
SPARE = {"spare", "spare.1", "spare.2", "spare.3"}
CUT_OFF = [r"not heard of|cannot register|goes on as|is partial"]


def store_with(directory: Path, *, fence_s: float) -> Path:
    private = directory / "private"
    private.mkdir(mode=0o700)
    store = make_store(private)
    policy = store / "policy.toml"
    text = policy.read_text()
    text = text.replace("lease = 60.0", f"lease = {LEASE_S}")
    policy.write_text(text.replace("fence_hours = 24.0", f"fence_hours = {fence_s / 3600}"))
    return store


@pytest.fixture
def patient(root_and_fuse: None, workdir: Path) -> Path:
    """A store whose mounts are fenced only after a day."""
    return store_with(workdir, fence_s=86_400)


@pytest.fixture
def quick(root_and_fuse: None, workdir: Path) -> Path:
    """A store whose mounts are fenced after a few seconds."""
    return store_with(workdir, fence_s=2.0)


def make_set(mount: Mount) -> None:
    (mount.path / SET).mkdir()
    os.chown(mount.path / SET, ALICE, ALICE)


def state(mount: Mount, name: str) -> str:
    return os.getxattr(mount.path / SET / name, "user.ckfs.state").decode()


def eventually(ask: Callable[[], object], expected: object) -> None:
    """What it waits for are other hosts' leases: nothing sends an event."""
    deadline = time.monotonic() + LIMIT_S
    while (found := ask()) != expected:
        assert time.monotonic() < deadline, f"still {found}, not {expected}"
        time.sleep(0.02)


def test_a_mount_that_was_cut_off_loses_nothing(patient: Path, workdir: Path) -> None:
    with (
        mounted(patient, workdir / "a", node="a") as a,
        mounted(patient, workdir / "b", node="b", role="server", may_log=CUT_OFF) as b,
    ):
        make_set(a)
        earlier = a.path / SET / "earlier"
        earlier.write_bytes(b"earlier")
        with open(a.path / SET / "image", "wb", buffering=0) as image:
            image.write(b"half")
            with stopped(a):
                # a's process is on this host, and not dead: only its beat can tell.
                eventually(lambda: state(b, "image"), "partial")
                with pytest.raises(OSError, match="Input/output error"):
                    (b.path / SET / "image").read_bytes()
                assert (b.path / SET / "earlier").read_bytes() == b"earlier"
            eventually(lambda: state(b, "image"), "writing")
            image.write(b" and half")
        assert state(b, "image") == "complete"
        assert (b.path / SET / "image").read_bytes() == b"half and half"


def test_what_a_killed_daemon_was_writing_is_partial_for_everybody(patient: Path, workdir: Path) -> None:
    with mounted(patient, workdir / "b", node="b", may_log=CUT_OFF) as b:
        with mounted(patient, workdir / "a", node="a") as a:
            make_set(a)
            image = open(a.path / SET / "image", "wb", buffering=0)  # noqa: SIM115 - it outlives its mount
            synced = open(a.path / SET / "synced", "wb", buffering=0)  # noqa: SIM115 - it outlives its mount
            for file in (image, synced):
                file.write(b"bytes")
            os.fsync(synced.fileno())
            a.kill()
        for file in (image, synced):
            with contextlib.suppress(OSError):
                file.close()
        assert state(b, "image") == "partial"
        assert state(b, "synced") == "complete"
        assert (b.path / SET / "synced").read_bytes() == b"bytes"
        with mounted(patient, workdir / "a", node="a", may_log=CUT_OFF) as again:
            assert (state(again, "image"), state(again, "synced")) == ("partial", "complete")


def test_a_mount_that_was_away_for_too_long_is_fenced(quick: Path, workdir: Path) -> None:
    with (
        mounted(quick, workdir / "a", node="a", may_log=CUT_OFF) as a,
        mounted(quick, workdir / "b", node="b", role="server", may_log=CUT_OFF) as b,
    ):
        make_set(a)
        image = os.open(a.path / SET / "image", os.O_WRONLY | os.O_CREAT)
        os.write(image, b"half")
        with stopped(a):
            eventually(lambda: "is forgotten" in b.log(), True)
        with pytest.raises(OSError, match="Input/output error") as raised:
            os.write(image, b" and half")
        assert raised.value.errno == errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            os.close(image)
        assert state(b, "image") == state(a, "image") == "partial"
        assert "is ended: it was not heard of" in b.log()
        assert "writers that had images open get EIO" in a.log()
        (a.path / SET / "next").write_bytes(b"whole")
        assert state(b, "next") == "complete"


def test_the_housekeeper_settles_and_forgets_the_dead(patient: Path, workdir: Path) -> None:
    with mounted(patient, workdir / "b", node="b", role="server", may_log=CUT_OFF) as b:
        with mounted(patient, workdir / "a", node="a") as a:
            make_set(a)
            image = open(a.path / SET / "image", "wb", buffering=0)  # noqa: SIM115 - it outlives its mount
            image.write(b"half")
            a.kill()
        with contextlib.suppress(OSError):
            image.close()
        eventually(lambda: "is forgotten" in b.log(), True)
        assert re.search(r"mount [0-9a-f]{16} of node a is ended: its process is dead", b.log())
        listed = os.getxattr(patient / "users" / str(ALICE) / SET / "image", "user.ckfs")
        assert b";s=p;" in listed


def test_one_mount_keeps_house_and_another_takes_over(patient: Path, workdir: Path) -> None:
    def keeper() -> str:
        terms = sorted(name for name in os.listdir(patient / "mounts") if name.startswith("housekeeper."))
        return os.readlink(patient / "mounts" / terms[-1]) if terms else ""

    said = "this mount keeps house"
    with (
        mounted(patient, workdir / "n", node="n") as node,
        mounted(patient, workdir / "a", node="a", role="server") as a,
        mounted(patient, workdir / "b", node="b", role="both") as b,
    ):
        eventually(lambda: said in a.log() or said in b.log(), True)
        first, other = (a, b) if said in a.log() else (b, a)
        before = keeper()
        with stopped(first):
            eventually(lambda: said in other.log(), True)
            assert keeper() != before
        second = keeper()
        first.umount()
        assert (keeper(), said in node.log(), other.log().count(said)) == (second, False, 1)


def test_mounts_that_end_leave_no_registration(patient: Path, workdir: Path) -> None:
    with (
        mounted(patient, workdir / "a", node="a") as a,
        mounted(patient, workdir / "b", node="b", options=["ro"]),
    ):
        (name,) = {*os.listdir(patient / "mounts")} - {*SPARE, "node.a"}
        line = (patient / "mounts" / name).read_text()
        assert ";n=a;" in line
        assert f";p={a.process.pid};" in line
        eventually(lambda: (patient / "mounts" / name).read_text() != line, True)
    assert set(os.listdir(patient / "mounts")) == SPARE
