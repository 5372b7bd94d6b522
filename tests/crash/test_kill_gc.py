"""``ckfs gc --apply`` is killed at each of its calls on the store: a real process of its own, and SIGKILL.

Straight afterwards each leftover is where it was or in the trash, whole, and nothing else has changed. The calls are counted in
that process, so that each step is met for certain.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio

from ckfs.cli.gc import gc
from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.names import SetName
from ckfs.store.layout import open_store
from ckfs.store.removed import Item
from tests.crash.dying import MOST_CALLS, Work, changes, killed
from tests.fs.cores import ALICE, copied, keeper_of, mounted, new_store
from tests.fs.failing import Failing
from tests.support.nfs import on_server, remove

pytestmark = pytest.mark.root

OF_GONE, NOBODYS, KEPT = "7.server.CK", "8.server.CK", "9.server.CK"
LEFT = {(OF_GONE, ""), (NOBODYS, ""), (KEPT, ".image.tmp")}
POLICY = """\
[gc]
temporary_hours = 1e-7
unclaimed_days = 1e-8
job_gone_days = 1e-8
[resolvers]
torque_home = ""
command = ["{resolver}"]
"""

Tree = dict[str, tuple[int, int, State, bytes]]
"""Mode, inode, state and content of all that a mount shows."""


@pytest.fixture(scope="module")
def template(file_system: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = new_store(file_system)

    async def fill() -> None:
        async with mounted(store) as mount:
            for name in (OF_GONE, NOBODYS, KEPT):
                await mount.root.mkdir(name)
            for name in (OF_GONE, KEPT):
                await mount.root.setattr(name, Changes(uid=ALICE.uid, gid=ALICE.gid))
                await mount.alice.save(f"{name}/image", b"image of " + name.encode())
                await mount.alice.mkdir(f"{name}/dump")
                await mount.alice.save(f"{name}/dump/core.img", b"core of " + name.encode())
            await mount.root.save(f"{NOBODYS}/image", b"nobody's")
            await mount.alice.save(f"{KEPT}/.image.tmp", b"half")

    trio.run(fill)
    resolver = tmp_path_factory.mktemp("resolver") / "resolver"
    resolver.write_text('#!/bin/sh\ncase "$1" in 7.server) exit 44 ;; esac\nexit 1\n')
    resolver.chmod(0o755)
    (on_server(store) / "policy.toml").write_text(POLICY.format(resolver=resolver))
    return store


def tree(store: Path) -> Tree:
    async def walk() -> Tree:
        async with mounted(store) as mount:
            mount.core.reads_partial = True
            return {
                name: (seen.mode, seen.ino, seen.state, seen.content)
                for name, seen in (await mount.root.walk()).items()
            }

    return trio.run(walk)


def collect(store: Path) -> Work:
    return lambda: gc(str(store), apply=True, as_json=False)


def items(store: Path) -> dict[tuple[str, str], Item]:
    with contextlib.closing(open_store(str(store), keeper_of(store))) as opened:
        found = list(opened.trash.items())
    assert all(isinstance(item, Item) for item in found), found
    named = {
        (item.note.set_name.decode(), item.note.path.decode()): item
        for item in found
        if isinstance(item, Item)
    }
    assert len(named) == len(found), "something is in the trash twice"
    return named


def is_there(seen: Tree, left: tuple[str, str]) -> bool:
    return "/".join(filter(None, left)) in seen


def test_after_a_death_at_any_step_each_leftover_is_where_it_was_or_in_the_trash(
    failing: Failing, template: Path, directory: Path
) -> None:
    before = tree(template)
    count = changes(failing, collect(copied(template, directory / "whole")))
    assert set(items(directory / "whole")) == LEFT
    assert count > len(LEFT)
    half_done = set()
    for at in range(1, count + 1):
        store = copied(template, directory / str(at))
        assert killed(failing, at, collect(store))
        seen, moved = tree(store), items(store)
        for left in LEFT:
            assert is_there(seen, left) != (left in moved), f"{left} at {at}: {sorted(seen)}, {sorted(moved)}"
        assert seen.items() <= before.items(), f"at {at}"
        half_done.add(len(moved))
        put_back(store, moved)
        assert tree(store) == before, f"at {at}"
        assert not killed(failing, MOST_CALLS, collect(store)), "it is run again"
        assert set(items(store)) == LEFT, f"at {at}"
        remove(store)
    assert half_done >= {0, 1, 2}, "it has died before each of them"


def put_back(store: Path, moved: dict[tuple[str, str], Item]) -> None:
    with contextlib.closing(open_store(str(store), keeper_of(store))) as opened:
        for (name, _), item in moved.items():
            assert opened.trash.restore(item) == SetName(name.encode())
