"""A store whose file system is really full, of blocks or of inodes: ENOSPC where something is begun or written; all else goes on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.mounting import Mount, make_store, mounted
from tests.support.small_disks import ext4, tmpfs
from tests.support.users import ALICE, BOB, as_user, errno_as, errno_of_call

pytestmark = pytest.mark.root

MIB = 1 << 20
SMALL = Callable[[Path, int, int], AbstractContextManager[Path]]
_MAY_LOG = r"image .* is (partial: a write failed|removed for good: the trash has no room)"
"""What is torn for want of room."""
_MOST_FILES = 4000
_PATIENCE_S = 60.0

FILE_SYSTEMS = pytest.mark.parametrize("small", [ext4, tmpfs], ids=["ext4", "tmpfs"])


@contextlib.contextmanager
def small_store(workdir: Path, small: SMALL, size: int, inodes: int, policy: str) -> Iterator[Mount]:
    with small(workdir, size, inodes) as top:
        store = make_store(top)
        (store / "policy.toml").write_text(policy)
        with mounted(store, workdir / "mount", role="both", may_log=[_MAY_LOG]) as mount:
            for uid in (ALICE, BOB):
                as_user(uid, begin, mount.path / str(uid))
            yield mount


def begin(directory: Path) -> None:
    directory.mkdir()
    (directory / "image").write_bytes(b"image" * 1000)


def fill(path: Path) -> int:
    """Write until that is refused; returns the errno."""
    with path.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(64 << 10))
            except OSError as error:
                return error.errno or 0


def make_files(directory: Path) -> int:
    """Make empty files until that is refused; returns the errno."""
    for number in range(_MOST_FILES):
        try:
            os.close(os.open(directory / f"n{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError as error:
            return error.errno or 0
    return 0


NO_RESERVE = '[trash]\nretention_days = 0\n[quota]\nreserve = "0%"\n'


@FILE_SYSTEMS
def test_a_full_store_says_so_at_write_and_goes_on(workdir: Path, small: SMALL) -> None:
    with small_store(workdir, small, 16 * MIB, 2000, NO_RESERVE) as mount:
        hers = mount.path / str(ALICE)
        assert as_user(ALICE, fill, hers / "filling") == errno.ENOSPC
        assert as_user(BOB, fill, mount.path / str(BOB) / "filling") == errno.ENOSPC
        assert as_user(ALICE, (hers / "image").read_bytes) == b"image" * 1000
        os.chown(hers, BOB, BOB)
        assert errno_as(BOB, os.unlink, hers / "filling") == 0
        as_user(BOB, (hers / "after").write_bytes, bytes(MIB))
        assert as_user(BOB, (hers / "after").read_bytes) == bytes(MIB)


@FILE_SYSTEMS
def test_a_store_without_inodes_says_so_at_create_and_goes_on(workdir: Path, small: SMALL) -> None:
    with small_store(workdir, small, 32 * MIB, 256, NO_RESERVE) as mount:
        hers = mount.path / str(ALICE)
        assert as_user(ALICE, make_files, hers) == errno.ENOSPC
        assert errno_as(BOB, os.mkdir, mount.path / "more") == errno.ENOSPC
        assert errno_as(BOB, os.symlink, "x", mount.path / str(BOB) / "link") == errno.ENOSPC
        assert as_user(ALICE, (hers / "image").read_bytes) == b"image" * 1000
        os.chown(hers, BOB, BOB)
        os.chown(hers, ALICE, ALICE)
        os.chown(hers, BOB, BOB)
        for number in range(3):
            assert errno_as(BOB, os.unlink, hers / f"n{number}") == 0
        as_user(BOB, (hers / "after").write_bytes, b"after")


def rewrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


@FILE_SYSTEMS
def test_the_reserve_is_for_root_and_for_what_is_being_written(workdir: Path, small: SMALL) -> None:
    policy = '[trash]\nretention_days = 0\n[quota]\nreserve = "8M"\n'
    with small_store(workdir, small, 24 * MIB, 2000, policy) as mount:
        hers, his = mount.path / str(ALICE), mount.path / str(BOB)

        def write_on() -> tuple[int, int]:
            """What begins while there is room ends at the real end of the store; nothing new begins meanwhile."""
            with (hers / "long").open("wb", buffering=0) as file:
                while os.statvfs(mount.path).f_bavail:
                    file.write(bytes(64 << 10))
                refused = first_refusal(lambda number: os.mkdir(hers / f"new{number}"))
                return refused, errno_of_call(file.write, bytes(64 << 10))

        assert as_user(ALICE, write_on) == (errno.ENOSPC, 0)
        assert errno_as(BOB, rewrite, his / "image", b"x") == errno.ENOSPC
        assert errno_as(BOB, (his / "image").write_bytes, b"x") == errno.ENOSPC
        assert as_user(BOB, (his / "image").read_bytes) == b"image" * 1000
        (mount.path / "of-root").mkdir()
        (mount.path / "of-root/image").write_bytes(bytes(MIB))
        as_user(ALICE, os.unlink, hers / "long")
        until_it_works(lambda: as_user(BOB, rewrite, his / "image", b"x"))


def first_refusal(call: Callable[[int], object]) -> int:
    """The errno with which *call*, made again and again, is refused: the daemon looks at the store once a second only."""
    deadline = time.monotonic() + _PATIENCE_S
    for number in itertools.count():
        assert time.monotonic() < deadline
        if refused := errno_of_call(call, number):
            return refused
    return 0


def until_it_works(call: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while errno_of_call(call):
        assert time.monotonic() < deadline


@FILE_SYSTEMS
def test_the_trash_gives_way_to_the_reserve(workdir: Path, small: SMALL) -> None:
    with small_store(workdir, small, 24 * MIB, 2000, '[quota]\nreserve = "8M"\n') as mount:
        hers = mount.path / str(ALICE)
        as_user(ALICE, (hers / "old").write_bytes, os.urandom(12 * MIB))
        as_user(ALICE, os.unlink, hers / "old")
        as_user(ALICE, (hers / "new").write_bytes, os.urandom(12 * MIB))
        assert as_user(ALICE, (hers / "new").stat).st_size == 12 * MIB
