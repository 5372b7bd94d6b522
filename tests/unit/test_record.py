"""The attribute that ckfs keeps with every file: what is written is read, by this version and by later ones."""

from __future__ import annotations

import stat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckfs.model import Keep, Record, State
from ckfs.names import Gid, Inode, Uid
from ckfs.store import record

IDS = st.integers(0, 0xFFFFFFFE)
TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
RECORDS = st.builds(
    Record,
    ino=st.integers(1, (1 << 63) - 1).map(Inode),
    uid=IDS.map(Uid),
    gid=IDS.map(Gid),
    mode=st.builds(int.__or__, st.sampled_from(TYPES), st.integers(0, 0o7777)),
    rdev=st.integers(0, (1 << 64) - 1),
    state=st.sampled_from(State),
    node=st.one_of(st.binary(max_size=64), st.from_regex(rb"[a-z0-9._-]{1,64}", fullmatch=True)),
    completed=st.integers(0, 1 << 70),
    synced=st.none() | st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 70)),
    keep=st.sampled_from(Keep),
    damaged=st.integers(0, 1 << 70),
)
EXAMPLE = Record(Inode(0x5F3A90C1E2D4B687), Uid(2101), Gid(2101), 0o100400, 0, State.COMPLETE, b"tqn1")


def test_the_form_is_the_documented_one() -> None:
    """Changing it needs a new version: every store that was ever written holds this."""
    assert record.encode(EXAMPLE) == b"1;i=5f3a90c1e2d4b687;u=2101;g=2101;m=100400;r=0;s=c;n=tqn1"


@given(RECORDS)
@example(EXAMPLE.with_(node=b";n=;s=w;u=0"))
@example(EXAMPLE.with_(node=b""))
@example(EXAMPLE.with_(node=b"\x00\xff;="))
def test_what_is_written_is_read(written: Record) -> None:
    assert record.decode(record.encode(written)) == written


@given(
    RECORDS, st.lists(st.from_regex(rb"[abe-fhjlo-qtv-xz][a-z]{0,5}=[^;]{0,20}", fullmatch=True), max_size=4)
)
def test_fields_of_later_versions_are_ignored(written: Record, more: list[bytes]) -> None:
    known, _, node = record.encode(written).partition(b";n=")
    for fields in (
        [known, *more],
        [known.replace(b"1;", b"1;" + b"".join(field + b";" for field in more), 1)],
    ):
        assert record.decode(b";".join(fields) + b";n=" + node) == written


@given(st.binary(max_size=200))
@example(b"")
@example(b"probe")
@example(b"1")
@example(b"2" + record.encode(EXAMPLE)[1:])
def test_garbage_is_no_record(raw: bytes) -> None:
    found = record.decode(raw)
    assert found is None or isinstance(found, Record)


@pytest.mark.parametrize("version", [b"", b"0", b"2", b"11", b"1.1", b" 1"])
def test_records_of_other_versions_are_not_guessed(version: bytes) -> None:
    assert record.decode(version + record.encode(EXAMPLE)[1:]) is None


FIELDS = record.encode(EXAMPLE).split(b";")


@pytest.mark.parametrize("missing", [field for field in FIELDS[1:] if not field.startswith(b"n")])
def test_a_record_with_a_field_too_few_is_damaged(missing: bytes) -> None:
    assert record.decode(b";".join(field for field in FIELDS if field != missing)) is None


def test_the_writers_node_may_be_missing() -> None:
    assert record.decode(b";".join(FIELDS[:-1])) == EXAMPLE.with_(node=b"")


@pytest.mark.parametrize(
    "wrong", [b"i=", b"i=x", b"u=", b"u=a", b"g=1.5", b"m=9", b"m=rw", b"r=g", b"s=", b"s=x", b"s=cc"]
)
def test_a_field_of_no_sense_makes_the_record_damaged(wrong: bytes) -> None:
    fields = [wrong if field[:2] == wrong[:2] else field for field in FIELDS]
    assert record.decode(b";".join(fields)) is None


@given(st.data())
def test_what_is_cut_short_is_damaged_or_lacks_the_node(data: st.DataObject) -> None:
    whole = record.encode(EXAMPLE)
    length = data.draw(st.integers(0, whole.index(b";s=") + 2))
    assert record.decode(whole[:length]) is None


def test_new_inodes_are_never_the_roots_nor_each_others() -> None:
    made = [record.new_inode() for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert all(1 < ino < 1 << 63 for ino in made)


@pytest.mark.parametrize(
    ("mode", "state"), [(stat.S_IFREG | 0o640, State.UNKNOWN), (stat.S_IFDIR | 0o755, State.COMPLETE)]
)
def test_an_adopted_file_is_what_the_store_says(mode: int, state: State) -> None:
    found = record.adopted(mode, 2101, 100, 7)
    assert (found.uid, found.gid, found.mode, found.state) == (2101, 100, mode, state)
    assert found.ino > 1


def test_an_empty_file_without_a_record_is_no_complete_image() -> None:
    """A mount died between making it and writing its record."""
    assert record.adopted(0o100600, 2101, 100, 0).state is State.WRITING
