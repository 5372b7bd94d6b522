"""What df shows to a user: never more than may be his, nor than the store has."""

from __future__ import annotations

import pytest

from ckfs.fs.space import Space
from ckfs.names import Uid
from ckfs.policy.quota import Account, Amount, Limit, Limits, Over

UNIT = 4096
STORE = Space(
    io_bytes=UNIT,
    block_bytes=UNIT,
    blocks=1000,
    free_blocks=400,
    available_blocks=350,
    files=500,
    free_files=200,
    available_files=200,
    longest_name=255,
)
NOW = 10**18


def account(used: Amount, limits: Limits, claimed: Amount = Amount()) -> Account:  # noqa: B008 - frozen
    return Account(Uid(2101), used, claimed, limits)


def blocks(space: Space) -> tuple[int, int, int]:
    return space.blocks, space.free_blocks, space.available_blocks


def files(space: Space) -> tuple[int, int, int]:
    return space.files, space.free_files, space.available_files


@pytest.mark.parametrize(
    ("reserve", "expected"),
    [
        (0, (1000, 400, 350)),
        (100 * UNIT, (900, 300, 250)),
        (100 * UNIT - 1, (900, 300, 250)),
        (360 * UNIT, (640, 40, 0)),
        (2000 * UNIT, (0, 0, 0)),
    ],
)
def test_the_reserve_is_not_for_users(reserve: int, expected: tuple[int, int, int]) -> None:
    assert blocks(STORE.less_reserve(reserve)) == expected


@pytest.mark.parametrize(
    ("used", "claimed", "hard", "expected"),
    [
        (0, 0, None, (1000, 400, 350)),
        (30, 0, 100, (100, 70, 70)),
        (30, 20, 100, (100, 50, 50)),
        (100, 0, 100, (100, 0, 0)),
        (120, 0, 100, (120, 0, 0)),  # the limit was lowered
        (0, 0, 0, (0, 0, 0)),
        (100, 0, 900, (900, 400, 350)),
        (100, 0, 5000, (1000, 400, 350)),
    ],
)
def test_bytes_are_the_lesser_of_his_own_and_the_stores(
    used: int, claimed: int, hard: int | None, expected: tuple[int, int, int]
) -> None:
    limits = Limits(bytes=Limit(hard=None if hard is None else hard * UNIT))
    his = account(Amount(used * UNIT, 1), limits, Amount(claimed * UNIT, 0))
    assert blocks(STORE.of_owner(his, NOW)) == expected


def test_a_part_of_a_block_is_none() -> None:
    his = account(Amount(1), Limits(bytes=Limit(hard=2 * UNIT)))
    assert blocks(STORE.of_owner(his, NOW)) == (2, 1, 1)


@pytest.mark.parametrize(
    ("used", "hard", "expected"),
    [(0, None, (500, 200, 200)), (3, 10, (10, 7, 7)), (10, 10, (10, 0, 0)), (3, 450, (450, 200, 200))],
)
def test_files_likewise(used: int, hard: int | None, expected: tuple[int, int, int]) -> None:
    assert files(STORE.of_owner(account(Amount(0, used), Limits(files=Limit(hard=hard))), NOW)) == expected


def test_a_store_that_counts_no_files_shows_his_limit() -> None:
    btrfs = Space(UNIT, UNIT, 1000, 400, 350, 0, 0, 0, 255)
    assert files(btrfs.of_owner(account(Amount(0, 3), Limits(files=Limit(hard=10))), NOW)) == (10, 7, 7)
    assert files(btrfs.of_owner(account(Amount(0, 3), Limits()), NOW)) == (0, 0, 0)


def test_whose_grace_has_ended_has_all_that_he_may() -> None:
    limits = Limits(bytes=Limit(soft=50 * UNIT, hard=100 * UNIT), grace_s=60.0)
    over = Account(Uid(2101), Amount(70 * UNIT, 1), Amount(), limits, over_bytes=Over(60.0, NOW))
    assert blocks(STORE.of_owner(over, NOW)) == (70, 0, 0)
    in_grace = Account(Uid(2101), Amount(70 * UNIT, 1), Amount(), limits, over_bytes=Over(10.0, NOW))
    assert blocks(STORE.of_owner(in_grace, NOW)) == (100, 30, 30)
