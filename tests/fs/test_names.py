"""The entries in ``names/`` when mounts get in each other's way, or died half-way: states made by hand."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckfs.errors import ReadOnly, Stale
from ckfs.fs.metadata import Changes
from ckfs.model import Owner
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store import syscalls, walks
from ckfs.store.entries import SetEntry
from ckfs.store.handover import name_owner
from ckfs.store.layout import Store, open_store
from ckfs.store.moving import rename_set
from ckfs.store.setnames import SetNames
from tests.fs.cores import keeper_of, mounted
from tests.support.nfs import on_server

pytestmark = pytest.mark.root

OLD, NEW = SetName(b"old"), SetName(b"new")
BOB = Owner(Uid(2102), Gid(2102))


@pytest.fixture
def chown(path: Path) -> None:
    """For hand-overs that chown files where they lie."""
    if on_server(path) != path:
        pytest.skip("root is squashed and chowns nothing: hand-overs are copies (test_squashed_root.py)")


@pytest.fixture
def exchange(path: Path) -> None:
    """For what happens between an exchange of names and its undoing."""
    if on_server(path) != path:
        pytest.skip(
            "like NFS, this store cannot exchange names: docs/concurrency.md says what is not one step there"
        )


@pytest.fixture
async def made(path: Path) -> SetEntry:
    """A set of Alice's, with an image."""
    async with mounted(path) as mount:
        await mount.alice.mkdir("old")
        await mount.alice.save("old/image", b"image")
    with opened(path) as store:
        return store.names.read(OLD)


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Store]:
    with contextlib.closing(open_store(str(path), keeper_of(path), read_only=read_only)) as store:
        yield store


@pytest.fixture(params=[False, True], ids=["flags", "no flags"])
def lacks_flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the store knows no RENAME_NOREPLACE and RENAME_EXCHANGE, as NFS does not."""
    if request.param:
        real = syscalls.rename

        def rename(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
            if flags:
                raise OSError(errno.EINVAL, "no such flag")
            real(src_dir, src, dst_dir, dst, flags)

        monkeypatch.setattr(syscalls, "rename", rename)
    return bool(request.param)


def entries(path: Path) -> dict[str, str]:
    return {link.name: os.readlink(link) for link in (path / "names").iterdir()}


def just_before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Let another mount do something between the look at an entry and its change, once."""
    real, todo = getattr(SetNames, name), [act]

    def call(*args: object) -> object:
        if todo:
            todo.pop()()
        return real(*args)

    monkeypatch.setattr(SetNames, name, call)


# --- changing what a name says ------------------------------------------------------------------------------------------


