"""The arithmetic of quotas: which limit holds, what is left, how much is granted, when grace is over."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.names import Uid
from ckfs.policy import quota
from ckfs.policy.quota import (
    DEFAULT_GRACE_S,
    GRANT_BYTES,
    MOST_GRANT_BYTES,
    NOTHING,
    UNLIMITED,
    Account,
    Amount,
    Limit,
    Limits,
    Over,
    Room,
    Said,
    Settings,
    grace_left_s,
    limits_of,
    next_grant,
)

ALICE = Uid(2101)
NOW_NS = 1_800_000_000 * 10**9
SECOND_NS = 10**9
MIB, GIB = 1 << 20, 1 << 30


def account(
    used: int = 0,
    claimed: int = 0,
    *,
    soft: int | None = None,
    hard: int | None = None,
    grace_s: float | None = DEFAULT_GRACE_S,
    over: Over | None = None,
) -> Account:
    """Of bytes; files are not limited."""
    return Account(
        ALICE, Amount(used), Amount(claimed), Limits(Limit(soft, hard), Limit(), grace_s), over_bytes=over
    )


# Amounts


@pytest.mark.parametrize(
    ("other", "covered"),
    [
        (Amount(10, 2), True),
        (Amount(11, 2), False),
        (Amount(10, 3), False),
        (NOTHING, True),
        (Amount(-1, -1), True),
    ],
    ids=str,
)
def test_an_amount_covers_another_in_both_or_not_at_all(other: Amount, covered: bool) -> None:
    assert Amount(10, 2).covers(other) == covered


def test_amounts_add_up() -> None:
    assert Amount(5, 1) + Amount(7, 2) == Amount(12, 3)
    assert Amount(5, 1) - Amount(7, 1) == Amount(-2, 0)
    assert -Amount(5, -1) == Amount(-5, 1)
    assert Amount(-5, 1).not_below_zero() == Amount(0, 1)
    assert (bool(NOTHING), bool(Amount(0, 1)), bool(Amount(-1, 0))) == (False, True, True)


# Which limits hold


@pytest.mark.parametrize(
    ("own", "others", "holds"),
    [
        (Said.DEFAULT, Said.DEFAULT, None),
        (Said.DEFAULT, 5, 5),
        (Said.DEFAULT, Said.NONE, None),
        (7, 5, 7),
        (0, 5, 0),
        (7, Said.NONE, 7),
        (Said.NONE, 5, None),
    ],
    ids=str,
)
def test_what_is_said_of_him_holds_else_what_is_said_of_all(
    own: quota.Setting, others: quota.Setting, holds: int | None
) -> None:
    mine = Settings(soft_bytes=own, hard_bytes=own, soft_files=own, hard_files=own)
    all_others = Settings(soft_bytes=others, hard_bytes=others, soft_files=others, hard_files=others)
    assert limits_of(mine, all_others) == Limits(Limit(holds, holds), Limit(holds, holds))


@pytest.mark.parametrize(
    ("own", "others", "grace_s"),
    [
        (Said.DEFAULT, Said.DEFAULT, DEFAULT_GRACE_S),
        (Said.DEFAULT, 60, 60.0),
        (Said.DEFAULT, Said.NONE, None),
        (0, 60, 0.0),
        (Said.NONE, 60, None),
    ],
    ids=str,
)
def test_grace_holds_as_it_was_said(own: quota.Setting, others: quota.Setting, grace_s: float | None) -> None:
    assert limits_of(Settings(grace_s=own), Settings(grace_s=others)).grace_s == grace_s


# Room


@pytest.mark.parametrize(
    ("used", "claimed", "left"),
    [(0, 0, 100), (99, 0, 1), (50, 49, 1), (100, 0, 0), (50, 50, 0), (101, 0, 0), (0, 1000, 0)],
)
def test_what_is_used_and_what_is_claimed_leave_the_rest_of_the_hard_limit(
    used: int, claimed: int, left: int
) -> None:
    assert quota.room(account(used, claimed, hard=100), NOW_NS) == Room(left, None)


def test_without_a_limit_there_is_any_room() -> None:
    free = quota.room(Account(ALICE, Amount(1 << 60, 5)), NOW_NS)
    assert free == Room(None, None)
    assert free.covers(Amount(1 << 62, 1 << 40))


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [(Amount(10, 1), True), (Amount(11, 1), False), (Amount(10, 2), False), (NOTHING, True)],
    ids=str,
)
def test_room_covers_both_or_nothing(wanted: Amount, covered: bool) -> None:
    assert Room(10, 1).covers(wanted) == covered


# Grace


@pytest.mark.parametrize(
    ("total", "over"), [(99, None), (100, None), (101, Over(0.0, NOW_NS))], ids=["below", "at", "above"]
)
def test_a_soft_limit_is_passed_by_one_byte_more(total: int, over: Over | None) -> None:
    assert quota.at(account(total, soft=100), NOW_NS).over_bytes == over
    assert quota.at(account(0, total, soft=100), NOW_NS).over_bytes == over


@pytest.mark.parametrize(
    ("passed_s", "left"),
    [(0.0, 400), (59.0, 400), (59.999999, 400), (60.0, 0), (61.0, 0), (1e9, 0)],
)
def test_when_grace_is_over_the_soft_limit_is_a_hard_one(passed_s: float, left: int) -> None:
    over = Over(0.0, NOW_NS - int(passed_s * SECOND_NS))
    assert quota.room(account(600, soft=500, hard=1000, grace_s=60.0, over=over), NOW_NS).bytes == left


def test_without_grace_a_soft_limit_is_as_hard_as_it_can_be_once_it_is_passed() -> None:
    assert quota.room(account(500, soft=500, hard=1000, grace_s=0.0), NOW_NS).bytes == 500
    assert quota.room(account(501, soft=500, hard=1000, grace_s=0.0), NOW_NS).bytes == 0


def test_grace_that_is_for_ever_never_ends() -> None:
    over = Over(1e12, NOW_NS)
    passed = account(600, soft=500, hard=1000, grace_s=None, over=over)
    assert quota.room(passed, NOW_NS).bytes == 400
    assert grace_left_s(passed.over_bytes, passed.limits) is None


def test_time_adds_up_only_forwards() -> None:
    passed = account(600, soft=500, over=Over(10.0, NOW_NS))
    back = quota.at(passed, NOW_NS - 100 * SECOND_NS)
    assert back.over_bytes == Over(10.0, NOW_NS - 100 * SECOND_NS)
    assert quota.at(back, NOW_NS - 95 * SECOND_NS).over_bytes == Over(15.0, NOW_NS - 95 * SECOND_NS)


def test_grace_is_forgotten_when_he_is_below_again() -> None:
    assert quota.at(account(500, soft=500, over=Over(1e6, NOW_NS)), NOW_NS).over_bytes is None


@pytest.mark.parametrize(
    ("over", "left_s"),
    [(None, None), (Over(0.0, 0), 60.0), (Over(59.5, 0), 0.5), (Over(60.5, 0), 0.0)],
    ids=str,
)
def test_grace_left(over: Over | None, left_s: float | None) -> None:
    assert grace_left_s(over, Limits(grace_s=60.0)) == left_s


def test_grace_of_files_and_of_bytes_are_apart() -> None:
    limits = Limits(Limit(soft=10), Limit(soft=1), grace_s=60.0)
    passed = quota.at(Account(ALICE, Amount(10, 2), limits=limits), NOW_NS)
    assert (passed.over_bytes, passed.over_files) == (None, Over(0.0, NOW_NS))
    later_ns = NOW_NS + 60 * SECOND_NS
    assert quota.room(passed, later_ns) == Room(None, 0)


# Grants


@pytest.mark.parametrize(
    ("used", "least", "wanted", "granted"),
    [
        # near the limit: exactly what is needed at once
        (GIB - 10, 10, 1000, 10),
        (GIB - 9, 10, 1000, 9),
        (GIB, 10, 1000, 0),
        (GIB + 5, 10, 1000, 0),
        (GIB - MIB // 8 - 9, 10, MIB, 10),
        # farther: all that is wanted, but no more than a share of what is free
        (0, 10, 1000, 1000),
        (0, 10, 10 + MIB, 10 + MIB),
        (GIB - MIB // 8 - 10, 10, MIB, 10 + MIB // 64),
        (GIB - 64 * MIB - 10, 10, 10 + 8 * MIB, 10 + 8 * MIB),
        (GIB - 64 * MIB - 10, 10, 10 + 8 * MIB + 1, 10 + 8 * MIB),
        (0, 0, GIB, 128 * MIB),
        (0, 0, 0, 0),
    ],
)
def test_grants_shrink_to_exact_near_the_hard_limit(used: int, least: int, wanted: int, granted: int) -> None:
    given_ = quota.grant(account(used, hard=GIB), Amount(least), Amount(wanted), NOW_NS)
    assert given_ == Amount(granted)


@pytest.mark.parametrize(
    ("free", "least", "wanted", "granted"),
    [
        (256, 0, 64, 32),
        (257, 1, 65, 33),
        (256, 1, 65, 32),
        (9, 1, 65, 2),
        (8, 1, 65, 1),
        (1 << 20, 1, 65, 65),
        (3, 5, 64, 3),
    ],
)
def test_grants_of_files_shrink_as_well(free: int, least: int, wanted: int, granted: int) -> None:
    limited = Account(ALICE, limits=Limits(files=Limit(hard=free)))
    assert quota.grant(limited, Amount(0, least), Amount(0, wanted), NOW_NS) == Amount(0, granted)


def test_without_a_limit_all_that_is_wanted_is_granted() -> None:
    assert quota.grant(Account(ALICE), Amount(1), Amount(GIB, 64), NOW_NS) == Amount(GIB, 64)
    assert limits_of(Settings(), Settings()) == UNLIMITED


@pytest.mark.parametrize(
    ("used", "granted"),
    [
        (0, MIB),
        (GIB - 8 * MIB - 10, MIB),
        (GIB - 4 * MIB - 10, 10 + MIB // 2),
        (GIB - MIB // 8, 10),
        (GIB - 10, 10),
        (GIB, 10),
    ],
)
def test_nothing_is_granted_beyond_what_is_needed_that_would_pass_a_soft_limit(
    used: int, granted: int
) -> None:
    assert quota.grant(account(used, soft=GIB), Amount(10), Amount(MIB), NOW_NS) == Amount(granted)


def test_a_soft_limit_that_is_passed_slows_nobody_down_until_its_grace_ends_soon() -> None:
    def granted(over: Over) -> Amount:
        passed = account(2 * GIB, soft=GIB, hard=1 << 40, over=over)
        return quota.grant(passed, Amount(10), Amount(MIB), NOW_NS)

    assert granted(Over(0.0, NOW_NS)) == Amount(MIB)
    assert granted(Over(DEFAULT_GRACE_S - 3601.0, NOW_NS)) == Amount(MIB)
    assert granted(Over(DEFAULT_GRACE_S - 3600.0, NOW_NS)) == Amount(10)


def test_after_grace_nothing_is_granted() -> None:
    over = Over(DEFAULT_GRACE_S, NOW_NS)
    assert quota.grant(account(600, soft=500, hard=GIB, over=over), Amount(1), Amount(1), NOW_NS) == NOTHING


AMOUNTS = st.integers(0, 1 << 45)
LIMIT = st.none() | AMOUNTS


@given(used=AMOUNTS, claimed=AMOUNTS, soft=LIMIT, hard=LIMIT, least=AMOUNTS, more=AMOUNTS)
def test_a_grant_is_never_more_than_there_is_nor_less_than_is_needed_if_there_is_that(
    used: int, claimed: int, soft: int | None, hard: int | None, least: int, more: int
) -> None:
    one = account(used, claimed, soft=soft, hard=hard)
    granted = quota.grant(one, Amount(least), Amount(least + more), NOW_NS).bytes
    left = quota.room(one, NOW_NS).bytes
    assert 0 <= granted <= least + more
    assert granted >= (least if left is None else min(least, left))
    assert left is None or granted <= left
    if soft is not None and granted > least:
        assert used + claimed + granted <= soft or used + claimed > soft


@pytest.mark.parametrize(
    ("before", "since_s", "asked"),
    [
        (GRANT_BYTES, 0.1, 2 * GRANT_BYTES),  # it did not last a second
        (GRANT_BYTES, 2.0, GRANT_BYTES),
        (8 * GRANT_BYTES, 2.0, 8 * GRANT_BYTES),
        (8 * GRANT_BYTES, 60.0, GRANT_BYTES),  # somebody else's burst
        (MOST_GRANT_BYTES, 0.1, MOST_GRANT_BYTES),
        (GRANT_BYTES, math.inf, GRANT_BYTES),  # the first
    ],
)
def test_who_writes_fast_asks_for_more_at_a_time(before: int, since_s: float, asked: int) -> None:
    assert next_grant(before, since_s) == asked
