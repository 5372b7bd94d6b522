"""Nothing is written that is not charged, in whatever way: the holes that quotas of other systems had, one test each.

Each test has a user of its own, whose usage is compared with what lies in the store when it is over.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from tests.support.images import append, content, opened, resize, save, state, write_all, write_at
from tests.support.payers import UNIT, Charge, MakePlace, Payer, Place
from tests.support.users import errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

PUNCH_HOLE = 0x01 | 0x02
KEEP_SIZE = 0x01
GIB = 1 << 30
NOTES = UNIT
"""What the store's file system may need of its own for a file with holes: a block for attributes, one for where the pieces are."""
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def place(make_place: MakePlace) -> Iterator[Place]:
    """A mount that lets partial images be read: what is left of one after a failure is looked at here."""
    with make_place(
        options=["partial"],
        may_log=["is partial: a write failed", "the trash has no room"],
    ) as place:
        yield place


# Calls


def write_once(path: str, offset: int, data: bytes, flags: int) -> int:
    """One pwrite(2). Of a descriptor that could be mapped the rest is an error of close, too: from there it may have come."""
    fd = os.open(path, flags | os.O_CREAT, 0o600)
    written = os.pwrite(fd, data, offset)
    assert errno_of_call(os.close, fd) in ([0] if flags == os.O_WRONLY else [0, errno.EDQUOT])
    return written


