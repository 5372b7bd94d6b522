"""Superseded checkpoints on real mounts: they go by themselves when their time is over, and when their owner's store is full."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SET = "7.server.CK"
NAMES = ("one", "two", "three", "four")
MIB = 1 << 20
LIMIT_S = 30.0


def save(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def fill(mount: Mount, size: int) -> Path:
    """Four checkpoints of Alice's, of which two are superseded."""
    path = mount.path / SET
    path.mkdir()
    os.chown(path, ALICE, ALICE)
    for name in NAMES:
        as_user(ALICE, save, path / name, name[:1].encode() * size)
    return path


def in_trash(store: Path) -> list[dict[str, object]]:
    done = run_ckfs("trash", "ls", "--json", "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def test_they_go_to_the_trash_when_their_time_is_over(store: Path, workdir: Path) -> None:
    policy = store / "policy.toml"
    text = policy.read_text().replace("superseded_days = 30.0", "superseded_days = 1e-8")
    policy.write_text(text.replace("lease = 60.0", "lease = 0.4"))
    with mounted(store, workdir / "n", node="n") as node:
        path = fill(node, 1000)
        assert sorted(os.listdir(path)) == sorted(NAMES), "a node keeps no house"
        with mounted(store, workdir / "s", node="s", role="server") as server:
            deadline = time.monotonic() + LIMIT_S
            while server.log().count("superseded for its time: ") < 2:
                assert time.monotonic() < deadline, "they do not go"
                time.sleep(0.02)
            assert sorted(os.listdir(path)) == ["four", "three"]
            rows = in_trash(store)
            assert [(row["path"], row["program"], row["node"]) for row in rows] == [
                ("one", "ckfs", "s"),
                ("two", "ckfs", "s"),
            ]
            for row in rows:
                assert f"superseded for its time: {SET}/{row['path']} to the trash" in server.log()
        assert sorted(os.listdir(path)) == ["four", "three"]
        done = run_ckfs("trash", "restore", *(str(row["item"]) for row in rows), "--store", store)
        assert (done.returncode, done.stderr) == (0, "")
        assert as_user(ALICE, (path / "one").read_bytes) == b"o" * 1000


def kept_until(path: Path) -> str:
    return os.getxattr(path, "user.ckfs.kept_until").decode()


def test_an_attribute_says_until_when_each_is_kept(mount: Mount) -> None:
    path = fill(mount, 1000)
    (path / "half.tmp").write_bytes(b"half")
    assert kept_until(path / "four") == kept_until(path / "three") == "until outlived"
    days = dt.datetime.fromisoformat(kept_until(path / "two")) - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=29) < days <= dt.timedelta(days=30)
    assert run_ckfs("pin", path / "one").returncode == 0
    assert kept_until(path / "one") == "forever"
    with pytest.raises(OSError, match="No data available"):
        kept_until(path / "half.tmp")


def test_without_a_time_the_superseded_are_kept_until_room_is_needed(store: Path, workdir: Path) -> None:
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace("superseded_days = 30.0", "superseded_days = 0"))
    with mounted(store, workdir / "n") as mount:
        assert kept_until(fill(mount, 1000) / "one") == "until room is needed"


@pytest.fixture
def small(workdir: Path) -> Iterator[Path]:
    """A store on a file system of 8 MiB."""
    private = workdir / "small"
    private.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "ckfs-test", private], check=True)
    try:
        yield make_store(private)
    finally:
        subprocess.run(["umount", private], check=True)


def test_they_give_way_to_their_owner_when_the_store_is_full(small: Path, workdir: Path) -> None:
    """Those alone: when they are gone the store is full, and the newest are kept."""
    with mounted(small, workdir / "n", node="n", may_log=["image too much is partial"]) as mount:
        path = fill(mount, 3 * MIB // 2)
        assert sorted(os.listdir(path)) == sorted(NAMES)
        as_user(ALICE, save, mount.path / "more", bytes(4 * MIB))
        assert sorted(os.listdir(path)) == ["four", "three"]
        assert in_trash(small) == []
        with pytest.raises(OSError, match="No space left"):
            as_user(ALICE, save, mount.path / "too much", bytes(4 * MIB))
        for name in ("three", "four"):
            assert as_user(ALICE, (path / name).read_bytes) == name[:1].encode() * (3 * MIB // 2)
