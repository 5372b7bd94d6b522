"""The states of images: the table, transition by transition."""

from __future__ import annotations

import itertools
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.model import Record, State
from ckfs.names import Gid, Inode, Uid
from ckfs.policy.lifecycle import TRANSITIONS, Event, after, is_complete, may_be_complete, writer_ended

WRITING, COMPLETE, PARTIAL, SUPERSEDED = State.WRITING, State.COMPLETE, State.PARTIAL, State.SUPERSEDED
UNKNOWN = State.UNKNOWN
EXPECTED: dict[Event, tuple[State, State, State, State, State]] = {
    # what was       WRITING   COMPLETE    PARTIAL  SUPERSEDED  UNKNOWN
    Event.REPLACED: (WRITING, WRITING, WRITING, WRITING, WRITING),
    Event.WRITTEN: (WRITING, WRITING, PARTIAL, WRITING, UNKNOWN),
    Event.FINISHED: (COMPLETE, COMPLETE, PARTIAL, SUPERSEDED, UNKNOWN),
    Event.BROKEN: (PARTIAL, COMPLETE, PARTIAL, SUPERSEDED, PARTIAL),
    Event.DAMAGED: (WRITING, PARTIAL, PARTIAL, PARTIAL, PARTIAL),
    Event.OUTLIVED: (WRITING, SUPERSEDED, PARTIAL, SUPERSEDED, UNKNOWN),
    Event.NEEDED: (WRITING, COMPLETE, PARTIAL, COMPLETE, UNKNOWN),
    Event.ACCEPTED: (WRITING, COMPLETE, PARTIAL, SUPERSEDED, COMPLETE),
}


def image(state: State, synced: tuple[int, int] | None = None) -> Record:
    return Record(Inode(2), Uid(1), Gid(1), stat.S_IFREG | 0o400, state=state, synced=synced)


def test_the_table_is_total() -> None:
    assert set(TRANSITIONS) == set(itertools.product(State, Event))
    assert set(EXPECTED) == set(Event)


@pytest.mark.parametrize(("was", "event"), sorted(TRANSITIONS, key=str))
def test_each_transition(was: State, event: Event) -> None:
    becomes = dict(zip((WRITING, COMPLETE, PARTIAL, SUPERSEDED, UNKNOWN), EXPECTED[event], strict=True))
    assert after(image(was), event).state is becomes[was]


@pytest.mark.parametrize("event", Event)
def test_a_synced_mark_ends_with_what_it_was_made_for(event: Event) -> None:
    kept = after(image(WRITING, (5, 7)), event).synced
    assert kept == (None if event in (Event.REPLACED, Event.FINISHED, Event.BROKEN) else (5, 7))


@given(st.lists(st.sampled_from(Event)))
def test_only_a_rewrite_takes_a_partial_image_out_of_its_state(events: list[Event]) -> None:
    record = image(PARTIAL)
    for event in events:
        was, record = record, after(record, event)
        if was.state is PARTIAL and record.state is not PARTIAL:
            assert event is Event.REPLACED
        if record.state is COMPLETE and was.state is WRITING:
            assert event is Event.FINISHED


@given(st.sampled_from(State), st.sampled_from(Event))
def test_nothing_but_state_and_mark_changes(state: State, event: Event) -> None:
    before = image(state, (1, 1))
    changed = after(before, event)
    assert changed.with_(state=state, synced=(1, 1)) == before


@pytest.mark.parametrize(
    ("killed", "failed", "synced", "expected"),
    [
        (False, False, None, Event.FINISHED),
        (True, False, None, Event.BROKEN),
        (True, False, (5, 7), Event.FINISHED),
        (True, False, (4, 7), Event.BROKEN),
        (True, False, (5, 8), Event.BROKEN),
        (False, False, (4, 8), Event.FINISHED),
        (False, True, None, Event.BROKEN),
        (False, True, (5, 7), Event.BROKEN),  # what failed may have been in the middle
        (True, True, (5, 7), Event.BROKEN),
    ],
)
def test_the_end_of_a_writer(
    *, killed: bool, failed: bool, synced: tuple[int, int] | None, expected: Event
) -> None:
    record = image(WRITING, synced)
    assert writer_ended(record, killed=killed, failed=failed, size=5, mtime_ns=7) is expected


@pytest.mark.parametrize("state", State)
def test_one_restarts_from_what_is_complete(state: State) -> None:
    assert is_complete(image(state)) == (state in (COMPLETE, SUPERSEDED))


@pytest.mark.parametrize("state", State)
def test_what_nobody_knows_may_be_complete(state: State) -> None:
    assert may_be_complete(image(state)) == (state in (COMPLETE, SUPERSEDED, UNKNOWN))
