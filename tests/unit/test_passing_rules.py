"""Which open files the kernel may read and write by itself."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest

from ckfs.model import Record
from ckfs.names import Gid, Inode, Uid
from ckfs.policy.passing import Opened, may_be_read, may_be_written

RECORD = Record(Inode(7), Uid(1000), Gid(1000), stat.S_IFREG | 0o600)
TO_READ = Opened(
    reads=True,
    writes=False,
    is_plain=True,
    record=RECORD,
    size=64 << 10,
    in_batch_set=True,
    is_final=True,
    is_new=False,
)
TO_WRITE = Opened(
    reads=False,
    writes=True,
    is_plain=True,
    record=RECORD,
    size=0,
    in_batch_set=True,
    is_final=False,
    is_new=True,
)


def test_complete_images_are_read() -> None:
    for in_batch_set in (False, True):
        assert may_be_read(replace(TO_READ, in_batch_set=in_batch_set), is_complete=True)


@pytest.mark.parametrize(
    "other",
    [
        {"reads": False, "writes": True},
        {"writes": True},
        {"size": (64 << 10) - 1},
        {"record": RECORD.with_(damaged=1)},
    ],
    ids=str,
)
def test_nothing_else_is_read(other: dict[str, object]) -> None:
    assert not may_be_read(replace(TO_READ, **other), is_complete=True)  # type: ignore[arg-type]  # real fields
    assert not may_be_read(TO_READ, is_complete=False)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"in_batch_set": False},
        {"in_batch_set": False, "is_final": True},
    ],
    ids=str,
)
def test_new_files_are_written_under_names_that_are_not_final_in_batch_sets(other: dict[str, object]) -> None:
    assert may_be_written(replace(TO_WRITE, **other))  # type: ignore[arg-type]  # real fields


@pytest.mark.parametrize(
    "other",
    [
        {"is_final": True},
        {"is_new": False},
        {"reads": True},
        {"reads": True, "writes": False},
        {"is_plain": False},
        {"record": RECORD.with_(mode=RECORD.mode | stat.S_ISUID)},
        {"record": RECORD.with_(mode=RECORD.mode | stat.S_ISGID)},
    ],
    ids=str,
)
def test_nothing_else_is_written(other: dict[str, object]) -> None:
    assert not may_be_written(replace(TO_WRITE, **other))  # type: ignore[arg-type]  # real fields