def fallocate(fd: int, mode: int, size: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# Whatever way one writes


def by_write(path: str, size: int) -> None:
    save(path, b"x" * size)


def by_small_writes(path: str, size: int) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for _ in range(size // 700):
            write_all(fd, b"x" * 700)


def by_the_page_cache(path: str, size: int) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        for _ in range(size // 1000):
            write_all(fd, b"x" * 1000)


def by_direct_io(path: str, size: int) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT) as fd, mmap.mmap(-1, size) as aligned:
        written = 0
        while written < size:
            written += os.writev(fd, [memoryview(aligned)[written:]])


def by_appends(path: str, size: int) -> None:
    for _ in range(0, size, 2 * UNIT):
        append(path, b"x" * (2 * UNIT))


def from_the_end(path: str, size: int) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for offset in range(size - UNIT, -1, -UNIT):
            os.pwrite(fd, b"x" * UNIT, offset)


def by_vectors(path: str, size: int) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for offset in range(0, size, 2 * UNIT):
            if os.pwritev(fd, [b"x" * UNIT, b"y" * UNIT], offset) < 2 * UNIT:
                os.pwrite(fd, b"y" * UNIT, offset + UNIT)


def by_small_files(path: str, size: int) -> None:
    for number in range(size // UNIT):
        save(f"{path}-{number}", b"x")


def by_posix_fallocate(path: str, size: int) -> None:
    """The C library writes a byte into each block where the file system has no fallocate."""
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.posix_fallocate(fd, 0, size)


def by_copy_file_range(path: str, size: int) -> None:
    with opened(f"{path}.source", os.O_RDONLY) as source, opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        while size:
            size -= os.copy_file_range(source, fd, size)


def by_sendfile(path: str, size: int) -> None:
    with opened(f"{path}.source", os.O_RDONLY) as source, opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        while size:
            size -= os.sendfile(fd, source, None, size)


def by_splice(path: str, size: int) -> None:
    reading, writing = os.pipe()
    with opened(f"{path}.source", os.O_RDONLY) as source, opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        while size:
            in_pipe = os.splice(source, writing, min(size, 16 * UNIT))
            while in_pipe:
                moved = os.splice(reading, fd, in_pipe)
                in_pipe, size = in_pipe - moved, size - moved


def by_a_mapping(path: str, size: int) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as mapping:
            for offset in range(0, size, UNIT):
                mapping[offset] = 1
                mapping.flush(offset, UNIT)


WAYS: tuple[Callable[[str, int], None], ...] = (
    by_write,
    by_small_writes,
    by_the_page_cache,
    by_direct_io,
    by_appends,
    from_the_end,
    by_vectors,
    by_small_files,
    by_posix_fallocate,
    by_copy_file_range,
    by_sendfile,
    by_splice,
    by_a_mapping,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_writing_ends_at_the_limit_and_not_before(
    payer: Payer, way: Callable[[str, int], None]
) -> None:
    payer.calls(save, payer.inside("image.source"), b"s" * (40 * UNIT))
    payer.may_add(bytes=21 * UNIT + 123)
    with raises_errno(errno.EDQUOT):
        payer.calls(way, payer.inside("image"), 40 * UNIT)
    assert payer.room < UNIT or way is by_posix_fallocate  # all or nothing, where there is fallocate


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_writing_gets_what_fits_exactly(payer: Payer, way: Callable[[str, int], None]) -> None:
    payer.calls(save, payer.inside("image.source"), b"s" * (20 * UNIT))
    payer.may_add(bytes=20 * UNIT)
    payer.calls(way, payer.inside("image"), 20 * UNIT)
    assert payer.room == 0


# Append


def test_what_is_appended_is_charged(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"old")
    payer.may_add(bytes=2 * UNIT)
    payer.calls(append, image, b"n" * (3 * UNIT - 3))
    with raises_errno(errno.EDQUOT):
        payer.calls(append, image, b"x")
    assert payer.calls(content, image) == b"old" + b"n" * (3 * UNIT - 3)
    assert payer.room == 0


def test_an_append_within_the_last_unit_needs_no_room(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"old")
    payer.may_add(bytes=0)
    payer.calls(append, image, b", and new")
    assert payer.calls(content, image) == b"old, and new"


# Rewriting in place


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR], ids=["past the page cache", "through it"])
def test_rewriting_in_place_needs_no_room(payer: Payer, flags: int) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"o" * (10 * UNIT))
    payer.may_add(bytes=0)
    for offset in range(0, 10 * UNIT, 1000):
        size = min(1000, 10 * UNIT - offset)
        assert payer.calls(write_at, image, offset, b"n" * size, flags) == size
    assert payer.calls(content, image) == b"n" * (10 * UNIT)
    assert payer.room == 0


def test_rewriting_again_and_again_through_one_descriptor_is_charged_once(payer: Payer) -> None:
    def rewrite() -> None:
        with opened(payer.inside("image"), os.O_WRONLY | os.O_CREAT) as fd:
            for number in range(30):
                assert os.pwrite(fd, bytes([number]) * (4 * UNIT), 0) == 4 * UNIT

    payer.may_add(bytes=4 * UNIT)
    payer.calls(rewrite)
    assert payer.calls(content, payer.inside("image")) == bytes([29]) * (4 * UNIT)
    assert payer.room == 0


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR], ids=["past the page cache", "through it"])
def test_a_write_over_old_and_new_gets_as_far_as_there_is_room(payer: Payer, flags: int) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"o" * (4 * UNIT))
    payer.may_add(bytes=UNIT)

    def write() -> int:
        with opened(image, flags) as fd:
            written = os.pwrite(fd, b"n" * (5 * UNIT), 2 * UNIT)
            with raises_errno(errno.EDQUOT):
                os.pwrite(fd, b"n", 2 * UNIT + written)
            return written

    assert payer.calls(write) == 3 * UNIT
    assert payer.calls(content, image) == b"o" * (2 * UNIT) + b"n" * (3 * UNIT)


# Holes


def test_holes_cost_nothing_until_they_are_filled(payer: Payer) -> None:
    image = payer.inside("image")
    payer.may_add(bytes=8 * UNIT)
    before = payer.has()
    payer.calls(resize, image, GIB)
    assert (payer.has() - before).bytes <= NOTES
    filled = 0
    with contextlib.suppress(OSError):
        for number in range(1000):
            filled += payer.calls(write_at, image, number * 1_000_000 + 17, b"x")
    has = payer.has() - before
    assert filled * UNIT <= has.bytes <= filled * UNIT + 2 * NOTES
    assert payer.room <= 2 * NOTES
    assert os.path.getsize(image) == GIB


