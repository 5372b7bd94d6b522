"""What is just being released, of what the kernel wrote by itself: who asks what became of it waits, and for nothing that is closed later."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
import trio.testing

from ckfs.fs.inodes import Handle, Node, Through
from ckfs.fs.unseen import Unseen
from tests.fs.cores import Mount, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]


async def written_unseen(mount: Mount, path: str) -> Handle:
    handle = mount.core.handle(await mount.alice.create(path))
    handle.through = Through.KERNEL
    return handle


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
