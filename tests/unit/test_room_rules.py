"""Whether a checkpoint would find room: by limits, in the store, and with what would give way."""

from __future__ import annotations

import pytest

from ckfs.fs.room import GivingWay, Lack, StoreRoom, answer
from ckfs.names import Uid
from ckfs.policy.quota import NOTHING, Account, Amount, Limit, Limits, Over

NOW = 10**18
PLENTY = StoreRoom(Amount(10_000, 1000))
LIMITS = Limits(Limit(soft=500, hard=1000), Limit(hard=10), grace_s=60.0)


def lacks(
    wanted: int,
    used: Amount = NOTHING,
    store: StoreRoom = PLENTY,
    giving: GivingWay = GivingWay(),  # noqa: B008 - frozen
    over: Over | None = None,
) -> list[Lack]:
    account = Account(Uid(2101), used, NOTHING, LIMITS, over_bytes=over)
    found = answer(Amount(wanted, 1), account, store, giving, NOW)
    assert found.fits == (not found.lacks)
    return list(found.lacks)


@pytest.mark.parametrize(
    ("wanted", "used", "expected"),
    [
        (1000, 0, []),
        (1001, 0, [Lack("hard", 1, 1000)]),
        (1, 999, []),
        (1, 1000, [Lack("hard", 1, 1000)]),
        (0, 1000, []),
        (300, 800, [Lack("hard", 100, 1000)]),
    ],
)
def test_the_hard_limit_to_the_byte(wanted: int, used: int, expected: list[Lack]) -> None:
    assert lacks(wanted, Amount(used)) == expected


def test_a_soft_limit_holds_when_its_grace_has_ended() -> None:
    assert lacks(1, Amount(600), over=Over(10.0, NOW)) == []
    assert lacks(1, Amount(600), over=Over(60.0, NOW)) == [Lack("soft", 101, 500)]


def test_one_more_file_has_to_fit() -> None:
    assert lacks(1, Amount(0, 9)) == []
    assert lacks(1, Amount(0, 10)) == [Lack("files", 1, 10)]


def test_the_store_less_its_reserve() -> None:
    assert lacks(100, store=StoreRoom(Amount(150, 5), reserve_bytes=50)) == []
    assert lacks(101, store=StoreRoom(Amount(150, 5), reserve_bytes=50)) == [Lack("store", 1, 50)]
    assert lacks(10, store=StoreRoom(Amount(20, 5), reserve_bytes=50)) == [Lack("store", 40, 50)]
    assert lacks(10, store=StoreRoom(Amount(20, 0))) == [Lack("inodes", 1, 0)]


def test_all_that_is_short_is_named() -> None:
    short = lacks(2000, Amount(0, 10), StoreRoom(Amount(1500, 0)))
    assert [lack.of for lack in short] == ["hard", "files", "store", "inodes"]


def test_what_is_his_gives_way_to_both() -> None:
    his = GivingWay(own=Amount(300, 2))
    assert lacks(300, Amount(1000, 10), giving=his) == []
    assert lacks(301, Amount(1000, 10), giving=his) == [Lack("hard", 1, 1000)]
    assert lacks(300, store=StoreRoom(Amount(0, 0)), giving=his) == []


def test_what_others_removed_gives_way_in_the_store_alone() -> None:
    others = GivingWay(others=Amount(300, 2))
    assert lacks(300, store=StoreRoom(Amount(0, 0)), giving=others) == []
    assert lacks(1, Amount(1000), giving=others) == [Lack("hard", 1, 1000)]


def test_what_gives_way_may_end_a_soft_limits_hold() -> None:
    ended = Over(60.0, NOW)
    assert lacks(400, Amount(600), giving=GivingWay(own=Amount(100, 1)), over=ended) == []
    assert lacks(1, Amount(600), giving=GivingWay(own=Amount(99, 1)), over=ended) == [Lack("soft", 2, 500)]


def test_whom_nobody_limits_has_the_stores_room() -> None:
    found = answer(Amount(10_000, 1), None, PLENTY, GivingWay(), NOW)
    assert (found.fits, found.own_bytes, found.store_bytes) == (True, None, 10_000)
    assert not answer(Amount(10_001, 1), None, PLENTY, GivingWay(), NOW).fits


def test_a_store_that_counts_no_inodes_lacks_none() -> None:
    class Btrfs:
        f_favail, f_files, f_bavail, f_frsize = 0, 0, 10, 4096

    assert answer(Amount(4096, 1), None, StoreRoom.of(Btrfs(), 0), GivingWay(), NOW).fits  # type: ignore[arg-type]  # as much of a statvfs as is looked at