def test_a_hole_in_a_full_quota_stays_one_and_what_is_beside_it_can_be_rewritten(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(write_at, image, 3 * UNIT, b"o" * UNIT)
    payer.may_add(bytes=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(write_at, image, UNIT, b"n")
    assert payer.calls(write_at, image, 3 * UNIT + 5, b"n") == 1
    assert payer.calls(content, image) == bytes(3 * UNIT) + b"ooooon" + b"o" * (UNIT - 6)


def test_seeking_far_and_writing_is_charged_by_what_is_written(payer: Payer) -> None:
    payer.may_add(bytes=10 * UNIT)
    assert payer.calls(write_at, payer.inside("image"), GIB, b"x" * UNIT) == UNIT
    assert 9 * UNIT - NOTES <= payer.room <= 9 * UNIT


# Truncating


def test_truncating_down_frees_and_up_costs_nothing(payer: Payer) -> None:
    image = payer.inside("image.tmp")
    payer.may_add(bytes=10 * UNIT)
    payer.calls(save, image, b"o" * (10 * UNIT))
    with raises_errno(errno.EDQUOT):
        payer.calls(append, image, b"x")
    payer.calls(resize, image, 3 * UNIT + 1)
    assert payer.room == 6 * UNIT
    payer.calls(resize, image, 10 * UNIT)
    assert payer.room == 6 * UNIT
    assert payer.calls(write_at, image, 4 * UNIT, b"n" * (6 * UNIT)) == 6 * UNIT
    assert payer.calls(content, image) == b"o" * (3 * UNIT + 1) + bytes(UNIT - 1) + b"n" * (6 * UNIT)


def test_what_a_writer_cuts_off_he_may_write_again_through_the_same_descriptor(payer: Payer) -> None:
    def write() -> None:
        with opened(payer.inside("image"), os.O_RDWR | os.O_CREAT) as fd:
            for _ in range(10):
                write_all(fd, b"x" * (5 * UNIT))
                with raises_errno(errno.EDQUOT):
                    os.write(fd, b"x")
                os.ftruncate(fd, UNIT)
                os.lseek(fd, UNIT, os.SEEK_SET)
                write_all(fd, b"y" * (4 * UNIT))
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)

    payer.may_add(bytes=5 * UNIT)
    payer.calls(write)
    assert payer.room == 5 * UNIT


def test_opening_with_o_trunc_frees_what_was_there(payer: Payer) -> None:
    image = payer.inside("image.tmp")
    payer.may_add(bytes=6 * UNIT)
    payer.calls(save, image, b"o" * (6 * UNIT))
    payer.calls(save, image, b"n" * (6 * UNIT))
    assert payer.calls(content, image) == b"n" * (6 * UNIT)
    payer.calls(save, image, b"")
    assert payer.room == 6 * UNIT


def test_a_complete_image_is_replaced_also_at_the_limit(payer: Payer) -> None:
    """What it was goes to the trash, and from there for good as the new content needs the room."""
    image = payer.inside("image")
    payer.may_add(bytes=6 * UNIT, files=1)
    payer.calls(save, image, b"o" * (6 * UNIT))
    payer.calls(save, image, b"n" * (6 * UNIT))
    assert payer.calls(content, image) == b"n" * (6 * UNIT)
    assert payer.calls(state, image) == "complete"


# fallocate


@pytest.mark.parametrize("mode", [0, KEEP_SIZE], ids=["allocate", "keep size"])
def test_fallocate_gives_nothing_for_nothing(payer: Payer, mode: int) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"o" * (2 * UNIT))
    payer.may_add(bytes=UNIT)
    before = payer.has()

    def allocate() -> None:
        with opened(image, os.O_WRONLY) as fd:
            fallocate(fd, mode, 10 * UNIT)

    with raises_errno(errno.EOPNOTSUPP, errno.EDQUOT):
        payer.calls(allocate)
    assert payer.has() == before
    assert payer.calls(content, image) == b"o" * (2 * UNIT)


def test_a_hole_that_is_punched_is_free_again(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"o" * (4 * UNIT))
    payer.may_add(bytes=UNIT)

    def punch() -> bool:
        with opened(image, os.O_WRONLY) as fd:
            try:
                fallocate(fd, PUNCH_HOLE, 2 * UNIT)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                return False
        return True

    was_punched = payer.calls(punch)
    assert payer.room == (3 * UNIT if was_punched else UNIT)
    assert payer.calls(content, image) == (b"\0" if was_punched else b"o") * (2 * UNIT) + b"o" * (2 * UNIT)


