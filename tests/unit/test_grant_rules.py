"""How much a mount is granted: plenty while there is, less and less near a limit, and exactly what it needs at the end."""

from __future__ import annotations

import pytest

from ckfs.names import Uid
from ckfs.policy.quota import GRANT_BYTES, NOTHING, Account, Amount, Limit, Limits, Over, grant

NOW = 10**18
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def granted(least: int, used: int, limit: Limit, over: Over | None = None) -> int:
    account = Account(Uid(2101), Amount(used), NOTHING, Limits(limit, Limit(), 60.0), over_bytes=over)
    return grant(account, Amount(least), Amount(least + GRANT_BYTES), NOW).bytes


def files_granted(used: int, hard: int) -> int:
    account = Account(Uid(2101), Amount(0, used), NOTHING, Limits(Limit(), Limit(hard=hard)))
    return grant(account, Amount(0, 1), Amount(0, 65), NOW).files


def test_without_a_limit_all_that_is_wanted() -> None:
    assert granted(4 * KIB, 0, Limit()) == 4 * KIB + GRANT_BYTES


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (2 * GIB, 4 * KIB + GRANT_BYTES),
        (4 * KIB + 64 * MIB, 4 * KIB + 4 * MIB),
        (4 * KIB + MIB, 4 * KIB + 64 * KIB),
        (4 * KIB + MIB - 1, 4 * KIB),
        (8 * KIB, 4 * KIB),
        (4 * KIB, 4 * KIB),
        (4 * KIB - 1, 4 * KIB - 1),
        (0, 0),
    ],
)
def test_near_a_hard_limit_a_sixteenth_then_exactly_what_is_needed(free: int, expected: int) -> None:
    assert granted(4 * KIB, GIB, Limit(hard=GIB + free)) == expected


def test_a_soft_limit_is_not_passed_for_what_nobody_needs_yet() -> None:
    assert granted(4 * KIB, GIB, Limit(soft=GIB + 4 * KIB, hard=4 * GIB)) == 4 * KIB
    assert granted(4 * KIB, GIB, Limit(soft=GIB + 4 * KIB + 32 * MIB)) == 4 * KIB + 2 * MIB


def test_a_soft_limit_that_is_passed_slows_nobody_down_until_its_grace_ends() -> None:
    limit = Limit(soft=GIB, hard=4 * GIB)
    assert granted(4 * KIB, GIB, limit) == 4 * KIB + GRANT_BYTES
    assert granted(4 * KIB, 2 * GIB, limit, Over(59.0, NOW)) == 4 * KIB + GRANT_BYTES
    assert granted(4 * KIB, 2 * GIB, limit, Over(60.0, NOW)) == 0


@pytest.mark.parametrize(("free", "expected"), [(2000, 65), (33, 3), (17, 2), (16, 1), (1, 1), (0, 0)])
def test_files_as_bytes(free: int, expected: int) -> None:
    assert files_granted(100, 100 + free) == expected