@pytest.mark.trio
@pytest.mark.parametrize("lacks_flags", [False], indirect=True)
async def test_a_set_that_is_renamed_in_between_is_not_made_anew(
    path: Path, made: SetEntry, lacks_flags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as store:
        just_before(monkeypatch, "_swap", lambda: store.names.move_if_free(OLD, NEW))
        with pytest.raises(Stale):
            store.names.change(OLD, made, replace(made, owner=BOB))
        assert store.names.read(NEW) == made
    assert list(entries(path)) == ["new"]
    assert not list((path / "staging").iterdir())


@pytest.mark.trio
@pytest.mark.parametrize("lacks_flags", [False], indirect=True)
@pytest.mark.usefixtures("exchange")
async def test_what_another_mount_says_in_between_stays_said(
    path: Path, made: SetEntry, lacks_flags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = replace(made, place=b"elsewhere")
    with opened(path) as store:
        just_before(monkeypatch, "_swap", lambda: store.names.change(OLD, made, theirs))
        with pytest.raises(Stale):
            store.names.change(OLD, made, replace(made, owner=BOB))
        assert store.names.read(OLD) == theirs
    assert not list((path / "staging").iterdir())


@pytest.mark.trio
@pytest.mark.usefixtures("exchange")
async def test_a_set_that_takes_the_name_in_between_keeps_it(
    path: Path, made: SetEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = replace(made, ino=Inode(made.ino + 1), place=b"another")
    with opened(path) as store:

        def act() -> None:
            store.names.move_if_free(OLD, NEW)
            store.names.enter(OLD, another)

        just_before(monkeypatch, "_swap", act)
        with pytest.raises(Stale):
            store.names.change(OLD, made, replace(made, owner=BOB))
        assert (store.names.read(OLD), store.names.read(NEW)) == (another, made)
    assert not list((path / "staging").iterdir())


@pytest.mark.trio
@pytest.mark.usefixtures("exchange")
async def test_of_three_who_take_a_name_in_one_moment_the_last_keeps_it(
    path: Path, made: SetEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = (replace(made, ino=Inode(made.ino + n), place=b"place%d" % n) for n in (1, 2))
    with opened(path) as store:
        for name, entry in (("second", second), ("third", third)):
            store.names.enter(SetName(name.encode()), entry)
        names = on_server(path) / "names"
        just_before(monkeypatch, "_swap", lambda: os.rename(names / "second", names / "old"))
        just_before(monkeypatch, "_swap_back", lambda: os.rename(names / "third", names / "old"))
        with pytest.raises(Stale):
            store.names.change(OLD, made, replace(made, place=b"elsewhere"))
        assert store.names.read(OLD) == third
    assert list(entries(path)) == ["old"]


@pytest.mark.trio
@pytest.mark.usefixtures("exchange")
async def test_a_set_whose_link_cannot_go_back_gets_a_name_again(
    path: Path, made: SetEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the name in between, and what replaced it for a moment has been renamed on in that moment."""
    another = replace(made, ino=Inode(made.ino + 1), place=b"another")
    with opened(path) as store:

        def act() -> None:
            store.names.clear(OLD, made)
            store.names.enter(OLD, another)

        just_before(monkeypatch, "_swap", act)
        just_before(monkeypatch, "_swap_back", lambda: store.names.move_if_free(OLD, NEW))
        with pytest.raises(Stale):
            store.names.change(OLD, made, replace(made, owner=BOB))
        assert store.names.read(OLD) == another
    assert not list((path / "staging").iterdir())


@pytest.mark.trio
async def test_what_a_name_does_not_say_any_more_is_not_changed(
    path: Path, made: SetEntry, lacks_flags: bool
) -> None:
    with opened(path) as store:
        for seen in (replace(made, place=b"elsewhere"), replace(made, ino=Inode(made.ino + 1))):
            with pytest.raises(Stale):
                store.names.change(OLD, seen, replace(made, owner=BOB))
        with pytest.raises(Stale):
            store.names.change(NEW, made, replace(made, owner=BOB))
        store.names.change(OLD, made, replace(made, owner=BOB))
        assert store.names.read(OLD) == replace(made, owner=BOB)
    assert list(entries(path)) == ["old"]
    assert not list((path / "staging").iterdir())


@pytest.mark.trio
@pytest.mark.usefixtures("chown")
async def test_a_hand_over_that_stopped_half_way_is_finished_before_the_next(
    path: Path, made: SetEntry
) -> None:
    """The files lie with Bob, whom the entry still says only as the owner to be; then the set is given back."""
    with opened(path) as store:
        store.names.prepare_user(BOB)
        os.chown(on_server(path) / "users/2101/old", 2102, 2102)
        os.rename(on_server(path) / "users/2101/old", on_server(path) / "users/2102/old")
        store.names.change(OLD, made, replace(made, owner=BOB))
        name_owner(store, OLD, made.ino, Owner(Uid(2101), Gid(2101)))
        entry, _ = store.names.examine(OLD)
        assert entry.owner is not None
        assert (entry.owner.uid, entry.stored.uid) == (2101, 2102)
    async with mounted(path) as mount:
        assert await mount.root.load("old/image") == b"image"
        with opened(path) as store:
            assert store.names.read(OLD).stored.uid == 2101


# --- a rename that died between link and unlink -------------------------------------------------------------------------


def link_both(path: Path) -> None:
    os.link(on_server(path) / "names/old", on_server(path) / "names/new", follow_symlinks=False)


@pytest.mark.trio
async def test_renaming_again_finishes_a_rename_that_died(
    path: Path, made: SetEntry, lacks_flags: bool
) -> None:
    link_both(path)
    async with mounted(path) as mount:
        await mount.alice.rename("old", "new")
        assert set(await mount.alice.list()) == {b"new"}
        assert await mount.alice.load("new/image") == b"image"
    assert list(entries(path)) == ["new"]
    assert (on_server(path) / "users/2101/new/image").read_bytes() == b"image"


@pytest.mark.trio
@pytest.mark.parametrize("name", ["old", "new"])
async def test_removing_one_of_two_names_of_a_set_leaves_the_files_with_the_other(
    path: Path, made: SetEntry, name: str
) -> None:
    link_both(path)
    async with mounted(path) as mount:
        await mount.alice.rmdir(name)  # not empty, but only a name goes
        (other,) = {"old", "new"} - {name}
        assert await mount.alice.load(f"{other}/image") == b"image"
        await mount.alice.remove_tree(other)
        assert not await mount.alice.list()
    assert not (on_server(path) / "users/2101/old").exists()


@pytest.mark.trio
async def test_a_link_that_is_no_name_does_not_keep_the_files(path: Path, made: SetEntry) -> None:
    """What is left in staging of a mount that died while it cleared a name."""
    os.link(on_server(path) / "names/old", on_server(path) / "staging/cleared-1", follow_symlinks=False)
    async with mounted(path) as mount:
        await mount.alice.remove_tree("old")
    assert not (on_server(path) / "users/2101/old").exists()


@pytest.mark.trio
@pytest.mark.parametrize("name", ["old", "new"])
async def test_giving_a_set_with_two_names_away_leaves_the_one_that_was_given(
    path: Path, made: SetEntry, name: str
) -> None:
    link_both(path)
    async with mounted(path) as mount:
        await mount.root.setattr(name, Changes(uid=Uid(2102)))
        assert await mount.bob.load(f"{name}/image") == b"image"
    assert list(entries(path)) == [name]


@pytest.mark.trio
async def test_sets_that_are_links_of_one_file_both_stay(path: Path, lacks_flags: bool) -> None:
    async with mounted(path) as mount:
        await mount.alice.save("one", b"image")
        await mount.alice.link("one", "two")
        await mount.alice.rename("one", "two")
        assert set(await mount.alice.list()) == {b"one", b"two"}


@pytest.mark.trio
@pytest.mark.parametrize("lacks_flags", [True], indirect=True)
async def test_of_two_mounts_that_rename_a_set_in_one_moment_one_does(
    path: Path, made: SetEntry, lacks_flags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without flags in the store both give it a name first."""
    with opened(path) as store:
        just_before(monkeypatch, "clear", lambda: store.names.move_if_free(OLD, SetName(b"theirs")))
        with pytest.raises(FileNotFoundError):
            store.names.move_if_free(OLD, NEW)
        assert list(entries(path)) == ["theirs"]
        assert store.names.read(SetName(b"theirs")) == made
    assert not list((path / "staging").iterdir())


@pytest.mark.trio
@pytest.mark.parametrize("lacks_flags", [True], indirect=True)
async def test_a_set_that_is_removed_while_it_is_renamed_keeps_the_new_name(
    path: Path, made: SetEntry, lacks_flags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removes one of two names leaves the files to the other."""
    with opened(path) as store:
        names = store.names

        def remove() -> None:
            names.remove(OLD, lambda entry, found: pytest.fail("the files went"), lambda found: None)

        just_before(monkeypatch, "clear", remove)
        names.move_if_free(OLD, NEW)
        assert (list(entries(path)), names.read(NEW)) == (["new"], made)


@pytest.mark.trio
async def test_a_rename_without_flags_in_the_store_leaves_one_name(
    path: Path, made: SetEntry, lacks_flags: bool
) -> None:
    with opened(path) as store:
        rename_set(store.names, store.door, OLD, NEW, 0, lambda *_: None, lambda *_: None)
    assert list(entries(path)) == ["new"]
    assert not list((path / "staging").iterdir())


# --- read-only ----------------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_nothing_changes_a_name_through_a_read_only_mount(path: Path, made: SetEntry) -> None:
    with opened(path, read_only=True) as store:
        names = store.names
        changes: tuple[Callable[[], object], ...] = (
            lambda: names.enter(NEW, made),
            lambda: names.change(OLD, made, replace(made, owner=BOB)),
            lambda: names.move_if_free(OLD, NEW),
            lambda: names.move_over(OLD, OLD, made),
            lambda: names.exchange(OLD, OLD),
            lambda: names.clear(OLD, made),
            lambda: names.replace_if(OLD, made, replace(made, owner=BOB)),
        )
        for change in changes:
            with pytest.raises(ReadOnly):
                change()
    assert list(entries(path)) == ["old"]


@pytest.mark.trio
@pytest.mark.parametrize("follows", [True, False])
async def test_calls_at_the_top_of_a_read_only_mount_change_no_name(
    path: Path, made: SetEntry, *, follows: bool
) -> None:
    if not follows:  # given away, and the mount died before the files followed
        with opened(path) as store:
            store.names.change(OLD, made, replace(made, owner=BOB))
    async with mounted(path) as mount:
        await mount.alice.save("file", b"x")
        await mount.alice.mkdir("empty")
    with opened(path) as store:
        if not follows:
            store.names.change(OLD, store.names.read(OLD), replace(made, owner=BOB))
    before = entries(path)
    async with mounted(path, read_only=True) as mount:
        for call in (
            lambda: mount.root.setattr("old", Changes(uid=Uid(2103))),
            lambda: mount.root.setattr("file", Changes(uid=Uid(2102))),
            lambda: mount.root.rename("old", "new"),
            lambda: mount.root.rename("file", "new"),
            lambda: mount.root.mkdir("new"),
            lambda: mount.root.symlink("new", b"target"),
            lambda: mount.root.unlink("file"),
            lambda: mount.root.rmdir("empty"),
            lambda: mount.root.link("file", "new"),
        ):
            with pytest.raises(ReadOnly):
                await call()
        assert await mount.root.load("old/image") == b"image"
    assert entries(path) == before


# --- searching ----------------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_search_for_a_moved_file_ends_at_its_deadline(path: Path, made: SetEntry) -> None:
    async with mounted(path) as mount:
        wanted = (await mount.alice.stat("old/image")).record.ino
    with opened(path) as store:
        assert walks.find(store.door, made.spot, wanted, time.monotonic() + 10) == [(b"image", wanted)]
        assert walks.find(store.door, made.spot, wanted, time.monotonic() - 1) == []
