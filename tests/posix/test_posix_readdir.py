"""Reading directories: complete, stable while entries come and go, with true types and inode numbers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.posix.places import ALL_TYPES, TYPE_BITS, DirectoryStream, Place, make, opened, remove

UNKNOWN_TYPE = 0


CROWD = {"mount-root": 300, "gluster": 300}
"""How many entries are many, by kind of place."""


@dataclass(frozen=True)
class Crowd:
    path: str
    names: frozenset[str]

    @property
    def size(self) -> int:
        return len(self.names)


@pytest.fixture(scope="module")
def crowd(area: Place) -> Iterator[Crowd]:
    """A directory with many entries, made once: the first tests read it, the last removes while it reads.

    Where each takes its time, some hundred do.
    """
    names = [f"entry-{number:05}" for number in range(CROWD.get(area.kind, 3000))]
    path = make("dir", f"{area.top}/crowd", 0o755)
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        for name in names:
            os.mknod(name, 0o600, dir_fd=fd)
    yield Crowd(path, frozenset(names))
    remove(path)


def _names(stream: DirectoryStream) -> list[str]:
    return [os.fsdecode(entry.name) for entry in stream.rest()]


def test_every_entry_exactly_once(crowd: Crowd) -> None:
    names = os.listdir(crowd.path)
    assert len(names) == crowd.size
    assert set(names) == crowd.names


def test_dot_and_dotdot_come_with_every_reading(crowd: Crowd) -> None:
    with DirectoryStream(crowd.path) as stream:
        names = _names(stream)
    assert len(names) == crowd.size + 2
    assert set(names) == crowd.names | {".", ".."}


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.2, 0.99, 1])
def test_telldir_and_seekdir(crowd: Crowd, share: float) -> None:
    after = int(share * (crowd.size + 2))
    with DirectoryStream(crowd.path) as stream:
        before = [stream.read() for _ in range(after)]
        position = stream.tell()
        first = stream.rest()
        stream.seek(position)
        assert stream.rest() == first
        assert len(before) + len(first) == crowd.size + 2
        stream.rewind()
        assert len(stream.rest()) == crowd.size + 2


def test_positions_of_one_stream_can_be_used_in_any_order(crowd: Crowd) -> None:
    with DirectoryStream(crowd.path) as stream:
        positions = []
        for number in range(crowd.size):
            if number % (crowd.size // 10) == 0:
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


def test_two_readers_do_not_disturb_each_other(crowd: Crowd) -> None:
    with DirectoryStream(crowd.path) as first, DirectoryStream(crowd.path) as second:
        for _ in range(crowd.size // 3):
            assert first.read() is not None
        assert len(second.rest()) == crowd.size + 2
        assert len(first.rest()) == crowd.size + 2 - crowd.size // 3


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


def test_many_entries_at_the_top(place: Place) -> None:
    """At the mount's root these are sets, whose names are kept elsewhere than a set's entries."""
    made = {os.path.basename(place.make("file" if number % 2 else "dir")) for number in range(200)}
    with DirectoryStream(place.top) as stream:
        positions = [(stream.tell(), stream.read()) for _ in range(150)]
        found = [entry for _, entry in positions if entry is not None] + stream.rest()
        names = [os.fsdecode(entry.name) for entry in found]
        assert made <= set(names)
        assert len(names) == len(set(names))
        for position, entry in positions[::10]:
            stream.seek(position)
            assert stream.read() == entry
        stream.rewind()
        removed = set()
        while (entry := stream.read()) is not None:
            if (name := os.fsdecode(entry.name)) in made:
                remove(f"{place.top}/{name}")
                removed.add(name)
        assert removed == made


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


def test_removing_every_entry_while_reading(crowd: Crowd) -> None:
    """How TORQUE's remtree and rm -r work: unlink what readdir just named. It is the last to use the crowd."""
    removed = 0
    with DirectoryStream(crowd.path) as stream:
        while (entry := stream.read()) is not None:
            if entry.name not in {b".", b".."}:
                os.unlink(f"{crowd.path}/{os.fsdecode(entry.name)}")
                removed += 1
    assert removed == crowd.size
    assert os.listdir(crowd.path) == []
