"""The layout of realms, on any file system: all of a user's in one directory of his, and what older versions make of it."""

from __future__ import annotations

import os
import stat
import time
import tomllib
from pathlib import Path

import pytest

from ckfs.errors import StoreUnusable, Unsupported
from ckfs.fs.enforced import engine_of
from ckfs.model import Owner, Record
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.policy import settings
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.store import formats
from ckfs.store.entries import SetEntry, name_beside, on_the_way, place_beside, place_of
from ckfs.store.layout import open_store
from ckfs.store.leftovers import Leftovers
from ckfs.store.realms import Arrangement, realm_of
from ckfs.store.record import new_inode
from ckfs.store.spots import Found, Spot
from tests.fs.cores import keeper_of, new_store
from tests.support.nfs import on_server

ALICE = Owner(Uid(2101), Gid(2101))
SHARED, REALMS = Arrangement.SHARED, Arrangement.REALMS


def test_a_store_of_the_layout_of_old_keeps_the_format_of_old(directory: Path) -> None:
    table = tomllib.loads((new_store(directory, SHARED) / "ckfs.toml").read_text())
    assert (table["format"], "layout" in table) == (1, False)


def test_a_store_of_realms_is_of_a_format_that_older_versions_refuse(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_store(directory, REALMS)
    table = tomllib.loads((path / "ckfs.toml").read_text())
    assert (table["format"], table["layout"]) == (2, "realms")
    monkeypatch.setattr(formats, "FORMAT", 1)  # as older versions have it
    with pytest.raises(StoreUnusable, match=r"a store of format 2, and ckfs .* knows up to 1: update ckfs"):
        open_store(str(path), keeper_of(path))


@pytest.mark.parametrize(
    ("before", "after"),
    [('"realms"', '"villages"'), ('layout = "realms"', ""), ("format = 2", "format = 1")],
)
def test_a_layout_that_is_not_known_is_refused(directory: Path, before: str, after: str) -> None:
    path = new_store(directory, REALMS)
    form = on_server(path) / "ckfs.toml"
    form.write_text(form.read_text().replace(before, after))
    with pytest.raises(StoreUnusable, match="does not know together"):
        open_store(str(path), keeper_of(path))


def test_where_what_lies() -> None:
    uid = Uid(2101)
    assert SHARED.trash(uid) == (b"trash", b"2101")
    assert SHARED.staging(uid) == (b"staging",)
    assert REALMS.trash(uid) == (b"users", b"2101", b".ckfs-trash")
    assert REALMS.staging(uid) == (b"users", b"2101", b".ckfs-staging")
    assert SHARED.is_trash((b"trash", b"2101", b"x"))
    assert not SHARED.is_trash((b"users", b"2101", b".ckfs-trash"))
    assert REALMS.is_trash((b"users", b"2101", b".ckfs-trash", b"x"))
    assert not REALMS.is_trash((b"users", b"2101", b"set"))
    assert (SHARED.is_place(b".ckfs-x"), REALMS.is_place(b".ckfs-x"), REALMS.is_place(b".c")) == (
        True,
        False,
        True,
    )


@pytest.mark.parametrize(
    ("components", "uid"),
    [((b"users", b"2101", b"set"), 2101), ((b"users", b"x"), None), ((b"names",), None), ((b"users",), None)],
)
def test_whose_realm_a_path_leads_into(components: tuple[bytes, ...], uid: int | None) -> None:
    assert realm_of(components) == uid


@pytest.mark.parametrize(
    "name", [b"set", b".ckfs-trash", b".ckfs-", b"_.ckfs", b"x" * 255, b".ckfs-" + b"y" * 249]
)
def test_no_set_gets_a_place_that_is_ckfs_own_and_each_place_says_its_name(name: bytes) -> None:
    ino = Inode((1 << 63) - 1)
    for place in (place_of(name, ino), place_beside(name, ino)):
        assert not place.startswith(b".ckfs-")
        assert len(place) <= 255
    beside = place_beside(name, ino).rpartition(b"~")[0]
    assert name.startswith(name_beside(beside))


def test_an_entry_never_leads_on_the_way_into_what_is_ckfs_own() -> None:
    entry = SetEntry(Inode(5), ALICE, ALICE, b"set")
    places = {moved.place for moved in on_the_way(SetName(b".ckfs-trash"), entry)}
    assert b".ckfs-trash" not in places


def test_what_works_beside_a_mount_makes_no_realm(directory: Path) -> None:
    path = new_store(directory, REALMS)
    store = open_store(str(path), keeper_of(path))
    with pytest.raises(Unsupported, match=r"no users/2101 yet, and only a mount can make it"):
        store.names.prepare_user(ALICE)
    assert os.listdir(on_server(path) / "users") == []
    store.close()


class NobodyWrites:
    def is_live(self, spot: Spot, found: Found) -> bool:
        return False


def test_gc_looks_into_each_realm_for_what_was_being_made_and_takes_no_part_of_it_for_a_place(
    directory: Path,
) -> None:
    path = new_store(directory, REALMS)
    store = open_store(str(path), keeper_of(path))
    store.names.make_realms_by(lambda uid, gid: None)
    store.names.prepare_user(ALICE)
    staged = store.names.staging_spot(ALICE)
    store.door.make_hidden(staged, _record(), b"target")
    store.door.ensure_directory(Spot(ALICE, REALMS.trash(ALICE.uid)))
    later = time.time_ns() + 30 * 86_400 * 10**9
    leftovers = Leftovers(store, store.read_policy(), NobodyWrites(), lambda: later)
    assert [left.spot for left in leftovers.unfinished()] == [staged]
    assert leftovers.places() == []
    store.close()


def _record() -> Record:
    return Record(new_inode(), ALICE.uid, ALICE.gid, stat.S_IFREG | 0o600)


@pytest.mark.parametrize(
    ("arrangement", "mode", "way_out"),
    [(SHARED, QuotaMode.ENGINE, "ckfs init --quota engine"), (REALMS, QuotaMode.LEDGER, 'mode = "engine"')],
)
def test_a_layout_and_a_way_of_enforcing_that_do_not_go_together_are_refused(
    directory: Path, arrangement: Arrangement, mode: QuotaMode, way_out: str
) -> None:
    path = new_store(directory, arrangement)
    store = open_store(str(path), keeper_of(path))
    with pytest.raises(StoreUnusable, match=way_out):
        engine_of(store, QuotaPolicy(mode=mode))
    store.close()


@pytest.mark.parametrize("mode", QuotaMode)
def test_the_policy_of_a_new_store_says_what_was_asked_for(mode: QuotaMode) -> None:
    text = settings.default_text(mode)
    assert settings.parse(text).quota.mode is mode
    assert text.count("\n") == settings.DEFAULT_TEXT.count("\n")
