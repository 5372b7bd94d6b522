"""Reading directories: complete, stable while entries come and go, with true types and inode numbers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest

from tests.posix.places import ALL_TYPES, TYPE_BITS, DirectoryStream, Place, make, opened, remove

UNKNOWN_TYPE = 0


@pytest.fixture(scope="module")
def crowd(area: Place) -> Iterator[str]:
    """A directory with many entries, made once: the first tests read it, the last removes while it reads."""
    path = f"{area.top}/crowd"
    os.mkdir(path, 0o755)
    for number in range(CROWD):
        os.mknod(f"{path}/entry-{number:05}", 0o600)
    yield path
    remove(path)


CROWD = 3000
EVERYBODY = {f"entry-{number:05}" for number in range(CROWD)}


def _names(stream: DirectoryStream) -> list[str]:
    return [os.fsdecode(entry.name) for entry in stream.rest()]


def test_every_entry_exactly_once(crowd: str) -> None:
    names = os.listdir(crowd)
    assert len(names) == CROWD
    assert set(names) == EVERYBODY


def test_dot_and_dotdot_come_with_every_reading(crowd: str) -> None:
    with DirectoryStream(crowd) as stream:
        names = _names(stream)
    assert len(names) == CROWD + 2
    assert set(names) == EVERYBODY | {".", ".."}


@pytest.mark.parametrize("after", [0, 1, 2, 500, 2999, 3001])
def test_telldir_and_seekdir(crowd: str, after: int) -> None:
    with DirectoryStream(crowd) as stream:
        before = [stream.read() for _ in range(after)]
        position = stream.tell()
        first = stream.rest()
        stream.seek(position)
        assert stream.rest() == first
        assert len(before) + len(first) == CROWD + 2
        stream.rewind()
        assert len(stream.rest()) == CROWD + 2


def test_positions_of_one_stream_can_be_used_in_any_order(crowd: str) -> None:
    with DirectoryStream(crowd) as stream:
        positions = []
        for number in range(1000):
            if number % 100 == 0:
                positions.append(stream.tell())
                expected = stream.read()
                stream.seek(positions[-1])
                assert stream.read() == expected
            else:
                stream.read()
        followers = []
        for position in positions:
            stream.seek(position)
            followers.append(stream.read())
        assert len(set(followers)) == len(positions)


def test_two_readers_do_not_disturb_each_other(crowd: str) -> None:
    with DirectoryStream(crowd) as first, DirectoryStream(crowd) as second:
        for _ in range(1000):
            assert first.read() is not None
        assert len(second.rest()) == CROWD + 2
        assert len(first.rest()) == CROWD + 2 - 1000


def test_inode_numbers_and_types_are_those_of_stat(place: Place) -> None:
    path = place.dir()
    for kind in ALL_TYPES:
        make(kind, f"{path}/{kind}")
    with DirectoryStream(path) as stream:
        entries = {os.fsdecode(entry.name): entry for entry in stream.rest()}
    for kind in ALL_TYPES:
        assert entries[kind].inode == os.lstat(f"{path}/{kind}").st_ino
        assert entries[kind].type in {UNKNOWN_TYPE, stat.S_IFMT(TYPE_BITS[kind]) >> 12}
    assert entries["."].inode == os.lstat(path).st_ino
    assert entries[".."].inode == os.lstat(place.top).st_ino
    assert entries["."].type in {UNKNOWN_TYPE, stat.S_IFDIR >> 12}


def test_scandir_at_the_top(place: Place) -> None:
    made = {os.path.basename(place.make(kind, kind)): kind for kind in ALL_TYPES}
    with os.scandir(place.top) as entries:
        found = {entry.name: entry for entry in entries if entry.name in made}
        assert set(found) == set(made)
        for name, entry in found.items():
            assert entry.inode() == os.lstat(f"{place.top}/{name}").st_ino
            assert entry.is_symlink() == (made[name] == "symlink")
            assert entry.is_dir(follow_symlinks=False) == (made[name] == "dir")
            assert entry.is_file(follow_symlinks=False) == (made[name] == "file")


@pytest.mark.parametrize("count", [0, 1, 2, 30, 300])
def test_directories_of_any_size(place: Place, count: int) -> None:
    path = place.dir()
    for number in range(count):
        os.mknod(f"{path}/{number}", 0o600)
    assert sorted(os.listdir(path), key=int) == [str(number) for number in range(count)]


def test_long_names_fill_many_buffers(place: Place) -> None:
    path = place.dir()
    names = {f"{number:03}".ljust(255, "x") for number in range(200)}
    for name in names:
        os.mknod(f"{path}/{name}", 0o600)
    assert set(os.listdir(path)) == names


def test_what_was_there_all_the_time_is_seen_while_others_come_and_go(place: Place) -> None:
    path = place.dir()
    for number in range(300):
        os.mknod(f"{path}/stays-{number}", 0o600)
        os.mknod(f"{path}/goes-{number}", 0o600)
    seen = []
    with DirectoryStream(path) as stream:
        for step in range(10_000):
            entry = stream.read()
            if entry is None:
                break
            seen.append(os.fsdecode(entry.name))
            if step < 300:
                os.unlink(f"{path}/goes-{step}")
                os.mknod(f"{path}/comes-{step}", 0o600)
    stayed = [name for name in seen if name.startswith("stays-")]
    assert len(stayed) == 300
    assert set(stayed) == {f"stays-{number}" for number in range(300)}
    for prefix in ("goes-", "comes-"):
        some = [name for name in seen if name.startswith(prefix)]
        assert len(some) == len(set(some))


def test_an_entry_made_before_rewinddir_is_seen_after_it(place: Place) -> None:
    path = place.dir()
    with DirectoryStream(path) as stream:
        assert sorted(_names(stream)) == [".", ".."]
        os.mknod(f"{path}/new", 0o600)
        stream.rewind()
        assert sorted(_names(stream)) == [".", "..", "new"]
        os.unlink(f"{path}/new")
        stream.rewind()
        assert sorted(_names(stream)) == [".", ".."]


def test_renames_show_at_the_next_reading(place: Place) -> None:
    path = place.dir()
    os.mknod(f"{path}/a", 0o600)
    for old, new in (("a", "b"), ("b", "c"), ("c", "a")):
        os.rename(f"{path}/{old}", f"{path}/{new}")
        assert os.listdir(path) == [new]


def test_a_removed_directory_is_read_as_empty(place: Place) -> None:
    path = place.dir()
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(path)
        assert os.listdir(fd) == []


def test_removing_every_entry_while_reading(crowd: str) -> None:
    """How TORQUE's remtree and rm -r work: unlink what readdir just named. It is the last to use the crowd."""
    removed = 0
    with DirectoryStream(crowd) as stream:
        while (entry := stream.read()) is not None:
            if entry.name not in {b".", b".."}:
                os.unlink(f"{crowd}/{os.fsdecode(entry.name)}")
                removed += 1
    assert removed == CROWD
    assert os.listdir(crowd) == []
