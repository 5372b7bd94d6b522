"""The btrfs driver on a real btrfs: realms, limits, and what it reads of them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.engines.engine import Engine
from ckfs.engines.opening import open_engine
from ckfs.errors import EngineFailed, Unsupported
from ckfs.names import Gid, Uid
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.quota import Limit, Said, Settings
from tests.support.loops import btrfs

ALICE, BOB = Uid(2101), Uid(2102)
MIB = 1 << 20
POLICY = QuotaPolicy(mode=QuotaMode.ENGINE)


@pytest.fixture(scope="module")
def top(module_workdir: Path) -> Iterator[Path]:
    with btrfs(module_workdir) as mounted:
        yield mounted


@pytest.fixture
def users(top: Path, request: pytest.FixtureRequest) -> Path:
    """``users/`` of a store of this test."""
    path = top / str(request.node.name) / "users"
    path.parent.mkdir()
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture
def engine(users: Path) -> Iterator[Engine]:
    opened = _opened(users)
    yield opened
    opened.close()


def _opened(users: Path, quota: QuotaPolicy = POLICY) -> Engine:
    return open_engine(os.open(users, os.O_RDONLY | os.O_DIRECTORY), quota)


def _fill(path: Path, most_bytes: int) -> int:
    """Write to *path* until the engine refuses. Returns how much it took."""
    written, refusal = 0, errno.EDQUOT
    with path.open("wb", buffering=0) as file:
        while written < most_bytes:
            try:
                written += file.write(os.urandom(64 << 10))
            except OSError as error:
                refusal = error.errno or 0
                break
    assert refusal == errno.EDQUOT
    return written


def test_btrfs_is_found_by_itself(engine: Engine) -> None:
    assert engine.name == "btrfs"
    assert engine.tried


def test_a_realm_is_a_subvolume_of_its_user_alone(engine: Engine, users: Path) -> None:
    engine.prepare(ALICE, Gid(2201))
    status = (users / "2101").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (2101, 2201, 0o700)
    assert status.st_ino == 256
    engine.prepare(ALICE, Gid(2201))


def test_what_a_process_left_that_died_while_it_made_a_realm_is_finished(users: Path) -> None:
    first = _opened(users)
    first.close()
    subprocess.run(["btrfs", "subvolume", "create", users / "2101"], check=True, capture_output=True)
    second = _opened(users)
    second.prepare(ALICE, Gid(2101))
    second.close()
    assert (users / "2101").stat().st_uid == 2101


def test_a_directory_in_the_place_of_a_realm_is_named_with_the_way_out(engine: Engine, users: Path) -> None:
    (users / "2101").mkdir()
    with pytest.raises(EngineFailed, match=r"users/2101 is no subvolume.*btrfs subvolume create"):
        engine.prepare(ALICE, Gid(2101))


def test_at_his_limit_a_user_gets_edquot_and_another_goes_on(engine: Engine, users: Path) -> None:
    for uid in (ALICE, BOB):
        engine.prepare(uid, Gid(uid))
    engine.set_limits(ALICE, Settings(hard_bytes=8 * MIB))
    taken = _fill(users / "2101" / "image", 64 * MIB)
    assert 7 * MIB < taken <= 8 * MIB
    assert _fill(users / "2102" / "image", 16 * MIB) == 16 * MIB


def test_usage_and_limit_are_what_btrfs_says(engine: Engine, users: Path) -> None:
    for uid in (ALICE, BOB):
        engine.prepare(uid, Gid(uid))
    engine.set_limits(ALICE, Settings(hard_bytes=8 * MIB))
    (users / "2101" / "image").write_bytes(os.urandom(3 * MIB))
    account = engine.account(ALICE)
    assert account.limits.bytes == Limit(hard=8 * MIB)
    assert 3 * MIB <= account.used.bytes < 4 * MIB
    room_bytes = engine.room(ALICE).bytes
    assert room_bytes is not None
    assert 4 * MIB < room_bytes <= 5 * MIB
    assert engine.accounts() == [account, engine.account(BOB)]
    assert engine.room(BOB).bytes is None


def test_nobody_whom_nothing_is_stored_of_has_used_anything(engine: Engine) -> None:
    engine.set_limits(None, Settings(hard_bytes=8 * MIB))
    account = engine.account(Uid(2999))
    assert not account.total
    assert account.limits.bytes == Limit(hard=8 * MIB)


def test_the_default_comes_to_new_realms_and_to_those_that_have_it(engine: Engine) -> None:
    engine.prepare(ALICE, Gid(2101))
    engine.set_limits(None, Settings(hard_bytes=8 * MIB))
    engine.prepare(BOB, Gid(2102))
    engine.set_limits(BOB, Settings(hard_bytes=4 * MIB))
    assert [account.limits.bytes.hard for account in engine.accounts()] == [8 * MIB, 4 * MIB]
    engine.set_limits(None, Settings(hard_bytes=16 * MIB))
    assert [account.limits.bytes.hard for account in engine.accounts()] == [16 * MIB, 4 * MIB]
    engine.set_limits(BOB, Settings())
    assert engine.account(BOB).limits.bytes.hard == 16 * MIB


def test_who_is_said_to_have_no_limit_has_none_also_for_the_next_mount(engine: Engine, users: Path) -> None:
    engine.set_limits(None, Settings(hard_bytes=8 * MIB))
    engine.set_limits(ALICE, Settings(hard_bytes=Said.NONE))
    other = _opened(users)
    other.prepare(ALICE, Gid(2101))
    assert other.account(ALICE).limits.bytes == Limit()
    assert other.all_settings() == {
        None: Settings(hard_bytes=8 * MIB),
        ALICE: Settings(hard_bytes=Said.NONE),
    }
    other.close()


def test_a_limit_that_an_admin_set_by_hand_is_shown_and_outlives_a_new_default(
    engine: Engine, users: Path
) -> None:
    engine.prepare(ALICE, Gid(2101))
    subprocess.run(["btrfs", "qgroup", "limit", "5M", users / "2101"], check=True)
    engine.set_limits(None, Settings(hard_bytes=8 * MIB))
    assert engine.account(ALICE).limits.bytes.hard == 5 * MIB


def test_the_default_is_not_for_root_nor_for_the_account_that_keeps_the_store(
    engine: Engine, users: Path
) -> None:
    os.chown(users, 2100, 2100)
    engine.set_limits(None, Settings(hard_bytes=8 * MIB))
    for uid in (Uid(0), Uid(2100)):
        engine.prepare(uid, Gid(uid))
    assert [account.limits.bytes for account in engine.accounts()] == [Limit(), Limit()]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(soft_bytes=MIB), "no soft limits"),
        (Settings(hard_files=10), "number of files"),
        (Settings(grace_s=60), "grace time of its own"),
    ],
)
def test_what_btrfs_cannot_do_is_refused_and_nothing_is_changed(
    engine: Engine, settings: Settings, why: str
) -> None:
    with pytest.raises(Unsupported, match=why):
        engine.set_limits(ALICE, settings)
    assert engine.all_settings() == {}


def test_at_the_limit_it_is_told_from_the_end_of_the_store(engine: Engine, users: Path) -> None:
    for uid in (ALICE, BOB):
        engine.prepare(uid, Gid(uid))
    engine.set_limits(ALICE, Settings(hard_bytes=MIB))
    assert engine.is_at_limit(ALICE)
    assert not engine.is_at_limit(BOB)


def test_headroom_is_for_the_moment_of_a_note_alone(engine: Engine, users: Path) -> None:
    engine.prepare(ALICE, Gid(2101))
    engine.set_limits(ALICE, Settings(hard_bytes=4 * MIB))
    _fill(users / "2101" / "image", 16 * MIB)
    note = (users / "2101" / "image", b"user.note", b"x" * 100)
    with pytest.raises(OSError, match="quota exceeded"):
        os.setxattr(*note)
    with engine.headroom(ALICE):
        os.setxattr(*note)
    assert engine.account(ALICE).limits.bytes.hard == 4 * MIB


def test_headroom_of_a_process_that_died_is_taken_back_by_the_next(engine: Engine, users: Path) -> None:
    engine.prepare(ALICE, Gid(2101))
    engine.set_limits(ALICE, Settings(hard_bytes=4 * MIB))
    child = os.fork()
    if child == 0:
        with engine.headroom(ALICE):
            os._exit(0)
    os.waitpid(child, 0)
    assert engine.account(ALICE).limits.bytes.hard == 5 * MIB
    other = _opened(users)
    other.prepare(ALICE, Gid(2101))
    other.close()
    assert engine.account(ALICE).limits.bytes.hard == 4 * MIB


def test_who_has_no_limit_needs_no_headroom(engine: Engine) -> None:
    engine.prepare(ALICE, Gid(2101))
    with engine.headroom(ALICE):
        assert engine.account(ALICE).limits.bytes == Limit()
