"""``ckfs status``, and what it counts: refusals that are routine apart from others, items put into the trash."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckfs import __version__
from tests.support.agents import Agent
from tests.support.commands import ckfs_as
from tests.support.faultfs import FaultStore, fault_store
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user, errno_as

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]


def status(mount: Mount) -> dict[str, Any]:
    done = run_ckfs("status", mount.path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
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
    since = dt.datetime.fromisoformat(said.pop("store_since"))
    assert abs((dt.datetime.now(dt.UTC) - since).total_seconds()) < 60
    assert said == {
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
    assert f"store:        {mount.store}\n" in ran.text
    assert "store is:     up, since " in ran.text


def test_anything_on_the_mount_leads_to_it(mount: Mount, image: Path) -> None:
    assert json.loads(run_ckfs("status", image, "--json").stdout)["mountpoint"] == str(mount.path)


def test_it_counts_who_writes(mount: Mount) -> None:
    with (mount.path / "one").open("wb"), (mount.path / "two").open("wb"):
        assert status(mount)["open_writers"] == 2


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
            down = status(mount)
            assert down["store_up"] is False
            assert down["store_since"] > since
            ran = ckfs_as(ALICE, "status", mount.path)
            assert "store is:     down: calls fail until it answers, since " in ran.text
            ran = ckfs_as(ALICE, "trash", "ls", "--store", mount.path)
            assert (ran.status, ran.errors) == (
                3,
                "ckfs: the store does not answer: the store is down\n",
            )
        finally:
            faulty.clear()
            faulty.release()
