"""A store's path that leads to another store, or to an empty directory: when mounting, and under a living mount."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.store.layout import policy_text
from tests.support.mounting import Mount, is_mounted, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

UNUSABLE = 3
PATIENCE_S = 60.0


@pytest.fixture
def private(workdir: Path) -> Path:
    directory = workdir / "private"
    directory.mkdir(mode=0o700)
    return directory


def new_store(private: Path, name: str) -> Path:
    (private / name).mkdir()
    return make_store(private / name)


def id_of(store: Path) -> str:
    return (store / "ckfs.toml").read_text().split('id = "')[1].split('"')[0]


@contextlib.contextmanager
def seen_at(private: Path, store: Path) -> Iterator[Path]:
    """*store* mounted at a path of its own, as a network store is."""
    path = private / "seen"
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", store, path], check=True)
    try:
        yield path
    finally:
        while is_mounted(path):
            subprocess.run(["umount", "-l", path], check=True)


def everything_in(store: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.lstat().st_ctime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(store.rglob("*"))
    }


def status(mount: Mount) -> dict[str, object]:
    said: dict[str, object] = json.loads(run_ckfs("status", mount.path, "--json").stdout)
    return said


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def test_only_the_store_with_the_id_is_mounted(private: Path, workdir: Path) -> None:
    right, wrong, empty = new_store(private, "right"), new_store(private, "wrong"), private / "empty"
    empty.mkdir()
    option = f"store_id={id_of(right)}"
    before = everything_in(wrong)
    for store in (wrong, empty):
        (workdir / "refused").mkdir(exist_ok=True)
        done = run_ckfs("mount", store, workdir / "refused", "-o", option)
        assert done.returncode == UNUSABLE
        assert not is_mounted(workdir / "refused")
    assert everything_in(wrong) == before
    assert list(empty.iterdir()) == []
    done = run_ckfs("mount", wrong, workdir / "refused", "-o", option)
    assert f"this is the store {id_of(wrong)}, and store_id= says {id_of(right)}" in done.stderr
    with mounted(right, workdir / "mount", options=[option]) as mount:
        assert status(mount)["store_id"] == id_of(right)


@pytest.mark.parametrize("instead", ["another store", "an empty directory"])
def test_a_mount_stays_with_its_store_whatever_appears_at_the_path(
    private: Path, workdir: Path, instead: str
) -> None:
    """As if the store had been unmounted by force, and something else mounted there."""
    right = new_store(private, "right")
    if instead == "another store":
        other = new_store(private, "other")
        (other / "policy.toml").write_text("[protection]\nkeep = 0\n")
    else:
        other = private / "other"
        other.mkdir()
    before = everything_in(other)
    (right / "policy.toml").write_text("[liveness]\nlease = 1\n")
    with seen_at(private, right) as path, mounted(path, workdir / "mount") as mount:
        as_user(ALICE, (mount.path / "earlier").write_bytes, b"earlier")
        assert subprocess.run(["umount", path], capture_output=True, check=False).returncode != 0  # in use
        subprocess.run(["umount", "-l", path], check=True)
        subprocess.run(["mount", "--bind", other, path], check=True)

        as_user(ALICE, (mount.path / "later").write_bytes, b"later")
        assert run_ckfs("quota", "set", str(ALICE), "--hard", "1G", "--store", mount.path).returncode == 0
        policy = policy_text(str(right))
        (right / "policy.toml").write_text(policy + "[protection]\nkeep = 5\n")
        eventually(lambda: status(mount)["keep"] == 5)
        eventually(lambda: (right / "limits.toml").exists())
        assert as_user(ALICE, (mount.path / "earlier").read_bytes) == b"earlier"
        assert sorted(os.listdir(mount.path)) == ["earlier", "later"]
        assert (right / "users" / str(ALICE) / "later").read_bytes() == b"later"
        assert everything_in(other) == before
