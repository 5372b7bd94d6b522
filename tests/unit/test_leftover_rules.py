"""What counts as left behind: the rules alone."""

from __future__ import annotations

import stat

import pytest

from ckfs.model import JobFate, Keep, Owner, Record, State
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.policy import leftovers
from ckfs.policy.leftovers import Kind, SetFacts
from ckfs.policy.settings import parse

POLICY = parse("[gc]\ntemporary_hours = 24\nunclaimed_days = 7\njob_gone_days = 14\n")
NEVER = parse("[gc]\ntemporary_hours = 0\nunclaimed_days = 0\njob_gone_days = 0\n")
ALICE = Owner(Uid(2101), Gid(2101))
HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
NOW = 1_800_000_000_000_000_000
KNOWN, UNKNOWN, GONE = JobFate.KNOWN, JobFate.UNKNOWN, JobFate.GONE


def facts(
    days: float,
    owner: Owner | None = ALICE,
    *,
    name: bytes = b"12.server.CK",
    pinned: bool = False,
    moving: bool = False,
    written: bool = False,
) -> SetFacts:
    return SetFacts(SetName(name), owner, NOW - int(days * DAY_NS), pinned, moving, written)


@pytest.mark.parametrize(
    ("owner", "days", "fate", "kind"),
    [
        (ALICE, 14.01, GONE, Kind.JOB_GONE),
        (ALICE, 13.99, GONE, None),
        (ALICE, 14, GONE, None),
        (ALICE, 1000, UNKNOWN, None),
        (ALICE, 1000, KNOWN, None),
        (None, 7.01, UNKNOWN, Kind.UNCLAIMED),
        (None, 7.01, GONE, Kind.UNCLAIMED),
        (None, 14.01, GONE, Kind.JOB_GONE),
        (None, 6.99, UNKNOWN, None),
        (None, 1000, KNOWN, None),
        (ALICE, -1, GONE, None),
        (None, -1, UNKNOWN, None),
    ],
)
def test_a_set_is_left_behind(owner: Owner | None, days: float, fate: JobFate, kind: Kind | None) -> None:
    assert leftovers.of_set(POLICY, facts(days, owner), fate, NOW) is kind
    assert leftovers.of_set(NEVER, facts(days, owner), fate, NOW) is None


@pytest.mark.parametrize("doubt", ["pinned", "moving", "written"])
@pytest.mark.parametrize("owner", [ALICE, None])
def test_one_of_which_somebody_may_want_something_is_not(doubt: str, owner: Owner | None) -> None:
    assert leftovers.of_set(POLICY, facts(1000, owner), GONE, NOW)
    assert leftovers.of_set(POLICY, facts(1000, owner, **{doubt: True}), GONE, NOW) is None  # type: ignore[arg-type]  # each is a bool


def test_nor_is_one_that_no_batch_system_manages() -> None:
    assert leftovers.of_set(POLICY, facts(1000, None, name=b"results"), GONE, NOW) is None


@pytest.mark.parametrize(
    ("owner", "days", "asked"), [(ALICE, 15, True), (ALICE, 13, False), (None, 8, True), (None, 6, False)]
)
def test_resolvers_are_asked_only_where_it_matters(owner: Owner | None, days: float, asked: bool) -> None:
    assert leftovers.depends_on_job(POLICY, facts(days, owner), NOW) is asked


def record(state: State, **more: object) -> Record:
    return Record(Inode(2), Uid(1), Gid(1), stat.S_IFREG | 0o600, state=state).with_(**more)


@pytest.mark.parametrize(
    ("name", "state", "hours", "left"),
    [
        (b".ckpt.tmp", State.WRITING, 24.01, True),
        (b"x.part", State.PARTIAL, 24.01, True),
        (b".ckpt.tmp", State.WRITING, 23.99, False),
        (b".ckpt.tmp", State.WRITING, -5, False),
        (b"ckpt", State.WRITING, 1000, False),
        (b"ckpt", State.PARTIAL, 1000, False),
        (b".ckpt.tmp", State.COMPLETE, 1000, False),
        (b".ckpt.tmp", State.SUPERSEDED, 1000, False),
        (b".ckpt.tmp", State.UNKNOWN, 1000, False),
    ],
)
def test_a_temporary_file_is_left_behind(name: bytes, state: State, hours: float, left: bool) -> None:
    touched_ns = NOW - int(hours * HOUR_NS)
    assert leftovers.is_left_temporary(POLICY, name, record(state), touched_ns, NOW) is left
    assert not leftovers.is_left_temporary(NEVER, name, record(state), touched_ns, NOW)


@pytest.mark.parametrize(
    "more",
    [{"synced": (1, 1)}, {"keep": Keep.PINNED}, {"mode": stat.S_IFDIR | 0o700}, {"mode": stat.S_IFIFO}],
)
def test_what_somebody_relies_on_or_is_no_image_is_not(more: dict[str, object]) -> None:
    writing = record(State.WRITING)
    assert leftovers.is_left_temporary(POLICY, b".tmp", writing, 0, NOW)
    assert not leftovers.is_left_temporary(POLICY, b".tmp", writing.with_(**more), 0, NOW)


@pytest.mark.parametrize(
    ("ctime", "mtime", "touched"),
    [(5, 3, 5), (3, 5, 5), (3, NOW, NOW), (3, NOW + 1, 3), (NOW + 1, 3, NOW + 1)],
)
def test_nobody_keeps_a_set_by_a_time_of_the_future(ctime: int, mtime: int, touched: int) -> None:
    assert leftovers.touched(ctime, mtime, NOW) == touched


def test_what_was_being_made_is_left_after_a_day() -> None:
    assert leftovers.is_left_unfinished(NOW - DAY_NS - 1, NOW)
    assert not leftovers.is_left_unfinished(NOW - DAY_NS, NOW)
