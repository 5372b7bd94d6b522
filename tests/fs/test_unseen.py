"""What the kernel writes by itself: what becomes of it when it is closed, and who waits for that."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
import trio.testing

from ckfs.fs.inodes import Handle, Node, Through
from ckfs.fs.plenty import Plenty
from ckfs.fs.unseen import Unseen
from ckfs.model import State
from ckfs.names import Uid
from ckfs.store.spots import VolumeId
from tests.fs.cores import Mount, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]


async def written_unseen(mount: Mount, path: str) -> Handle:
    handle = mount.core.handle(await mount.alice.create(path))
    handle.through = Through.KERNEL
    mount.fs.passing.unseen.begin(handle)
    return handle


class Saying(Plenty):
    """Says of the room what it is told to, one after the other."""

    def __init__(self, plenty: Plenty, *answers: bool | None) -> None:
        super().__init__(plenty.core, plenty.asking)
        self._answers = list(answers)

    async def is_tight(self, volume: VolumeId, payer: Uid) -> bool | None:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


ROOM_AND_STATES = [
    pytest.param([False], State.COMPLETE, id="room"),
    pytest.param([None, None, False], State.COMPLETE, id="a while in which nobody knows"),
    pytest.param([True, False], State.PARTIAL, id="a while in which there is hardly any"),
    pytest.param([None], State.PARTIAL, id="nobody knows to the end"),
]


@pytest.mark.parametrize(("said", "state"), ROOM_AND_STATES)
async def test_an_image_is_doubted_if_there_was_hardly_any_room(
    store: Path, said: list[bool | None], state: State
) -> None:
    async with mounted(store) as mount, trio.open_nursery() as nursery:
        await mount.alice.mkdir("d")
        unseen = mount.fs.passing.unseen
        unseen.plenty = Saying(unseen.plenty, *said)
        number = await mount.alice.create("d/a")
        handle = mount.core.handle(number)
        handle.through = Through.KERNEL
        unseen.begin(handle)
        nursery.start_soon(unseen.run)
        await trio.sleep(0.6)  # it looks again and again
        await mount.fs.content.release(number)
        assert (await mount.alice.stat("d/a")).record.state is state
        nursery.cancel_scope.cancel()


async def _wait(unseen: Unseen, node: Node, is_over: trio.Event) -> None:
    await unseen.until_released(node)
    is_over.set()


@pytest.mark.parametrize("of", ["its set", "the root"])
async def test_what_is_closed_earlier_is_waited_for_and_what_is_closed_later_is_not(
    store: Path, of: str
) -> None:
    async with mounted(store) as mount, trio.open_nursery() as nursery:
        await mount.alice.mkdir("d")
        unseen, is_over = mount.fs.passing.unseen, trio.Event()
        first, second = await written_unseen(mount, "d/a"), await written_unseen(mount, "d/b")
        node = mount.core.inodes.root if of == "the root" else second.node
        with contextlib.ExitStack() as later:
            with unseen.releasing(first):
                nursery.start_soon(_wait, unseen, node, is_over)
                await trio.testing.wait_all_tasks_blocked()
                later.enter_context(unseen.releasing(second))
                assert not is_over.is_set()
            with trio.fail_after(1):
                await is_over.wait()


async def test_nobody_waits_for_what_is_closed_in_another_set(store: Path) -> None:
    async with mounted(store) as mount:
        for name in "de":
            await mount.alice.mkdir(name)
        unseen = mount.fs.passing.unseen
        first, second = await written_unseen(mount, "d/a"), await written_unseen(mount, "e/b")
        with unseen.releasing(first), trio.fail_after(1):
            await unseen.until_released(second.node)
