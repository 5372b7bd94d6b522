"""``ckfs status``, and what it counts: refusals that are routine apart from others, items put into the trash."""

from __future__ import annotations

import datetime as dt
import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckfs import __version__
from tests.support.agents import Agent
from tests.support.commands import ckfs_as
from tests.support.faultfs import FaultStore, fault_store
from tests.support.mounting import TRANSPORT, Mount, make_store, mounted, passes_through, run_ckfs
from tests.support.users import ALICE, BOB, as_user, errno_as

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]


UP, DOWN, NOT_MOUNTED = 0, 3, 4
"""Exit statuses (docs/commands.md)."""


def status(mount: Mount, expected: int = UP) -> dict[str, Any]:
    done = run_ckfs("status", mount.path, "--json")
    assert (done.returncode, done.stderr) == (expected, "")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture
def image(mount: Mount) -> Path:
    """A complete image of a batch set: it is protected."""
    path = mount.path / "7.server.CK"
    path.mkdir()
    os.chown(path, ALICE, ALICE)
    as_user(ALICE, lambda: (path / "image").write_bytes(b"image"))
    return path / "image"


def program(workdir: Path, name: str) -> Path:
    """Something that removes files, under that name."""
    path = workdir / name
    shutil.copy(shutil.which("rm") or "/bin/rm", path)
    return path


def test_it_says_what_the_mount_is(mount: Mount) -> None:
    said = status(mount)
    ledger = said["ledger"]
    for since in (said.pop("store_since"), ledger.pop("since"), ledger.pop("asked")):
        assert abs((dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(since)).total_seconds()) < 60
    assert said.pop("store_id") in (mount.store / "ckfs.toml").read_text()
    assert said == {
        "transport": os.environ.get(TRANSPORT, "kernel"),
        "passthrough": passes_through(),
        "read_only": False,
        "hung_threads": 0,
        "further_stores": [],
        "last_error": None,
        "last_error_at": None,
        "quotas": "ledger",
        "engine": None,
        "ledger": {"kind": "sqlite", "reachable": True},
        "coherence": None,
        "protection": "everybody",
        "open_handles": 0,
        "writing": [],
        "sets_written": 0,
        "sets_read": 0,
        "bytes_written": 0,
        "bytes_read": 0,
        "mountpoint": str(mount.path),
        "version": __version__,
        "role": "node",
        "node": os.uname().nodename,
        "store": str(mount.store),
        "store_up": True,
        "keep": 2,
        "retention_days": 7.0,
        "open_writers": 0,
        "refused_to_moms": 0,
        "refused_to_others": 0,
        "trashed": 0,
    }
    ran = ckfs_as(ALICE, "status", mount.path)
    assert (ran.status, ran.errors) == (0, "")
    assert f"store:        {mount.store} (" in ran.text
    assert "store is:     up, since " in ran.text


def test_anything_on_the_mount_leads_to_it(mount: Mount, image: Path) -> None:
    assert json.loads(run_ckfs("status", image, "--json").stdout)["mountpoint"] == str(mount.path)


def test_it_counts_who_writes(mount: Mount) -> None:
    with (mount.path / "one").open("wb"), (mount.path / "two").open("wb"):
        said = status(mount)
        assert (said["open_writers"], said["open_handles"]) == (2, 2)


def test_root_hears_who_writes_what_and_a_user_of_himself_alone(mount: Mount) -> None:
    with Agent(ALICE) as alice, Agent(BOB) as bob:
        alice.do(open_for_writing, str(mount.path / "hers"))
        bob.do(open_for_writing, str(mount.path / "his"))
        hers = {"set": "hers", "uid": ALICE, "open_writers": 1}
        his = {"set": "his", "uid": BOB, "open_writers": 1}
        assert status(mount)["writing"] == [hers, his]
        for uid, own, others in ((ALICE, hers, "his"), (BOB, his, "hers")):
            ran = ckfs_as(uid, "status", mount.path, "--json")
            said = json.loads(ran.text)
            assert (said["writing"], said["open_writers"]) == ([own], 2)
            assert f'"{others}"' not in ran.text


