"""``ckfs quota`` on real mounts: who sees what, what root sets, what is refused, and counting anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.commands import ckfs_as
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.quotas import count_anew, set_default, set_quota, standing
from tests.support.users import ALICE, BOB, as_user

pytestmark = pytest.mark.root

K, G = 1 << 10, 1 << 30
UNIT = 4096


def save(directory: Path, size: int, uid: int = ALICE) -> None:
    """A set of *uid*'s with one image of *size* bytes."""

    def make() -> None:
        directory.mkdir()
        (directory / "image").write_bytes(os.urandom(size))

    as_user(uid, make)


@pytest.fixture
def used(mount: Mount) -> Mount:
    """Alice has an image of 100 KiB, and bob one of 8 KiB."""
    save(mount.path / "hers", 100 * K)
    save(mount.path / "his", 8 * K, BOB)
    count_anew(mount.store)
    return mount


# Seeing


def test_root_sees_all_who_have_something(used: Mount) -> None:
    shown = run_ckfs("quota", "--store", used.path).stdout.splitlines()
    assert shown[0].split()[:4] == ["OWNER", "STATE", "USED", "CLAIMED"]
    assert [line.split()[0] for line in shown[1:-1]] == [str(ALICE), str(BOB)]
    assert shown[1].split() == [
        str(ALICE),
        "-",
        "104K",
        "0",
        "0",
        "none",
        "none",
        "-",
        "2",
        "none",
        "none",
        "-",
    ]
    assert shown[-1] == "default: soft none, hard none, files soft none, hard none, grace 7d"


def test_root_may_choose_and_name_the_store_itself(used: Mount) -> None:
    by_mount = run_ckfs("quota", str(BOB), "--store", used.path).stdout
    by_store = run_ckfs("quota", "show", str(BOB), "--store", used.store).stdout
    assert by_mount == by_store
    assert str(ALICE) not in by_store


def test_without_any_mount_root_sees_the_store(used: Mount) -> None:
    before = run_ckfs("quota", "--store", used.store).stdout
    used.umount()
    assert run_ckfs("quota", "--store", used.store).stdout == before


def test_a_user_sees_himself(used: Mount) -> None:
    ran = ckfs_as(ALICE, "quota", "--store", used.path)
    assert ran.status == 0, ran.errors
    lines = ran.text.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(ALICE)]
    assert ckfs_as(ALICE, "quota", str(ALICE), "--store", used.path) == ran


def test_a_user_sees_nobody_else(used: Mount) -> None:
    ran = ckfs_as(ALICE, "quota", str(BOB), "--store", used.path)
    assert (ran.status, ran.text) == (5, "")
    assert ckfs_as(ALICE, "quota", str(ALICE), str(BOB), "--store", used.path).status == 5
    assert ckfs_as(ALICE, "quota", "--store", used.store).status == 5


def test_json_is_in_bytes(used: Mount) -> None:
    set_quota(used.path, ALICE, "--soft", "1.5T", "--hard", "2T", "--files", "10k")
    row = standing(used.path, ALICE)
    assert row == {
        "owner": str(ALICE),
        "uid": ALICE,
        "state": "ok",
        "used_bytes": 100 * K + UNIT,
        "claimed_bytes": row["claimed_bytes"],
        "trash_bytes": 0,
        "soft_bytes": 1536 * G,
        "hard_bytes": 2048 * G,
        "grace_bytes_s": None,
        "used_files": 2,
        "claimed_files": row["claimed_files"],
        "soft_files": None,
        "hard_files": 10_000,
        "grace_files_s": None,
    }
    whole = json.loads(run_ckfs("quota", "--json", "--store", used.path).stdout)
    assert whole["default"] == {
        "soft_bytes": None,
        "hard_bytes": None,
        "soft_files": None,
        "hard_files": None,
        "grace_s": 604_800.0,
    }


