"""Soft limits in the log: a line when one is passed, another when its grace has ended, and none besides."""

from __future__ import annotations

import logging

import pytest

from ckfs.fs.softlimits import SoftLimits
from ckfs.names import Uid
from ckfs.policy.quota import Account, Amount, Limit, Limits, Over

NOW = 10**18
LIMITS = Limits(Limit(soft=4096, hard=8192), Limit(soft=5, hard=10), grace_s=3600.0)


def account(size: int, files: int = 1, over_s: float | None = None, limits: Limits = LIMITS) -> Account:
    over = None if over_s is None else Over(over_s, NOW)
    return Account(
        Uid(2101),
        Amount(size, files),
        Amount(),
        limits,
        over_bytes=over if size > 4096 else None,
        over_files=over if files > 5 else None,
    )


def lines(caplog: pytest.LogCaptureFixture, *accounts: Account) -> list[str]:
    soft = SoftLimits()
    with caplog.at_level(logging.INFO):
        for one in accounts:
            soft.see(one)
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return caplog.messages


def test_who_is_within_his_soft_limit_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, account(0), account(4096, 5)) == []


def test_passing_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    said = lines(caplog, account(4096), account(5000, over_s=0.0), account(6000, over_s=1.0))
    assert said == ["uid 2101 has passed the soft limit of 4K (he has 4.88K), with 1h of grace left"]


def test_passing_it_once_more_is_said_once_more(caplog: pytest.LogCaptureFixture) -> None:
    passing = account(8192, over_s=0.0)
    assert len(lines(caplog, passing, account(4096), passing, passing)) == 2


def test_that_the_grace_time_has_ended_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    said = lines(
        caplog, account(8192, over_s=0.0), account(8192, over_s=3600.0), account(8192, over_s=3601.0)
    )
    assert said[1:] == [
        "uid 2101 gets nothing more: over the soft limit of 4K (he has 8K), and the grace time has ended"
    ]


def test_who_is_met_after_his_grace_time_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    assert len(lines(caplog, account(8192, over_s=4000.0), account(8192, over_s=4001.0))) == 1


def test_files_have_a_limit_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    said = lines(caplog, account(0, 6, over_s=0.0), account(8192, 6, over_s=0.0))
    assert said[0] == "uid 2101 has passed the soft limit of 5 files (he has 6), with 1h of grace left"
    assert len(said) == 2


def test_without_a_grace_time_it_never_ends(caplog: pytest.LogCaptureFixture) -> None:
    for_ever = Limits(Limit(soft=4096), grace_s=None)
    said = lines(caplog, account(8192, over_s=1e9, limits=for_ever))
    assert said == ["uid 2101 has passed the soft limit of 4K (he has 8K), without a time limit"]


def test_a_limit_that_is_lifted_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    soft = SoftLimits()
    soft.see(account(8192, over_s=0.0))
    soft.see(account(8192, limits=Limits()))
    assert soft._said == {}
