"""Which items of the trash are meant: a table of choices, and what is no choice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckfs.errors import Denied, NotOwner, UsageError
from ckfs.model import Caller, Owner, Record
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.policy import ownership, settings
from ckfs.store.choosing import Choice, Entry, check_purge, check_restore
from ckfs.store.removed import Damaged, Item, Note
from ckfs.store.spots import Found, Spot

ALICE, BOB = Owner(Uid(2101), Gid(2101)), Owner(Uid(2102), Gid(2102))
DAY_NS = 86_400_000_000_000


def item(
    token: str, set_name: bytes = b"dump", owner: Owner | None = ALICE, when_ns: int = 5 * DAY_NS
) -> Item:
    stored = owner or Owner(Uid(0), Gid(0))
    found = Found(os.stat(Path(__file__)), Record(Inode(7), stored.uid, stored.gid, 0o100600))
    note = Note(Uid(0), when_ns, b"tqn1", b"", SetName(set_name), b"image", owner, Inode(7))
    return Item(Spot(stored, (b"trash", b"%d" % stored.uid, os.fsencode(token))), found, note)


NEW = item("aaaa0001")
OLD = item("aaaa0002", when_ns=2 * DAY_NS)
BOBS = item("bbbb0003", b"bobs", BOB)
ODD = item("cccc0004", b"\xff\x1b")
UNCLAIMED = item("dddd0005", b"7.server.CK", None)
STRAY = Damaged(Spot(ALICE, (b"trash", b"2101", b"stray")), 5 * DAY_NS, "nothing says what it was")
ALL: list[Entry] = [NEW, OLD, BOBS, ODD, UNCLAIMED, STRAY]

CHOICES: list[tuple[dict[str, Any], list[Entry]]] = [
    ({}, ALL),
    ({"set_name": "dump"}, [NEW, OLD]),
    ({"set_name": "dum"}, []),
    ({"set_name": os.fsdecode(b"\xff\x1b")}, [ODD]),
    ({"set_name": r"\xff\x1b"}, [ODD]),
    ({"image": "dump/image"}, [NEW, OLD]),
    ({"image": "dump/ima"}, []),
    ({"image": "dump"}, [NEW, OLD]),
    ({"image": "dump/"}, [NEW, OLD]),
    ({"image": r"\xff\x1b/image"}, [ODD]),
    ({"image": "bobs/image", "uid": 2101}, []),
    ({"uid": 2101}, [NEW, OLD, ODD, STRAY]),
    ({"uid": 2102}, [BOBS]),
    ({"uid": 0}, []),
    ({"since_ns": 5 * DAY_NS}, [NEW, BOBS, ODD, UNCLAIMED, STRAY]),
    ({"since_ns": 5 * DAY_NS + 1}, []),
    ({"before_ns": 2 * DAY_NS}, []),
    ({"before_ns": 2 * DAY_NS + 1}, [OLD]),
    ({"set_name": "dump", "uid": 2102}, []),
    ({"tokens": ("aaaa0001",)}, [NEW]),
    ({"tokens": ("bbbb", "aaaa0002", "bbbb")}, [BOBS, OLD]),
    ({"tokens": ("stray",)}, [STRAY]),
]


@pytest.mark.parametrize(("options", "chosen"), CHOICES)
def test_what_is_chosen(options: dict[str, Any], chosen: list[Entry]) -> None:
    choice = Choice(**options)
    assert choice.of(list(filter(choice.fits, ALL))) == chosen
    assert choice.is_any == (options == {})


@pytest.mark.parametrize(
    ("token", "reason"),
    [("aaaa", "2 items begin so"), ("bbb", "no such item"), ("eeee", "no such item"), ("", "no such item")],
)
def test_a_token_means_one(token: str, reason: str) -> None:
    choice = Choice(tokens=(token,))
    with pytest.raises(UsageError, match=reason):
        choice.of(list(filter(choice.fits, ALL)))


def test_a_whole_token_goes_before_longer_ones() -> None:
    longer = item("aaaa00011")
    choice = Choice(tokens=("aaaa0001",))
    assert choice.of(list(filter(choice.fits, [longer, NEW]))) == [NEW]


@pytest.mark.parametrize(
    ("choice", "to", "reason"),
    [
        (Choice(), None, "say what to restore"),
        (Choice(uid=2101), None, "say what to restore"),
        (Choice(tokens=("aaaa",), set_name="dump"), None, "not both"),
        *((Choice(set_name="dump"), to, "not a set's name") for to in ("", ".", "..", "a/b", "x" * 256)),
    ],
)
def test_what_is_nothing_to_restore(choice: Choice, to: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_restore(choice, to)


def test_what_is() -> None:
    assert check_restore(Choice(set_name="dump", since_ns=1), None) is None
    assert check_restore(Choice(image="dump/image"), None) is None
    assert check_restore(Choice(tokens=("aaaa",)), os.fsdecode(b"\xff")) == b"\xff"
    assert check_restore(Choice(tokens=("aaaa",)), "x" * 255) == b"x" * 255


@pytest.mark.parametrize(
    ("choice", "everything", "is_one"),
    [
        (Choice(), False, False),
        (Choice(), True, True),
        (Choice(uid=2101), False, True),
        (Choice(uid=2101), True, False),
        (Choice(tokens=("aaaa",)), False, True),
        (Choice(tokens=("aaaa",)), True, False),
        (Choice(tokens=("aaaa",), uid=2101), False, False),
    ],
)
def test_what_is_to_be_purged_is_said_one_way(choice: Choice, everything: bool, is_one: bool) -> None:
    if is_one:
        check_purge(choice, everything=everything)
        return
    with pytest.raises(UsageError):
        check_purge(choice, everything=everything)


# What a user may put back

POLICY = settings.parse("")


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (b"dump", b"other", True),
        (b"7.server.CK", b"other", True),
        (b"7.server.CK", b"7.server.CK", True),
        (b"7.server.CK", b"7.server.CK.old", True),
        (b"7.server.CK.old", b"7.server.CK", True),
        (b"dump", b"7.server.CK", False),
        (b"7.server", b"7.server.CK", False),
        (b"8.server.CK", b"7.server.CK", False),
        (b"8.server.CK", b"7.server.CK.old", False),
    ],
)
def test_into_a_batch_set_comes_what_was_in_that_job_s(old: bytes, new: bytes, allowed: bool) -> None:
    if allowed:
        ownership.check_restore_way(POLICY, SetName(old), SetName(new))
        return
    with pytest.raises(Denied):
        ownership.check_restore_way(POLICY, SetName(old), SetName(new))


@pytest.mark.parametrize(
    ("made_by", "in_directory", "caller", "allowed"),
    [
        (2101, True, 2101, True),
        (2102, False, 2101, True),
        (2102, True, 2101, False),
        (0, True, 2101, False),
        (2102, True, 0, True),
    ],
)
def test_what_another_user_made_in_a_directory_is_root_s_to_put_back(
    made_by: int, in_directory: bool, caller: int, allowed: bool
) -> None:
    record = Record(Inode(7), Uid(made_by), Gid(0), 0o100644)
    who = Caller(Uid(caller), Gid(caller), 0, 0)
    if allowed:
        ownership.check_restore_of(record, who, in_directory=in_directory)
        return
    with pytest.raises(NotOwner, match="ask an admin"):
        ownership.check_restore_of(record, who, in_directory=in_directory)
