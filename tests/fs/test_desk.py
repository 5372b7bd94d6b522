"""What the desk of the trash shows and does for each caller, where users' commands cannot easily lead: stores where a
set's files are kept as somebody else's, and what comes between a look and an act."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ckfs.model import Caller, Owner
from ckfs.names import SetName, Uid
from ckfs.policy import settings
from ckfs.store.choosing import Choice, Entry
from ckfs.store.desk import Desk, groups
from ckfs.store.layout import Store, open_store
from ckfs.store.removed import Item, Note
from ckfs.store.spots import Spot
from tests.fs.cores import ALICE, BOB, ROOT, keeper_of, mounted

pytestmark = pytest.mark.root

SET = SetName(b"7.server.CK")
HERS = Owner(ALICE.uid, ALICE.gid)
ANY = Choice()
NOW = 1_700_000_000_000_000_000


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    """With a batch set that root made, which nobody owns yet: the service account keeps its files."""
    trio.run(_fill, place)
    with contextlib.closing(open_store(str(place), keeper_of(place))) as store:
        yield store


async def _fill(path: Path) -> None:
    async with mounted(path) as mount:
        await mount.root.mkdir("7.server.CK")
        await mount.root.save("7.server.CK/image", b"image")


def put(store: Store, owner: Owner | None, inner: bytes = b"image", program: bytes = b"/usr/bin/rm") -> Item:
    """What a mount does that removes *inner* of a set that belongs to *owner*, wherever its files are kept."""
    entry = store.names.read(SET)
    spot = Spot(entry.stored, (*entry.spot.components, inner))
    ino = store.door.examine(spot).record.ino
    return store.trash.put(spot, Note(Uid(0), NOW, b"tqn1", program, SET, inner, owner, ino))


def desk(store: Store, caller: Caller) -> Desk:
    return Desk(store, settings.parse(""), caller, 7 * 86_400.0)


def seen(store: Store, caller: Caller) -> list[Entry]:
    return [entry for entry in desk(store, caller).found(ANY) if entry is not None]


def test_what_the_service_account_still_keeps_for_a_user_is_his(store: Store) -> None:
    """The set was given to her, and its files have yet to follow."""
    item = put(store, HERS)
    assert item.spot.identity.uid == store.service.uid
    assert seen(store, ALICE) == [item]
    assert seen(store, BOB) == []
    assert seen(store, ROOT) == [item]
    [row] = [row for row in desk(store, ALICE).rows(ANY) if row is not None]
    assert (row.item, row.uid) == (item.token, ALICE.uid)
    assert row.kept_until_ns == row.removed_ns + 7 * 86_400 * 10**9


def test_what_nobody_owned_is_root_s(store: Store) -> None:
    item = put(store, None)
    assert seen(store, ALICE) == seen(store, BOB) == []
    assert seen(store, ROOT) == [item]


def test_a_set_that_nobody_owns_takes_nothing_of_hers(store: Store) -> None:
    """It was taken from her by hand, or made anew for the next job of that id."""
    item = put(store, HERS)
    [outcome] = desk(store, ALICE).restore(SET, [item], HERS)
    assert outcome.failed
    assert "belongs to somebody else by now" in outcome.text
    assert seen(store, ALICE) == [item]
    [outcome] = desk(store, ROOT).restore(SET, [replace(item, note=replace(item.note, owner=None))])
    assert not outcome.failed


def test_where_a_note_has_lost_its_directories_others_things_stay(store: Store) -> None:
    """It was too long, so that nobody can say any more whether the file lay in a directory that was closed to her."""
    item = put(store, HERS, program=b"")
    assert item.found.record.uid == 0
    [outcome] = desk(store, ALICE).restore(SetName(b"hers"), [item], None)
    assert outcome.failed
    assert "uid 0 made it, in a directory" in outcome.text


def test_who_is_second_to_purge_hears_of_nothing(store: Store) -> None:
    item = put(store, HERS)
    first = desk(store, ALICE).purge(item)
    assert first is not None
    assert not first.failed
    assert desk(store, ALICE).purge(item) is None


def test_a_name_is_his_by_the_job_alone(store: Store) -> None:
    item = put(store, HERS)
    store.names.remove(SET, lambda entry, _: store.door.rmdir(entry.spot), lambda _: None)
    for job_owner in (None, Owner(BOB.uid, BOB.gid)):
        [outcome] = desk(store, ALICE).restore(SET, [item], job_owner)
        assert outcome.failed
        assert "only root, or the job's owner, makes a batch set" in outcome.text
    [outcome] = desk(store, ALICE).restore(SET, [item], HERS)
    assert not outcome.failed
    assert store.names.read(SET).owner == HERS


def test_what_is_restored_together(store: Store) -> None:
    item = put(store, HERS)
    other = replace(item, note=replace(item.note, set_name=SetName(b"other")))
    assert groups([item, other, item], None) == [(SET, [item, item]), (b"other", [other])]
    assert groups([item, other], SetName(b"to")) == [(b"to", [item, other])]
    assert groups([], None) == []


def test_very_many_items_are_put_in_order_in_no_time(store: Store) -> None:
    """A user may have as many as he likes, and asks the daemon, whose other threads wait for that."""
    item = put(store, HERS)
    many = [
        replace(
            item,
            spot=replace(item.spot, components=(*item.spot.components[:-1], b"%016x" % number)),
            note=replace(item.note, path=b"%d" % number),
        )
        for number in range(20_000)
    ]
    began_s = time.monotonic()
    outcomes = desk(store, BOB).restore(SET, many)
    assert all(outcome.failed for outcome in outcomes)
    assert time.monotonic() - began_s < 20  # each with each would take longer than 40
