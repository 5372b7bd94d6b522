"""``ckfs gc --apply`` is killed at each of its calls on the store: a real process of its own, and SIGKILL.

Straight afterwards each leftover is where it was or in the trash, whole, and nothing else has changed. The calls are counted in
that process, so that each step is met for certain.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from ckfs.cli.gc import gc
from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.names import SetName
from ckfs.store.layout import open_store
from ckfs.store.removed import Item
from tests.fs.cores import ALICE, copied, mounted, new_store
from tests.fs.failing import Failing

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
_MOST_CALLS = 100_000
_CHANGES = {
    "chmod",
    "chown",
    "fchmod",
    "link",
    "mkdir",
    "removexattr",
    "rename",
    "rmdir",
    "setxattr",
    "symlink",
    "unlink",
    "write",
}

Tree = dict[str, tuple[int, int, State, bytes]]
"""Mode, inode, state and content of all that a mount shows."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template")
    store = new_store(directory)

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
    resolver = directory / "resolver"
    resolver.write_text('#!/bin/sh\ncase "$1" in 7.server) exit 44 ;; esac\nexit 1\n')
    resolver.chmod(0o755)
    (store / "policy.toml").write_text(POLICY.format(resolver=resolver))
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


def killed(failing: Failing, store: Path, at: int) -> bool:
    """Run the command in a process that is killed at its call *at*; whether it was."""
    child = os.fork()
    if child == 0:
        _collect_and_die(failing, store, at)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _collect_and_die(failing: Failing, store: Path, at: int) -> NoReturn:
    def kill() -> BaseException:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a process outlives SIGKILL")

    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            with failing.armed(at, kill):
                status = gc(str(store), apply=True, as_json=False)
    finally:
        os._exit(status)


def steps(failing: Failing, store: Path) -> list[int]:
    """At which of its calls the command changes something: dying before one that only looks is dying before the next of these."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            with failing.armed(_MOST_CALLS, AssertionError):
                gc(str(store), apply=True, as_json=False)
            found = [at for at, call in enumerate(failing.log, 1) if call in _CHANGES]
            os.write(writing, " ".join(map(str, found)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        found = [int(number) for number in answer.read().split()]
    os.waitpid(child, 0)
    return found


def items(store: Path) -> dict[tuple[str, str], Item]:
    with contextlib.closing(open_store(str(store))) as opened:
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
    failing: Failing, template: Path, tmp_path: Path
) -> None:
    before = tree(template)
    where_killed = steps(failing, copied(template, tmp_path / "whole"))
    assert set(items(tmp_path / "whole")) == LEFT
    assert len(where_killed) > len(LEFT)
    half_done = set()
    for at in where_killed:
        store = copied(template, tmp_path / str(at))
        assert killed(failing, store, at)
        seen, moved = tree(store), items(store)
        for left in LEFT:
            assert is_there(seen, left) != (left in moved), f"{left} at {at}: {sorted(seen)}, {sorted(moved)}"
        assert seen.items() <= before.items(), f"at {at}"
        half_done.add(len(moved))
        put_back(store, moved)
        assert tree(store) == before, f"at {at}"
        assert not killed(failing, store, _MOST_CALLS), "it is run again"
        assert set(items(store)) == LEFT, f"at {at}"
        shutil.rmtree(store)
    assert half_done == {0, 1, 2, 3}, "it has died before each of them, and after the last"


def put_back(store: Path, moved: dict[tuple[str, str], Item]) -> None:
    with contextlib.closing(open_store(str(store))) as opened:
        for (name, _), item in moved.items():
            assert opened.trash.restore(item) == SetName(name.encode())
