"""Changes that hang in the store, in process: what they hold up, and what not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from ckfs.errors import StoreDown
from ckfs.names import ROOT_INODE
from ckfs.store.door import Door
from ckfs.store.spots import Found, Spot
from tests.fs.cores import ALICE, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]

_LIMIT_S = 20.0
_TIMEOUT_S = 3.0


class _Held:
    """Directories that are made for Alice wait until they are let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def wrap(self, real: Callable[..., Found]) -> Callable[..., Found]:
        def make(door: Door, spot: Spot, *args: object) -> Found:
            if spot.identity.uid == ALICE.uid:
                self.entered.set()
                assert self.go.wait(_LIMIT_S)
            return real(door, spot, *args)

        return make

    async def has_begun(self) -> None:
        assert await trio.to_thread.run_sync(self.entered.wait, _LIMIT_S)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Held]:
    held = _Held()
    monkeypatch.setattr(Door, "make_directory", held.wrap(Door.make_directory))
    yield held
    held.go.set()


async def _until(done: Callable[[], bool]) -> None:
    with trio.fail_after(_LIMIT_S):
        while not done():  # noqa: ASYNC110 - what is waited for tells nobody
            await trio.sleep(0.01)


async def test_a_set_in_the_making_holds_up_no_other(store: Path, held: _Held) -> None:
    """Through a mount nobody sees this: the kernel lets one change at a time into the root."""
    async with mounted(store) as mount, trio.open_nursery() as nursery:
        nursery.start_soon(mount.alice.mkdir, "alices")
        await held.has_begun()
        with trio.fail_after(_LIMIT_S / 2):
            await mount.bob.mkdir("bobs")
            await mount.bob.rename("bobs", "renamed")
            await mount.bob.rmdir("renamed")
        held.go.set()


async def test_a_name_that_is_being_made_is_not_made_twice(store: Path, held: _Held) -> None:
    async with mounted(store, timeout_s=_TIMEOUT_S) as mount, trio.open_nursery() as nursery:
        with pytest.raises(StoreDown):
            await mount.alice.mkdir("set")
        nursery.start_soon(mount.core.gate.watch)
        await _until(lambda: mount.core.gate.is_up)
        with trio.fail_after(_TIMEOUT_S / 2), pytest.raises(StoreDown):
            await mount.bob.mkdir("set")  # at once: the call that has the name is overdue
        assert mount.core.locks.is_overdue(ROOT_INODE)
        held.go.set()
        await _until(lambda: not mount.core.locks.is_overdue(ROOT_INODE))
        assert set(await mount.bob.list()) == {b"set"}
        nursery.cancel_scope.cancel()
