"""The table of locks against a model that knows each byte; and who would wait for whom."""

from __future__ import annotations

import contextlib
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.fs.lockranges import LAST, LockTable, Range, Waiting, Waits

_BYTES = 12
_OWNERS = 3
_PLACES = st.integers(0, _BYTES - 1)


def _range(ends: tuple[int, int], kind: int) -> Range:
    return Range(min(ends), max(ends), kind)


_RANGES = st.builds(_range, st.tuples(_PLACES, _PLACES), st.sampled_from((F_RDLCK, F_WRLCK, F_UNLCK)))
_Model = dict[tuple[int, int], int]
"""Of each owner and byte, what he has."""


def _others_keep(model: _Model, owner: int, wanted: Range) -> set[int]:
    return {
        other
        for (other, byte), kind in model.items()
        if other != owner and wanted.start <= byte <= wanted.end and F_WRLCK in (kind, wanted.kind)
    }


def _apply(model: _Model, owner: int, wanted: Range) -> None:
    for byte in range(wanted.start, wanted.end + 1):
        model.pop((owner, byte), None)
        if wanted.kind != F_UNLCK:
            model[owner, byte] = wanted.kind


def _bytes_of(table: LockTable) -> _Model:
    return {
        (owner, byte): lock.kind
        for owner in table.owners()
        for lock in table.of(owner)
        for byte in range(lock.start, lock.end + 1)
    }


@given(st.lists(st.tuples(st.integers(0, _OWNERS - 1), _RANGES), max_size=30))
def test_the_table_has_what_a_model_of_bytes_has(steps: list[tuple[int, Range]]) -> None:
    table, model = LockTable(), _Model()
    for owner, wanted in steps:
        if wanted.kind != F_UNLCK:
            blockers = _others_keep(model, owner, wanted)
            assert table.blockers(owner, wanted) == blockers
            conflict = table.conflict(owner, wanted)
            assert (conflict is None) == (not blockers)
            if conflict is not None:
                assert conflict.conflicts(wanted)
                continue
        table.put(owner, table.after(owner, wanted))
        _apply(model, owner, wanted)
        assert _bytes_of(table) == model
        for other in table.owners():
            for lock, following in pairwise(table.of(other)):
                assert lock.end < following.start, "in order"
                assert lock.end + 1 < following.start or lock.kind != following.kind, "joined"


@given(st.lists(st.tuples(st.integers(0, _OWNERS - 1), _RANGES), max_size=20), st.tuples(_PLACES, _PLACES))
def test_pieces_are_all_that_anybody_has(steps: list[tuple[int, Range]], ends: tuple[int, int]) -> None:
    table, model = LockTable(), _Model()
    for owner, wanted in steps:
        if wanted.kind == F_UNLCK or table.conflict(owner, wanted) is None:
            table.put(owner, table.after(owner, wanted))
            _apply(model, owner, wanted)
    pieces = list(table.pieces(min(ends), max(ends)))
    covered = [byte for piece in pieces for byte in range(piece.start, piece.end + 1)]
    assert covered == list(range(min(ends), max(ends) + 1))
    union = {byte: kind for (_, byte), kind in model.items()}
    for kind in (F_RDLCK, F_WRLCK):
        has_all = all(union.get(byte) == kind for byte in range(min(ends), max(ends) + 1))
        assert table.covers(_range(ends, kind)) == has_all
    for piece in pieces:
        for byte in range(piece.start, piece.end + 1):
            assert piece.kind == union.get(byte, F_UNLCK)


def test_locks_to_the_end_of_every_file() -> None:
    table = LockTable()
    table.put(1, table.after(1, Range(0, LAST, F_WRLCK)))
    table.put(1, table.after(1, Range(10, 19, F_UNLCK)))
    assert table.of(1) == (Range(0, 9, F_WRLCK), Range(20, LAST, F_WRLCK))
    assert table.conflict(2, Range(LAST, LAST, F_RDLCK)) == Range(20, LAST, F_WRLCK)
    table.put(1, table.after(1, Range(10, 19, F_WRLCK)))
    assert table.of(1) == (Range(0, LAST, F_WRLCK),)


@pytest.mark.parametrize(
    "lock", [Range(-1, 3, F_RDLCK), Range(4, 3, F_RDLCK), Range(0, LAST + 1, F_RDLCK), Range(0, 1, 7)]
)
def test_what_no_kernel_says_is_no_range(lock: Range) -> None:
    assert not lock.is_valid


def _table(**owners: Range) -> LockTable:
    table = LockTable()
    for name, lock in owners.items():
        table.put(int(name[1:]), (lock,))
    return table


_BYTE = Range(0, 0, F_WRLCK)


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_circle_of_waiting_owners_is_a_deadlock(length: int) -> None:
    tables = [_table(**{f"o{owner}": _BYTE}) for owner in range(length)]
    waits = Waits()
    waiting = [Waiting(owner, tables[(owner + 1) % length], _BYTE) for owner in range(length)]
    with contextlib.ExitStack() as stack:
        for one in waiting[:-1]:
            assert not waits.is_deadlock(one)
            stack.enter_context(waits.begun(one))
        assert waits.is_deadlock(waiting[-1])
    assert not waits.is_deadlock(waiting[-1])


def test_two_readers_that_both_want_to_write_are_a_deadlock() -> None:
    table, waits = _table(o1=Range(0, 0, F_RDLCK), o2=Range(0, 0, F_RDLCK)), Waits()
    with waits.begun(Waiting(1, table, _BYTE)):
        assert waits.is_deadlock(Waiting(2, table, _BYTE))
    assert not waits.is_deadlock(Waiting(2, table, _BYTE))
    assert len(waits) == 0
