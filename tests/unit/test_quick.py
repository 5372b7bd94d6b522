"""Reading what a local store has in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.store.quick import QuickReader

CONTENT = bytes(range(256)) * 40


@pytest.fixture(params=["/dev/shm", "/var/tmp"], ids=["tmpfs", "disk"])
def file(request: pytest.FixtureRequest) -> Iterator[int]:
    path = Path(request.param) / f"ckfs-quick-{os.getpid()}"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    yield fd
    os.close(fd)


@pytest.fixture
def reader(request: pytest.FixtureRequest) -> QuickReader:
    return QuickReader(in_memory="tmpfs" in request.node.callspec.id)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4096), (1, 5), (len(CONTENT) - 3, 4096), (len(CONTENT), 4096), (1 << 40, 1)]
)
def test_it_reads_what_pread_reads(reader: QuickReader, file: int, offset: int, size: int) -> None:
    assert bytes(reader.read(file, offset, size) or b"") == os.pread(file, size, offset)


def test_a_read_larger_than_the_kernels_is_left_to_a_thread(reader: QuickReader, file: int) -> None:
    assert reader.read(file, 0, (1 << 20) + 1) is None


def test_a_read_that_fails_is_left_to_a_thread(reader: QuickReader, file: int) -> None:
    write_only = os.open(f"/proc/self/fd/{file}", os.O_WRONLY)
    try:
        assert reader.read(write_only, 0, 1) is None
    finally:
        os.close(write_only)


def test_what_is_not_in_memory_is_left_to_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "cold"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        piece = QuickReader(in_memory=False).read(fd, 0, 4096)
        assert piece is None or piece == CONTENT[:4096]  # what is not on a disk cannot be dropped
        assert os.pread(fd, 4096, 0) == CONTENT[:4096]
        assert QuickReader(in_memory=False).read(fd, 0, 4096) in (None, CONTENT[:4096])
    finally:
        os.close(fd)
