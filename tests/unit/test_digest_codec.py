"""The digest of an image as an attribute, what it fits, and the queue of those that are to be made."""

from __future__ import annotations

import os
import stat

import pytest
import trio
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from ckfs.fs.inodes import Place
from ckfs.fs.undigested import UndigestedImages
from ckfs.model import Record, State
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store import digests, record
from ckfs.store.digests import ALGORITHM, Digest, decode, encode, new_hash
from ckfs.store.spots import Found

VALUE = "99aa06d3014798d86001c324468d497f"
DIGEST = Digest(ALGORITHM, VALUE, 10, 0x17979CFE362A0000)


def found(
    state: State = State.COMPLETE,
    *,
    size: int = 10,
    completed: int = DIGEST.completed,
    mode: int = 0o100644,
    blocks: int = 8,
) -> Found:
    status = os.stat_result((mode, 1, 1, 1, 0, 0, size, 0, 0, 0), {"st_blocks": blocks})
    return Found(status, Record(Inode(5), Uid(0), Gid(0), mode, state=state, completed=completed))


# The attribute


def test_the_attribute_reads_as_documented() -> None:
    assert encode(DIGEST) == b"1;a=xxh3-128;h=" + VALUE.encode() + b";z=10;c=17979cfe362a0000"


@given(
    st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{8,128}", fullmatch=True),
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 63),
)
def test_what_was_written_is_read(algorithm: str, value: str, size: int, completed: int) -> None:
    digest = Digest(algorithm, value, size, completed)
    assert decode(encode(digest)) == digest


@given(st.binary(max_size=200))
def test_whatever_is_there_is_a_digest_or_none(raw: bytes) -> None:
    digest = decode(raw)
    assert digest is None or decode(encode(digest)) == digest


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1",
        b"2;a=xxh3-128;h=99aa06d3014798d8;z=10;c=1",  # of a later version
        b"1;a=xxh3-128;h=99aa06d3014798d8;z=10",
        b"1;a=xxh3-128;h=99aa06d3014798d8;c=1",
        b"1;h=99aa06d3014798d8;z=10;c=1",
        b"1;a=xxh3-128;z=10;c=1",
        b"1;a=xxh3-128;h=99AA06D3014798D8;z=10;c=1",
        b"1;a=xxh3-128;h=99aa\n06d3014798d8;z=10;c=1",
        b"1;a=\xff;h=99aa06d3014798d8;z=10;c=1",
        b"1;a=xxh3-128;h=99aa06d3014798d8;z=-1;c=1",
        b"1;a=xxh3-128;h=99aa06d3014798d8;z=10;c=-1",
        b"1;a=xxh3-128;h=99aa06d3014798d8;z=ten;c=1",
    ],
)
def test_what_is_damaged_or_of_a_later_version_is_none(raw: bytes) -> None:
    assert decode(raw) is None


def test_fields_of_later_versions_do_not_matter() -> None:
    assert decode(encode(DIGEST) + b";q=what;;k") == DIGEST


def test_the_hash_is_the_one_that_the_attribute_names() -> None:
    content = os.urandom(100_000)
    hashing = new_hash()
    hashing.update(content[:1000])
    hashing.update(content[1000:])
    assert hashing.hexdigest() == xxhash.xxh3_128_hexdigest(content)
    assert ALGORITHM == "xxh3-128"


# What it fits


@pytest.mark.parametrize(
    ("image", "fits"),
    [
        (found(), True),
        (found(State.SUPERSEDED), True),
        (found(State.WRITING), False),
        (found(State.PARTIAL), False),
        (found(State.UNKNOWN), False),
        (found(size=11), False),
        (found(completed=DIGEST.completed + 1), False),
        (found(mode=stat.S_IFLNK | 0o777), False),
    ],
)
def test_it_fits_the_one_completion_that_it_is_of(image: Found, fits: bool) -> None:
    assert DIGEST.fits(image) is fits


def test_what_is_empty_has_none() -> None:
    assert not digests.has_digest(found(size=0))


@pytest.mark.parametrize(("holes", "has"), [(1 << 40, True), ((1 << 40) + 1, False), (1 << 62, False)])
def test_what_is_holes_to_more_than_a_tebibyte_has_none(holes: int, has: bool) -> None:
    assert digests.has_digest(found(size=8 * 512 + holes, blocks=8)) is has
    assert digests.has_digest(found(size=1))


# When damage was found


def test_the_record_says_since_when_an_image_is_damaged() -> None:
    marked = found(State.PARTIAL).record.with_(damaged=0xABC, node=b"n;d=5")
    raw = record.encode(marked)
    assert b";d=abc;n=" in raw
    assert record.decode(raw) == marked
    assert b";d=" not in record.encode(marked.with_(damaged=0, node=b""))


# The queue


def place(name: str) -> Place:
    return Place(SetName(b"set"), (name.encode(),))


@pytest.mark.trio
async def test_the_queue_gives_them_in_order_and_each_once() -> None:
    queue = UndigestedImages(delay_s=0)
    for number in (1, 2, 3):
        queue.add(Inode(number), place(str(number)))
    queue.add(Inode(1), place("moved"))
    got = [await queue.next() for _ in range(3)]
    assert [image.ino for image in got] == [2, 3, 1]
    assert got[2].place == place("moved")
    assert len(queue) == 0


@pytest.mark.trio
async def test_a_try_that_failed_takes_nothing_from_a_newer_completion() -> None:
    queue = UndigestedImages(delay_s=0)
    queue.add(Inode(1), place("first"))
    first = await queue.next()
    queue.again(first)
    second = await queue.next()
    assert (second.place, second.tries) == (place("first"), 1)
    queue.add(Inode(1), place("completed anew"))
    queue.again(second)
    third = await queue.next()
    assert (third.place, third.tries) == (place("completed anew"), 0)
    assert len(queue) == 0


@pytest.mark.trio
async def test_the_queue_is_bounded() -> None:
    queue = UndigestedImages(most=2, delay_s=0)
    for number in (1, 2, 3):
        queue.add(Inode(number), place(str(number)))
    assert len(queue) == 2
    queue.add(Inode(2), place("2"))  # is in it already
    assert [(await queue.next()).ino, (await queue.next()).ino] == [1, 2]


@pytest.mark.trio
async def test_who_waits_for_the_queue_gets_what_comes() -> None:
    queue = UndigestedImages(delay_s=0)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            got: list[int] = []

            async def take() -> None:
                got.append((await queue.next()).ino)

            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            queue.add(Inode(7), place("seven"))
    assert got == [7]