def test_what_lies_in_the_trash_counts_and_is_shown(used: Mount) -> None:
    as_user(ALICE, os.unlink, used.path / "hers/image")
    count_anew(used.store)
    row = standing(used.path, ALICE)
    assert (row["trash_bytes"], row["used_bytes"]) == (100 * K, 100 * K + UNIT)


def test_who_is_over_a_soft_limit_is_marked_with_the_time_left(used: Mount) -> None:
    set_quota(used.path, ALICE, "--soft", "50K", "--grace", "2d")
    row = standing(used.path, ALICE)
    assert row["state"] == "grace"
    assert 172_000 < row["grace_bytes_s"] <= 172_800
    line = run_ckfs("quota", str(ALICE), "--store", used.path).stdout.splitlines()[1]
    assert line.split()[1] == "grace"
    set_quota(used.path, ALICE, "--grace", "0s")
    row = standing(used.path, ALICE)
    assert (row["state"], row["grace_bytes_s"]) == ("over", 0)
    assert "ended" in run_ckfs("quota", str(ALICE), "--store", used.path).stdout


def test_who_is_over_a_lowered_hard_limit_is_marked(used: Mount) -> None:
    set_quota(used.path, ALICE, "--hard", "50K")
    assert standing(used.path, ALICE)["state"] == "over"
    set_quota(used.path, ALICE, "--hard", str(100 * K + UNIT))
    assert standing(used.path, ALICE)["state"] == "full"


# Setting


def test_what_is_not_given_stays(mount: Mount) -> None:
    set_quota(
        mount.path, ALICE, "--soft", "400G", "--hard", "500G", "--files-soft", "1k", "--files-hard", "2k"
    )
    done = run_ckfs("quota", "set", str(ALICE), "--hard", "600G", "--store", mount.path)
    assert done.stdout == f"{ALICE}: soft 400G, hard 600G, files soft 1000, hard 2000, grace 7d\n"


def test_the_default_is_for_all_of_whom_nothing_is_said(mount: Mount) -> None:
    set_default(mount.path, "--hard", "500G", "--grace", "3d")
    set_quota(mount.path, BOB, "--hard", "none")
    assert standing(mount.path, ALICE)["hard_bytes"] == 500 * G
    assert standing(mount.path, BOB)["hard_bytes"] is None
    set_quota(mount.path, BOB, "--hard", "default")
    assert standing(mount.path, BOB)["hard_bytes"] == 500 * G
    shown = run_ckfs("quota", "default", "--store", mount.path)
    assert shown.stdout == "default: soft none, hard 500G, files soft none, hard none, grace 3d\n"


def test_changes_are_logged_with_who_made_them(mount: Mount) -> None:
    set_quota(mount.path, ALICE, "--hard", "500G")
    set_default(mount.path, "--files", "none")
    assert f"the quota of uid {ALICE}: hard bytes 500G, says uid 0" in mount.log()
    assert "the default quota: hard files none, says uid 0" in mount.log()


def test_limits_are_copied_into_the_store(mount: Mount) -> None:
    set_quota(mount.path, ALICE, "--hard", "1K")
    assert "hard_bytes = 1024" in (mount.store / "limits.toml").read_text()
    mount.umount()
    set_quota(mount.store, ALICE, "--hard", "2K")
    assert "hard_bytes = 2048" in (mount.store / "limits.toml").read_text()