def open_for_writing(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)


def test_it_counts_what_is_written_and_read_and_of_how_many_sets(mount: Mount) -> None:
    for name in ("one", "two"):
        (mount.path / name).mkdir()
        for image in ("first", "second"):
            (mount.path / name / image).write_bytes(b"x" * 1000)
    fd = os.open(mount.path / "one" / "first", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.readv(fd, [mmap.mmap(-1, 4096)]) == 1000
    finally:
        os.close(fd)
    said = status(mount)
    assert (said["sets_written"], said["bytes_written"]) == (2, 4000)
    assert (said["sets_read"], said["bytes_read"]) == (1, 1000)
    assert "written:      3.91K in 2 sets\n" in ckfs_as(ALICE, "status", mount.path).text


def test_it_counts_what_went_to_the_trash(mount: Mount) -> None:
    for name in ("removed", "replaced", "other", "emptied"):
        (mount.path / name).write_bytes(b"image")
    (mount.path / "removed").unlink()
    (mount.path / "other").rename(mount.path / "replaced")
    (mount.path / "emptied").write_bytes(b"")
    assert status(mount)["trashed"] == 3


def test_a_mom_s_refusals_are_routine_and_no_line_each(mount: Mount, workdir: Path, image: Path) -> None:
    mom = program(workdir, "pbs_mom")
    for _ in range(3):
        done = subprocess.run([mom, "-f", image], capture_output=True, text=True, check=False)
        assert "Permission denied" in done.stderr
    counted = status(mount)
    assert (counted["refused_to_moms"], counted["refused_to_others"]) == (3, 0)
    assert "kept 7.server.CK/image from" not in mount.log()
    mount.umount()
    assert "kept 3 times what is protected from the batch system's mom, as usual; 3 since" in mount.log()


def test_others_refusals_are_counted_by_themselves_with_a_line_each(
    mount: Mount, workdir: Path, image: Path
) -> None:
    """Root's other programs, and users, under whatever name."""
    mom, other = program(workdir, "pbs_mom"), program(workdir, "cleaner")
    subprocess.run([other, "-f", image], stderr=subprocess.DEVNULL, check=False)
    assert errno_as(ALICE, image.unlink) != 0
    subprocess.run([mom, "-f", image], stderr=subprocess.DEVNULL, check=False, user=ALICE, group=ALICE)
    counted = status(mount)
    assert (counted["refused_to_moms"], counted["refused_to_others"]) == (0, 3)
    assert mount.log().count("kept 7.server.CK/image from uid 0: one of the 2 newest") == 1
    assert mount.log().count(f"kept 7.server.CK/image from uid {ALICE}: one of the 2 newest") == 2
    mount.umount()
    assert "as usual" not in mount.log()


def test_the_policy_says_who_is_a_mom(store: Path, workdir: Path) -> None:
    policy = store / "policy.toml"
    policy.write_text(policy.read_text("utf-8").replace('moms = ["pbs_mom"]', 'moms = ["cleaner"]'))
    with mounted(store, workdir / "mount") as mount:
        path = mount.path / "7.server.CK"
        path.mkdir()
        (path / "image").write_bytes(b"image")
        for name in ("pbs_mom", "cleaner"):
            subprocess.run(
                [program(workdir, name), "-f", path / "image"], stderr=subprocess.DEVNULL, check=False
            )
        counted = status(mount)
        assert (counted["refused_to_moms"], counted["refused_to_others"]) == (1, 1)


# While the store does not answer


@pytest.fixture
def faulty(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        yield running


def test_it_answers_while_the_store_hangs(faulty: FaultStore, workdir: Path) -> None:
    options = ("op_timeout=2", "io_timeout=4")
    with mounted(
        make_store(faulty.path), workdir / "mount", options=options, may_log=[r"\b[Ss]tore\b"]
    ) as mount:
        since = status(mount)["store_since"]
        try:
            faulty.hang("*")
            with Agent(ALICE) as alice:
                alice.begin(os.mkdir, str(mount.path / "set"))
                hanging = status(mount)
                with pytest.raises(OSError, match="timed out"):
                    alice.result()
            assert (hanging["store_up"], hanging["store_since"]) == (True, since)
            down = status(mount, DOWN)
            assert down["store_up"] is False
            assert down["store_since"] > since
            assert down["last_error"] == "the store did not answer within 2 s"
            assert down["last_error_at"] == down["store_since"]
            assert down["hung_threads"] > 0
            ran = ckfs_as(ALICE, "status", mount.path)
            assert ran.status == DOWN
            assert "store is:     down: calls fail until it answers; " in ran.text
            ran = ckfs_as(ALICE, "trash", "ls", "--store", mount.path)
            assert (ran.status, ran.errors) == (
                3,
                "ckfs: the store does not answer: the store is down\n",
            )
        finally:
            faulty.clear()
            faulty.release()
        eventually(lambda: up_again(mount))


def up_again(mount: Mount) -> bool:
    done = run_ckfs("status", mount.path, "--json")
    said = json.loads(done.stdout)
    return done.returncode == UP and said["store_up"] is True and said["hung_threads"] == 0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def test_no_call_is_made_on_a_mount_that_hangs(faulty: FaultStore, workdir: Path) -> None:
    """Whatever asks this mount anything waits for as long as the test lasts."""
    store = make_store(faulty.path)
    with (
        mounted(store, workdir / "mount", options=["op_timeout=600"], may_log=[r"around ckfs"]) as mount,
        Agent(ALICE) as alice,
    ):
        (workdir / "link").symlink_to(mount.path)
        faulty.hang("*")
        try:
            alice.begin(os.stat, str(mount.path / "set"))
            faulty.hanging("lookup")
            assert status(mount)["store_up"] is True
            for path in ("mount/set/image", "link", "link/set", "mount/."):
                assert run_ckfs("status", workdir / path).returncode == UP
        finally:
            faulty.release()
        with pytest.raises(FileNotFoundError):
            alice.result()


def test_errors_of_the_store_are_told_and_no_user_s_own(faulty: FaultStore, workdir: Path) -> None:
    with mounted(make_store(faulty.path), workdir / "mount", may_log=[r"partial|around ckfs"]) as mount:
        (mount.path / "set").mkdir()
        with pytest.raises(FileExistsError):
            (mount.path / "set").mkdir()
        assert status(mount)["last_error"] is None
        faulty.fail("fsync", errno.EIO)
        with (mount.path / "set" / "image").open("wb") as image, pytest.raises(OSError, match="Input/output"):
            os.fsync(image.fileno())
        said = status(mount)
        assert said["last_error"] == "the store answered: Input/output error (EIO)"
        assert said["last_error_at"] >= said["store_since"]
        assert said["store_up"] is True


# What is no mount, or has no daemon


def test_no_mount_and_no_daemon_are_told_apart_from_a_store_that_is_down(mount: Mount, workdir: Path) -> None:
    for path in (workdir, workdir / "missing", mount.store):
        done = run_ckfs("status", path)
        assert (done.returncode, done.stdout) == (NOT_MOUNTED, "")
        assert done.stderr == f"ckfs: {path}: not on a ckfs mount\n"
    mount.kill()
    done = run_ckfs("status", mount.path)
    assert (done.returncode, done.stdout) == (NOT_MOUNTED, "")
    assert "is the mount's daemon running?" in done.stderr
    assert run_ckfs("status").returncode == 2


def test_a_daemon_that_does_nothing_is_not_waited_for(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGSTOP)
    try:
        done = run_ckfs("status", mount.path / "set")
    finally:
        mount.process.send_signal(signal.SIGCONT)
    assert done.returncode == NOT_MOUNTED
    assert "the mount's daemon does not answer" in done.stderr
