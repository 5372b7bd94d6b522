"""Quotas that btrfs enforces, from end to end: a store on a real btrfs, through a mount."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.engines.engine import Engine
from ckfs.engines.opening import open_engine
from ckfs.names import Uid
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.quota import Settings
from tests.support.commands import ckfs_as
from tests.support.loops import btrfs
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, BOB, as_user, errno_as

MIB = 1 << 20
LIMIT = 8 * MIB
CAROL = 2103
_FULL = r"image .* is (partial: a write failed|removed for good: the trash has no room)"
_PATIENCE_S = 30.0


@pytest.fixture
def store(root_and_fuse: None, workdir: Path) -> Iterator[Path]:
    with btrfs(workdir) as top:
        yield make_store(top, "--quota", "engine")


@pytest.fixture
def mount(store: Path, workdir: Path) -> Iterator[Mount]:
    with mounted(store, workdir / "mount", may_log=[_FULL]) as running:
        yield running


@pytest.fixture
def engine(store: Path) -> Iterator[Engine]:
    """As an admin sees the store's engine from beside the mount."""
    users = os.open(store / "users", os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.closing(open_engine(users, QuotaPolicy(mode=QuotaMode.ENGINE))) as opened:
        opened.set_limits(None, Settings(hard_bytes=LIMIT))
        yield opened


def _fill(path: Path, most_bytes: int = 4 * LIMIT) -> tuple[int, int]:
    """Write to *path* until that is refused. Returns how much was taken, and the errno of the refusal."""
    written = 0
    with path.open("ab", buffering=0) as file:
        while written < most_bytes:
            try:
                written += os.write(file.fileno(), os.urandom(64 << 10))
            except OSError as error:
                return written, error.errno or 0
    return written, 0


def _save(path: Path, size_bytes: int) -> None:
    path.write_bytes(os.urandom(size_bytes))


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_policy_of_such_a_store_says_who_enforces_and_its_format_is_a_later_one(store: Path) -> None:
    assert '\nmode = "engine"\n' in (store / "policy.toml").read_text()
    form = (store / "ckfs.toml").read_text()
    assert "\nformat = 2\n" in form
    assert '\nlayout = "realms"\n' in form
    assert not (store / "trash").exists()


def test_a_user_who_is_at_his_limit_gets_edquot_from_write_and_another_goes_on(
    mount: Mount, engine: Engine
) -> None:
    taken, refusal = as_user(ALICE, _fill, mount.path / "alices")
    assert refusal == errno.EDQUOT
    assert LIMIT - MIB < taken <= LIMIT
    as_user(BOB, _save, mount.path / "bobs", 4 * MIB)
    assert as_user(BOB, (mount.path / "bobs").stat).st_size == 4 * MIB


def test_what_was_there_stays_readable_and_unlink_makes_room(mount: Mount, engine: Engine) -> None:
    kept, filling = mount.path / "kept", mount.path / "filling"
    content = os.urandom(2 * MIB)
    as_user(ALICE, kept.write_bytes, content)
    assert as_user(ALICE, _fill, filling)[1] == errno.EDQUOT
    assert as_user(ALICE, kept.read_bytes) == content
    assert errno_as(ALICE, filling.unlink) == 0
    _eventually(lambda: as_user(ALICE, _fill, mount.path / "again", MIB)[0] == MIB)


def test_what_a_full_user_removed_gives_way_to_what_he_writes(mount: Mount, engine: Engine) -> None:
    old = mount.path / "old"
    as_user(ALICE, _save, old, 5 * MIB)
    as_user(ALICE, old.unlink)
    assert ckfs_as(ALICE, "trash", "ls", "--store", mount.path).text.count("old") == 1
    assert as_user(ALICE, _fill, mount.path / "new", 6 * MIB) == (6 * MIB, 0)
    assert "old" not in ckfs_as(ALICE, "trash", "ls", "--store", mount.path).text


def test_at_his_limit_a_user_may_remove_rename_and_change_modes_and_the_trash_keeps_what_he_removed(
    mount: Mount, engine: Engine
) -> None:
    kept, filling = mount.path / "kept", mount.path / "filling"
    as_user(ALICE, _save, kept, MIB)
    assert as_user(ALICE, _fill, filling)[1] == errno.EDQUOT
    renamed = mount.path / "renamed"
    assert errno_as(ALICE, kept.rename, renamed) == 0
    assert errno_as(ALICE, renamed.chmod, 0o600) == 0
    assert errno_as(ALICE, os.truncate, filling, 4 * MIB) == 0
    assert as_user(ALICE, _fill, filling)[1] == errno.EDQUOT
    assert errno_as(ALICE, renamed.unlink) == 0
    assert "renamed" in ckfs_as(ALICE, "trash", "ls", "--store", mount.path).text
    assert engine.account(Uid(ALICE)).limits.bytes.hard == LIMIT
    assert not any("limit-before" in name for name in os.listxattr(mount.store / "users"))


def test_trash_and_restore_stay_within_the_realm(mount: Mount, engine: Engine, store: Path) -> None:
    image = mount.path / "image"
    content = os.urandom(MIB)
    as_user(ALICE, image.write_bytes, content)
    as_user(ALICE, image.unlink)
    assert len(os.listdir(store / "users/2101/.ckfs-trash")) == 1
    assert MIB <= engine.account(Uid(ALICE)).used.bytes < 2 * MIB
    restored = ckfs_as(ALICE, "trash", "restore", "--store", mount.path, "--set", "image")
    assert restored.status == 0, restored.errors
    assert as_user(ALICE, image.read_bytes) == content


def test_links_fifos_and_symlinks_are_staged_within_the_realm(mount: Mount, store: Path) -> None:
    place = mount.path / "set"

    def make() -> str:
        place.mkdir()
        (place / "link").symlink_to("target")
        os.mkfifo(place / "fifo")
        (place / "file").write_bytes(b"x")
        os.link(place / "file", place / "second")
        (place / "file").rename(mount.path / "top")
        return os.readlink(place / "link")

    assert errno_as(ALICE, make) == errno.EXDEV  # a file with two links stays with both
    assert as_user(ALICE, lambda: os.readlink(place / "link")) == "target"
    assert os.listdir(store / "users/2101/.ckfs-staging") == []


def test_a_set_that_is_given_away_is_charged_to_the_new_owner(
    mount: Mount, engine: Engine, store: Path
) -> None:
    image = mount.path / "image"
    content = os.urandom(3 * MIB)
    image.write_bytes(content)
    os.chown(image, ALICE, ALICE)
    assert as_user(ALICE, image.read_bytes) == content
    _eventually(lambda: (store / "users/2101/").exists() and len(_places(store, ALICE)) == 1)
    _eventually(lambda: _places(store, 0) == [])
    account = engine.account(Uid(ALICE))
    assert 3 * MIB <= account.used.bytes < 4 * MIB
    assert account.limits.bytes.hard == LIMIT


def test_a_set_that_does_not_fit_stays_whose_it_was(mount: Mount, engine: Engine, store: Path) -> None:
    image = mount.path / "image"
    _save(image, LIMIT + MIB)
    assert errno_as(0, os.chown, image, ALICE, ALICE) == errno.EDQUOT
    assert image.stat().st_uid == 0
    assert _places(store, 0) == [image.name]


def test_a_set_of_a_full_user_can_be_given_to_another(mount: Mount, engine: Engine, store: Path) -> None:
    image, filling = mount.path / "image", mount.path / "filling"
    as_user(ALICE, _save, image, 2 * MIB)
    assert as_user(ALICE, _fill, filling)[1] == errno.EDQUOT
    assert errno_as(0, os.chown, image, BOB, BOB) == 0
    assert image.stat().st_uid == BOB
    _eventually(lambda: _places(store, ALICE) == ["filling"])
    assert len(_places(store, BOB)) == 1


def _places(store: Path, uid: int) -> list[str]:
    return sorted(name for name in os.listdir(store / f"users/{uid}") if not name.startswith(".ckfs-"))


@pytest.mark.parametrize("name", [".ckfs-trash", ".ckfs-staging", ".ckfs-x"])
def test_a_set_may_be_called_as_what_is_ckfs_own(mount: Mount, store: Path, name: str) -> None:
    image = mount.path / name
    as_user(ALICE, image.write_bytes, b"mine")
    assert as_user(ALICE, image.read_bytes) == b"mine"
    renamed = mount.path / ".ckfs-other"
    as_user(ALICE, lambda: str(image.rename(renamed)))
    assert as_user(ALICE, renamed.read_bytes) == b"mine"
    as_user(ALICE, lambda: str(renamed.rename(mount.path / "plain")))
    assert _places(store, ALICE) == ["plain"]


def test_fsck_finds_nothing_wrong_and_names_a_lost_set_again(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        for uid in (ALICE, BOB):
            place = mount.path / f"set{uid}"
            as_user(uid, place.mkdir)
            as_user(uid, _save, place / "image", MIB)
            as_user(uid, os.link, place / "image", place / "second")
            as_user(uid, _save, mount.path / f".ckfs-{uid}", 1000)
            as_user(uid, (mount.path / f".ckfs-{uid}").unlink)
            as_user(uid, _save, mount.path / f".ckfs-{uid}", 1000)
    clean = run_ckfs("fsck", store)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    (store / "names" / ".ckfs-2101").unlink()
    mended = run_ckfs("fsck", "--repair", store)
    assert "place-orphan" in mended.stdout
    assert os.path.lexists(store / "names" / ".ckfs-2101"), mended.stdout
    assert run_ckfs("fsck", store).returncode == 0


def test_a_realm_that_the_engine_cannot_take_is_one_error_and_one_line(store: Path, workdir: Path) -> None:
    (store / "users" / str(CAROL)).mkdir()
    may_log = [r"quotas by btrfs: nothing can be stored for uid 2103: users/2103 is no subvolume"]
    with mounted(store, workdir / "mount", may_log=may_log) as mount:
        assert errno_as(CAROL, (mount.path / "set").mkdir) == errno.EIO
        assert errno_as(ALICE, (mount.path / "set").mkdir) == 0
        assert sum("users/2103" in line for line in mount.log().splitlines()) == 1


def test_a_store_of_the_other_layout_is_not_mounted_with_an_engine(
    root_and_fuse: None, workdir: Path
) -> None:
    store = make_store(workdir)
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace('mode = "ledger"', 'mode = "engine"'))
    done = run_ckfs("mount", store, workdir, "-f")
    assert done.returncode == 3
    assert "ckfs init --quota engine" in done.stderr
