"""The chain: in order, whatever one of them does; and never root."""

from __future__ import annotations

import logging

import pytest

from ckfs.model import JobFate, Owner
from ckfs.names import Gid, JobId, Uid
from ckfs.owners.resolver import (
    Gone,
    Known,
    ReasonedResolver,
    Resolution,
    Resolver,
    ResolverChain,
    Unknown,
    is_ownable,
    owner_of_ids,
)

JOB = JobId("12.server")
ALICE = Owner(Uid(2101), Gid(2100))
BOB = Owner(Uid(2102), Gid(2100))


class Fixed:
    def __init__(self, answer: Owner | None) -> None:
        self.answer = answer
        self.asked = 0

    def owner_of(self, job: JobId) -> Owner | None:
        self.asked += 1
        return self.answer


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def owner_of(self, job: JobId) -> Owner | None:
        raise self.error


class Reasoned(ReasonedResolver):
    name = "test"

    def __init__(self, resolution: Resolution, silence: str | None = None) -> None:
        self.resolution = resolution
        self.silence = silence

    def resolve(self, job: JobId) -> Resolution:
        return self.resolution

    def why_never_gone(self) -> str | None:
        return self.silence


def test_the_first_who_knows_is_believed() -> None:
    last = Fixed(BOB)
    assert ResolverChain([Fixed(None), Fixed(ALICE), last]).owner_of(JOB) == ALICE
    assert last.asked == 0


def test_nobody_knows() -> None:
    assert ResolverChain([]).owner_of(JOB) is None
    assert ResolverChain([Fixed(None)]).owner_of(JOB) is None


@pytest.mark.parametrize("error", [OSError(5, "I/O"), RuntimeError("x"), MemoryError(), RecursionError()])
def test_one_that_fails_is_passed_over(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert ResolverChain([Broken(error), Fixed(ALICE)]).owner_of(JOB) == ALICE
    assert len(caplog.records) == 1


def test_a_failure_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    hostile = ValueError("line\nline \x1b[31m")
    assert ResolverChain([Broken(hostile)]).owner_of(JOB) is None
    (record,) = caplog.records
    assert record.getMessage().isprintable()


def test_root_is_never_an_owner() -> None:
    chain = ResolverChain([Fixed(Owner(Uid(0), Gid(0))), Fixed(ALICE)])
    assert chain.owner_of(JOB) == ALICE


@pytest.mark.parametrize(
    ("uid", "ownable"), [(-1, False), (0, False), (1, True), (2**32 - 2, True), (2**32 - 1, False)]
)
def test_who_may_own(uid: int, ownable: bool) -> None:
    assert is_ownable(uid) is ownable
    assert (owner_of_ids(uid, 100) is not None) is ownable


def test_a_group_that_is_none() -> None:
    assert owner_of_ids(1, 2**32 - 1) is None
    assert owner_of_ids(1, -1) is None


def test_known() -> None:
    assert Reasoned(Known(ALICE)).owner_of(JOB) == ALICE


@pytest.mark.parametrize(("suspect", "level"), [(True, logging.WARNING), (False, logging.DEBUG)])
def test_the_reason_is_logged(suspect: bool, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert Reasoned(Unknown("forged\nfile", suspect)).owner_of(JOB) is None
    (record,) = caplog.records
    assert record.levelno == level
    assert "12.server" in record.getMessage()
    assert record.getMessage().isprintable()


# Whether there is such a job at all

KNOWN, GONE = Reasoned(Known(ALICE)), Reasoned(Gone())
ABSENT, FAILED = Reasoned(Unknown("nothing here")), Reasoned(Unknown("timed out", suspect=True))


@pytest.mark.parametrize(
    ("resolvers", "fate"),
    [
        ([], JobFate.UNKNOWN),
        ([ABSENT], JobFate.UNKNOWN),
        ([GONE], JobFate.GONE),
        ([KNOWN], JobFate.KNOWN),
        ([GONE, ABSENT], JobFate.GONE),
        ([ABSENT, GONE], JobFate.GONE),
        ([GONE, KNOWN], JobFate.KNOWN),
        ([KNOWN, GONE], JobFate.KNOWN),
        ([GONE, Fixed(ALICE)], JobFate.KNOWN),
        ([GONE, Fixed(None)], JobFate.GONE),
        ([Fixed(None)], JobFate.UNKNOWN),
    ],
)
def test_a_job_is_gone_if_somebody_says_so_and_nobody_knows_it(
    resolvers: list[Resolver], fate: JobFate
) -> None:
    assert ResolverChain(resolvers).fate_of(JOB) is fate


@pytest.mark.parametrize("failing", [FAILED, Broken(OSError(5, "I/O")), Broken(RuntimeError("x"))])
def test_one_that_fails_might_have_known_the_job(failing: Resolver, caplog: pytest.LogCaptureFixture) -> None:
    for resolvers in ([failing], [failing, GONE], [GONE, failing]):
        assert ResolverChain(resolvers).fate_of(JOB) is JobFate.UNKNOWN
    assert len(caplog.records) == 3
    assert ResolverChain([failing, KNOWN]).fate_of(JOB) is JobFate.KNOWN


def test_gone_is_no_owner() -> None:
    assert GONE.owner_of(JOB) is None


def test_why_nobody_can_tell() -> None:
    assert ResolverChain([Reasoned(Gone(), "unmounted"), Reasoned(Gone())]).why_never_gone() is None
    assert ResolverChain([Reasoned(Gone(), "unmounted")]).why_never_gone() == "test: unmounted"
    assert ResolverChain([Fixed(ALICE)]).why_never_gone() == "the policy names no resolver"
