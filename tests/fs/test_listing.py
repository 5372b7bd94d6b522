"""Listings: complete, or an error; never silently short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckfs.errors import FsError
from ckfs.fs import listing
from ckfs.fs.listing import Emit
from ckfs.store import record
from tests.fs.cores import mounted
from tests.support.nfs import on_server

pytestmark = [pytest.mark.root, pytest.mark.trio]


async def test_many_entries_are_each_listed_once(store: Path) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("set")
        names = {b"%04d" % number for number in range(300)}
        for name in names:
            await mount.alice.mknod(f"set/{name.decode()}")
        assert set(await mount.alice.list("set")) == names
        mount.check_nothing_held()


async def test_entries_that_vanish_do_not_end_the_listing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are looked at in portions: several may be gone as a whole by then."""
    monkeypatch.setattr(listing, "_AT_ONCE", 4)
    async with mounted(store) as mount:
        alice = mount.alice
        await alice.mkdir("set")
        for number in range(30):
            await alice.mknod(f"set/{number:04}")
        place = on_server(store) / "users" / "2101" / "set"
        order = os.listdir(place)
        async with alice.at("set") as ino:
            handle = await mount.fs.listing.opendir(ino, alice.caller)
            seen: list[bytes] = []
            offsets = [0]

            def up_to(limit: int) -> Emit:
                def take(name: bytes, _: object, next_offset: int) -> bool:
                    if len(seen) == limit:
                        return False
                    seen.append(name)
                    offsets.append(next_offset)
                    return True

                return take

            try:
                await mount.fs.listing.readdir(handle, 0, up_to(4))
                begun = {name.decode() for name in seen}
                for name in [name for name in order if name not in begun][:-5]:
                    os.unlink(place / name)
                before = -1
                while len(seen) != before:
                    before = len(seen)
                    await mount.fs.listing.readdir(handle, offsets[-1], up_to(100))
            finally:
                await mount.fs.listing.releasedir(handle)
        left = {name.encode() for name in os.listdir(place)}
        assert left <= set(seen)


async def test_a_file_that_cannot_be_looked_at_is_not_left_out(store: Path) -> None:
    """A copy of the directory would lack it, and nobody would know."""
    async with mounted(store) as mount:
        await mount.alice.mkdir("set")
        await mount.alice.save("set/a", b"A")
        await mount.alice.save("set/b", b"B")
        os.setxattr(on_server(store) / "users" / "2101" / "set" / "b", record.ATTRIBUTE, b"damaged")
        try:
            listed = set(await mount.alice.list("set"))
        except (OSError, FsError):
            return
        assert listed == {b"a", b"b"}


async def test_a_set_whose_users_directory_is_gone_spoils_no_listing_and_no_name(store: Path) -> None:
    """An admin removed a user's files: his sets' names are like those that a dead remover left."""
    async with mounted(store) as mount:
        await mount.alice.mkdir("hers")
        await mount.bob.mkdir("his")
        (on_server(store) / "users" / "2101" / "hers").rmdir()
        (on_server(store) / "users" / "2101").rmdir()
        assert set(await mount.root.list()) == {b"his"}
        await mount.bob.mkdir("hers")
