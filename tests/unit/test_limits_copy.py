"""limits.toml: the copy, in the store, of what was said of limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckfs.errors import StoreUnusable
from ckfs.names import Uid
from ckfs.policy.quota import Said, Settings
from ckfs.store.identity import ROOT
from ckfs.store.limits import Limits, decode, encode, read, write

ALICE, BOB = Uid(2101), Uid(2102)
ALL: Limits = {
    None: Settings(soft_bytes=400 << 30, hard_bytes=500 << 30, grace_s=604_800),
    ALICE: Settings(hard_bytes=Said.NONE, hard_files=0),
    BOB: Settings(soft_files=10, hard_files=20, grace_s=Said.NONE),
}


def test_what_is_written_is_read() -> None:
    assert decode(encode(ALL), "store") == ALL


def test_who_has_nothing_of_his_own_is_not_named() -> None:
    assert decode(encode({ALICE: Settings(), BOB: Settings(hard_bytes=1)}), "store") == {
        BOB: Settings(hard_bytes=1)
    }


def test_a_store_without_a_copy_has_no_limits(tmp_path: Path) -> None:
    assert read(str(tmp_path)) == {}


def test_the_copy_follows_what_is_said(tmp_path: Path) -> None:
    write(str(tmp_path), ROOT, ALL)
    assert read(str(tmp_path)) == ALL
    write(str(tmp_path), ROOT, {})
    assert read(str(tmp_path)) == {}


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    write(str(tmp_path), ROOT, {ALICE: Settings()})
    assert list(tmp_path.iterdir()) == []
    write(str(tmp_path), ROOT, ALL)
    before = (tmp_path / "limits.toml").stat().st_ino
    write(str(tmp_path), ROOT, ALL)
    assert (tmp_path / "limits.toml").stat().st_ino == before


def test_a_damaged_copy_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_bytes(b"\xff\xfe")
    write(str(tmp_path), ROOT, ALL)
    assert read(str(tmp_path)) == ALL


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[", "not valid TOML"),
        ("", "has other keys"),
        ("format = 1\nlimits = 1", "has other keys"),
        ("format = 1\nowners = 1", "something else than a table"),
        ("format = 1\n[owners.alice]\nhard_bytes = 1", "names alice, which is no uid"),
        ("format = 1\n[owners.01]\nhard_bytes = 1", "no uid"),
        ("format = 1\n[owners.4294967295]\nhard_bytes = 1", "no uid"),
        ("format = 1\n[default]\nhard = 1", "something else of an owner"),
        ("format = 1\n[default]\nhard_bytes = -1", "neither a whole number"),
        ("format = 1\n[default]\nhard_bytes = true", "neither a whole number"),
        ("format = 1\n[default]\nhard_bytes = 'default'", "neither a whole number"),
        ("format = 1\n[default]\nhard_bytes = 4611686018427387905", "neither a whole number"),
    ],
)
def test_what_cannot_be_meant_is_named(text: str, rule: str) -> None:
    with pytest.raises(StoreUnusable, match=rule) as refused:
        decode(text, "store")
    assert "set the limits again" in str(refused.value)


def test_what_a_later_ckfs_has_written() -> None:
    with pytest.raises(StoreUnusable, match="update ckfs"):
        decode("format = 2\n", "store")
