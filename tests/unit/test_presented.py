"""What callers see of a file: a table of records before and after."""

from __future__ import annotations

import stat

import pytest

from ckfs.model import Caller, Record, State
from ckfs.names import Gid, Inode, Uid
from ckfs.policy import presented

FILE, DIRECTORY, LINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO
ALICE = Caller(Uid(2101), Gid(100), pid=7, umask=0o022)
INO = Inode(77)


def record(mode: int, uid: int = 2101, gid: int = 100, **more: object) -> Record:
    return Record(INO, Uid(uid), Gid(gid), mode).with_(**more)


NEW = [
    # the directory's mode (None: the mount's root), the mode asked for: the mode and group of what is made
    (None, FILE | 0o644, FILE | 0o644, 100),
    (None, DIRECTORY | 0o1777, DIRECTORY | 0o1777, 100),
    (DIRECTORY | 0o755, FILE | 0o400, FILE | 0o400, 100),
    (DIRECTORY | 0o1777, FILE | 0o600, FILE | 0o600, 100),
    (DIRECTORY | 0o2755, FILE | 0o644, FILE | 0o644, 500),
    (DIRECTORY | 0o2755, LINK | 0o777, LINK | 0o777, 500),
    (DIRECTORY | 0o2755, FIFO | 0o600, FIFO | 0o600, 500),
    (DIRECTORY | 0o2755, DIRECTORY | 0o755, DIRECTORY | 0o2755, 500),
    (DIRECTORY | 0o2755, DIRECTORY | 0o2700, DIRECTORY | 0o2700, 500),
    (DIRECTORY | 0o4755, DIRECTORY | 0o755, DIRECTORY | 0o755, 100),
]


@pytest.mark.parametrize(("of_directory", "asked", "mode", "gid"), NEW)
def test_something_new(of_directory: int | None, asked: int, mode: int, gid: int) -> None:
    parent = None if of_directory is None else record(of_directory, uid=9, gid=500)
    made = presented.of_new(INO, ALICE, parent, asked, 5, b"n1")
    assert (made.ino, made.uid, made.gid, made.mode, made.rdev) == (INO, ALICE.uid, gid, mode, 5)
    assert made.node == b"n1"
    assert made.state is (State.WRITING if stat.S_ISREG(mode) else State.COMPLETE)


@pytest.mark.parametrize("kind", [FILE, DIRECTORY, LINK, FIFO])
@pytest.mark.parametrize("asked", [0o000, 0o644, 0o7777, FILE | 0o600, DIRECTORY | 0o1777, 0o1000000 | 0o7])
def test_chmod_changes_all_permissions_and_never_the_type(kind: int, asked: int) -> None:
    assert presented.with_mode(record(kind | 0o421), asked).mode == kind | asked & 0o7777


CHOWN = [
    # mode before: after
    (FILE | 0o644, FILE | 0o644),
    (FILE | 0o4755, FILE | 0o755),
    (FILE | 0o2755, FILE | 0o755),
    (FILE | 0o6711, FILE | 0o711),
    (FILE | 0o2644, FILE | 0o2644),
    (FILE | 0o6644, FILE | 0o2644),
    (FILE | 0o1644, FILE | 0o1644),
    (DIRECTORY | 0o6755, DIRECTORY | 0o6755),
    (DIRECTORY | 0o3777, DIRECTORY | 0o3777),
]


@pytest.mark.parametrize(("before", "after"), CHOWN)
@pytest.mark.parametrize(("uid", "gid"), [(5, 6), (5, None), (None, 6), (0, 0)])
def test_chown(before: int, after: int, uid: int | None, gid: int | None) -> None:
    changed = presented.with_owner(
        record(before), None if uid is None else Uid(uid), None if gid is None else Gid(gid)
    )
    assert (changed.uid, changed.gid) == (2101 if uid is None else uid, 100 if gid is None else gid)
    assert changed.mode == after


WRITE = [
    # mode before, uid and gid of the writer: mode after
    (FILE | 0o644, 2102, 200, FILE | 0o644),
    (FILE | 0o4755, 2102, 200, FILE | 0o755),
    (FILE | 0o4755, 2101, 100, FILE | 0o755),
    (FILE | 0o4755, 0, 0, FILE | 0o4755),
    (FILE | 0o6755, 0, 0, FILE | 0o6755),
    (FILE | 0o2755, 2102, 100, FILE | 0o755),
    (FILE | 0o2755, 2102, 200, FILE | 0o755),
    (FILE | 0o2644, 2102, 100, FILE | 0o2644),
    (FILE | 0o2644, 2102, 200, FILE | 0o644),
    (FILE | 0o2644, 2101, 200, FILE | 0o644),
    (FILE | 0o6644, 2101, 100, FILE | 0o2644),
    (FILE | 0o1644, 2102, 200, FILE | 0o1644),
]


@pytest.mark.parametrize(("before", "uid", "gid", "after"), WRITE)
def test_writing(before: int, uid: int, gid: int, after: int) -> None:
    assert presented.after_write(record(before), Uid(uid), Gid(gid)).mode == after


def test_only_what_a_change_is_about_changes() -> None:
    before = record(FILE | 0o644, rdev=3, state=State.PARTIAL, node=b"n")
    for after in (
        presented.with_mode(before, 0o600),
        presented.with_owner(before, Uid(1), Gid(2)),
        presented.after_write(before, Uid(2102), Gid(200)),
    ):
        assert (after.ino, after.rdev, after.state, after.node) == (INO, 3, State.PARTIAL, b"n")