# What does not fit


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR], ids=["past the page cache", "through it"])
@pytest.mark.parametrize("over", [0, 100], ids=["whole units", "and a part of one"])
def test_the_last_bytes_that_fit_are_written(payer: Payer, flags: int, over: int) -> None:
    image = payer.inside("image")
    payer.may_add(bytes=10 * UNIT + over)
    assert payer.calls(write_once, image, 0, b"x" * (50 * UNIT), flags) == 10 * UNIT
    assert payer.calls(content, image) == b"x" * (10 * UNIT)
    assert payer.room == over


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR], ids=["past the page cache", "through it"])
def test_a_write_that_does_not_fit_changes_nothing_but_the_state(payer: Payer, flags: int) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"o" * (2 * UNIT))
    payer.may_add(bytes=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(write_at, image, 2 * UNIT, b"x" * UNIT, flags)
    assert payer.calls(content, image) == b"o" * (2 * UNIT)
    assert payer.calls(state, image) == "partial"


def test_a_write_at_an_impossible_offset_holds_no_room(payer: Payer) -> None:
    payer.may_add(bytes=2 * UNIT)
    with raises_errno(errno.EFBIG, errno.EINVAL):
        payer.calls(write_at, payer.inside("image"), (1 << 63) - UNIT, b"x" * (2 * UNIT))
    payer.calls(save, payer.inside("other"), b"x" * (2 * UNIT))
    assert payer.room == 0


def test_an_empty_write_needs_no_room(payer: Payer) -> None:
    payer.calls(save, payer.inside("image"), b"")
    payer.may_add(bytes=0)
    assert payer.calls(write_at, payer.inside("image"), 5 * UNIT, b"") == 0


# Shared mappings: what was stored there is written later


def map_and(end: Callable[[int, mmap.mmap], None], path: str, size: int) -> None:
    """Store into all of a hole, then *end* it; what is not flushed by then is when it is closed."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, size) as mapping:  # which has a descriptor of its own, and says nothing of its close
        try:
            mapping[:] = b"m" * size
            end(fd, mapping)
        finally:
            os.close(fd)


ENDS: dict[str, Callable[[int, mmap.mmap], None]] = {
    "msync": lambda fd, mapping: mapping.flush(),
    "fsync": lambda fd, mapping: os.fsync(fd),
    "close": lambda fd, mapping: None,
}


@pytest.mark.parametrize("end", ENDS)
def test_what_is_stored_in_a_mapping_and_does_not_fit_is_an_error_and_a_partial_image(
    payer: Payer, end: str
) -> None:
    image = payer.inside("image")
    payer.calls(resize, image, 8 * UNIT)
    payer.may_add(bytes=4 * UNIT)
    # The kernel makes EIO of what it met before it closed the last descriptor.
    with raises_errno(errno.EDQUOT, *([errno.EIO] if end == "close" else [])):
        payer.calls(map_and, ENDS[end], image, 8 * UNIT)
    assert payer.calls(state, image) == "partial"
    assert payer.room >= 0


@pytest.mark.parametrize("end", ENDS)
def test_what_is_stored_in_a_mapping_and_fits_is_kept(payer: Payer, end: str) -> None:
    image = payer.inside("image")
    payer.calls(resize, image, 8 * UNIT)
    payer.may_add(bytes=8 * UNIT)
    payer.calls(map_and, ENDS[end], image, 8 * UNIT)
    assert payer.calls(content, image) == b"m" * (8 * UNIT)
    assert payer.calls(state, image) == "complete"
    assert payer.room == 0


def test_a_mapping_of_what_is_there_needs_no_room(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"o" * (8 * UNIT))
    payer.may_add(bytes=0)
    payer.calls(map_and, ENDS["msync"], image, 8 * UNIT)
    assert payer.calls(content, image) == b"m" * (8 * UNIT)


# What is charged


def test_usage_is_what_the_store_allocates(payer: Payer) -> None:
    before = payer.has()
    payer.calls(save, payer.inside("image"), b"x" * (UNIT + 1))
    assert payer.has() - before == Charge(2 * UNIT, 1)