def test_all_mounts_and_the_store_say_the_same(two_mounts: tuple[Mount, Mount]) -> None:
    one, other = two_mounts
    set_quota(one.path, ALICE, "--hard", "1G")
    assert standing(other.path, ALICE)["hard_bytes"] == G
    set_quota(one.store, ALICE, "--hard", "2G")
    assert standing(other.path, ALICE)["hard_bytes"] == 2 * G


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--soft", "2G", "--hard", "1G"), "would be above the hard one"),
        (("--hard", "-1"), "not a size"),
        (("--hard", "1e400"), "not a size"),
        (("--hard", "٣"), "not a size"),
        (("--hard", "9" * 30), "not a size"),
        (("--hard", "20GB"), "powers of 1000 or of 1024"),
        (("--files", "1.5"), "not a number of files"),
        (("--grace", "soon"), "not a span of time"),
        (("--hardest", "1G"), "unrecognized arguments"),
        ((), "nothing to set"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_changes_nothing(
    module_mount: Mount, arguments: tuple[str, ...], words: str
) -> None:
    done = run_ckfs("quota", "set", str(ALICE), *arguments, "--store", module_mount.path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert standing(module_mount.path, ALICE)["hard_bytes"] is None


def test_a_soft_limit_above_the_default_hard_one_is_refused(mount: Mount) -> None:
    set_default(mount.path, "--hard", "1G")
    done = run_ckfs("quota", "set", str(ALICE), "--soft", "2G", "--store", mount.path)
    assert done.returncode == 2
    assert "above the hard one of 1G" in done.stderr


def test_users_set_nothing(module_mount: Mount) -> None:
    for arguments in (
        ["set", str(ALICE), "--hard", "none"],
        ["default", "--hard", "none"],
        ["check", "--repair"],
    ):
        ran = ckfs_as(ALICE, "quota", *arguments, "--store", module_mount.path)
        assert (ran.status, ran.text) == (5, "")
        assert ran.errors.count("\n") == 1


def test_unknown_users_are_named(module_mount: Mount) -> None:
    done = run_ckfs("quota", "set", "no-such-user", "--hard", "1G", "--store", module_mount.path)
    assert done.returncode == 2
    assert "there is no such user" in done.stderr


# Counting anew


def test_a_ledger_that_is_right_is_said_to_be(used: Mount) -> None:
    done = run_ckfs("quota", "check", "--store", used.store)
    assert (done.returncode, done.stdout) == (0, "owners counted: 2; differences: 0; mended: 0\n")


def test_every_difference_is_named_and_mended_only_when_asked(used: Mount) -> None:
    used.umount()
    place = used.store / f"users/{ALICE}/hers/beside"
    place.write_bytes(os.urandom(UNIT))  # by an admin, around ckfs
    os.chown(place, ALICE, ALICE)
    expected = f"{ALICE}: the ledger says {100 * K + UNIT} bytes (104K) and 2 files, counted {100 * K + 2 * UNIT} bytes (108K) and 3 files"
    done = run_ckfs("quota", "check", "--store", used.store)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [expected, "owners counted: 2; differences: 1; mended: 0"]
    rows = json.loads(run_ckfs("quota", "check", str(ALICE), "--json", "--store", used.store).stdout)
    assert [(row["uid"], row["counted_bytes"], row["mended"]) for row in rows] == [
        (ALICE, 100 * K + 2 * UNIT, False)
    ]
    assert run_ckfs("quota", "check", str(BOB), "--store", used.store).returncode == 0
    done = run_ckfs("quota", "check", "--repair", "--store", used.store)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{expected}: mended", "owners counted: 2; differences: 1; mended: 1"]
    assert run_ckfs("quota", "check", "--store", used.store).returncode == 0


# Where there are none


def test_where_quotas_are_off_a_line_says_so(store: Path, workdir: Path) -> None:
    (store / "policy.toml").write_text('[quota]\nmode = "none"\n')
    with mounted(store, workdir / "m") as mount:
        for arguments in (["quota"], ["quota", "set", str(ALICE), "--hard", "1G"], ["quota", "check"]):
            for where in (mount.path, store):
                done = run_ckfs(*arguments, "--store", where)
                assert done.returncode in (1, 2)
                assert "quotas are off" in done.stderr
        save(mount.path / "s", UNIT)
        assert as_user(ALICE, os.statvfs, mount.path).f_blocks > 0


def test_a_read_only_mount_says_where_to_ask(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "m", options=["ro"]) as mount:
        done = run_ckfs("quota", "--store", mount.path)
        assert done.returncode == 1
        assert "read-only" in done.stderr
        assert run_ckfs("quota", "--store", store).returncode == 0
