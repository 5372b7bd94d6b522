"""What an admin may say of limits, and how an account stands by them."""

from __future__ import annotations

import pytest

from ckfs.errors import UsageError
from ckfs.names import Uid
from ckfs.policy.limits import check, described, settings_said, state
from ckfs.policy.quota import Account, Amount, Limit, Limits, Over, Said, Settings, limits_of

G = 1 << 30


def test_what_is_not_said_stays() -> None:
    before = Settings(soft_bytes=1, hard_bytes=2, soft_files=3, hard_files=4, grace_s=5)
    assert settings_said(before, {}) == before
    assert settings_said(before, {"hard_bytes": "500G"}) == Settings(1, 500 * G, 3, 4, 5)


def test_amounts_are_in_admins_units_and_words_are_taken() -> None:
    said = {
        "soft_bytes": "none",
        "hard_bytes": "default",
        "soft_files": "10k",
        "hard_files": "0",
        "grace_s": "7d",
    }
    assert settings_said(Settings(), said) == Settings(Said.NONE, Said.DEFAULT, 10_000, 0, 604_800)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("hard_bytes", "-1"),
        ("hard_bytes", "NONE"),
        ("hard_bytes", "1e400"),
        ("hard_files", "1.5k"),
        ("hard_files", "10G0"),
        ("grace_s", "7"),
        ("grace_s", "400G"),
    ],
)
def test_what_is_no_limit_is_refused(field: str, text: str) -> None:
    with pytest.raises(UsageError):
        settings_said(Settings(), {field: text})


@pytest.mark.parametrize(
    ("own", "default"),
    [
        (Settings(soft_bytes=2, hard_bytes=1), Settings()),
        (Settings(soft_bytes=2), Settings(hard_bytes=1)),
        (Settings(hard_bytes=1), Settings(soft_bytes=2)),
        (Settings(soft_files=2, hard_files=1), Settings()),
        (Settings(hard_files=0), Settings(soft_files=1)),
    ],
)
def test_a_soft_limit_above_the_hard_one_is_refused(own: Settings, default: Settings) -> None:
    with pytest.raises(UsageError, match="would be above the hard one"):
        check(own, default)


@pytest.mark.parametrize(
    ("own", "default"),
    [
        (Settings(soft_bytes=1, hard_bytes=1), Settings()),
        (Settings(soft_bytes=2, hard_bytes=Said.NONE), Settings(hard_bytes=1)),
        (Settings(soft_bytes=Said.NONE, hard_bytes=1), Settings(soft_bytes=2)),
        (Settings(soft_bytes=5), Settings()),
        (Settings(soft_files=5, hard_bytes=1), Settings()),
        (Settings(), Settings()),
    ],
)
def test_other_pairs_stand(own: Settings, default: Settings) -> None:
    check(own, default)


def test_limits_in_a_line() -> None:
    limits = limits_of(Settings(soft_bytes=400 * G, hard_files=10, grace_s=Said.NONE), Settings())
    assert described(limits) == "soft 400G, hard none, files soft none, hard 10, grace none"
    assert described(Limits()) == "soft none, hard none, files soft none, hard none, grace 7d"


LIMITS = Limits(Limit(soft=50, hard=100), Limit(soft=5, hard=10), grace_s=60.0)
IN_GRACE = Over(30.0, 0)
ENDED = Over(60.0, 0)


@pytest.mark.parametrize(
    ("used", "claimed", "over_bytes", "over_files", "expected"),
    [
        (Amount(50, 5), Amount(), None, None, "ok"),
        (Amount(40, 0), Amount(10, 0), None, None, "ok"),
        (Amount(51, 5), Amount(), IN_GRACE, None, "grace"),
        (Amount(40, 0), Amount(11, 0), IN_GRACE, None, "grace"),
        (Amount(0, 6), Amount(), None, IN_GRACE, "grace"),
        (Amount(100, 0), Amount(), IN_GRACE, None, "full"),
        (Amount(0, 10), Amount(), None, IN_GRACE, "full"),
        (Amount(101, 0), Amount(), IN_GRACE, None, "over"),
        (Amount(51, 0), Amount(), ENDED, None, "over"),
        (Amount(51, 6), Amount(), IN_GRACE, ENDED, "over"),
    ],
)
def test_how_an_account_stands(
    used: Amount, claimed: Amount, over_bytes: Over | None, over_files: Over | None, expected: str
) -> None:
    assert state(Account(Uid(2101), used, claimed, LIMITS, over_bytes, over_files)) == expected


def test_who_has_no_limits_is_never_over_one() -> None:
    assert state(Account(Uid(2101), Amount(1 << 62, 1 << 62))) == "ok"
