"""The daemon is killed while users write: what was acknowledged before is there under the next mount, as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.mounting import Mount, mounted
from tests.support.users import ALICE, BOB, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

WRITERS = (ALICE, BOB, 2103)
KILLED_AFTER = (1, 8, 21, 46, 75, 130)
"""Per round, how many steps the first writer has acknowledged; the others are anywhere by then."""
WITHIN = 30.0
"""Seconds for a writer's next step, and for its end once the daemon is dead."""
DIED = {errno.ENOTCONN, errno.ECONNABORTED}
"""What calls are answered with when the daemon dies: before and while it has them."""

Step = tuple[str, str, str]
"""What is done, to which name, and with what: more data, or the new name."""
Tree = dict[str, bytes | None]
"""Names below the mount, and the content of each file; None is a directory."""


def steps(uid: int, turn: int) -> Iterator[Step]:
    """What a writer does: sets as a checkpointer makes them, one after the other, for ever."""
    number = 0
    while True:
        new, done = f"u{uid}-{turn}-{number}.new", f"u{uid}-{turn}-{number}"
        yield "mkdir", new, ""
        yield "write", f"{new}/image.tmp", f"image {number} of {done}\n" * 500
        yield "rename", f"{new}/image.tmp", f"{new}/image"
        yield "mkdir", f"{new}/pages", ""
        yield "fsync", f"{new}/pages/one", f"first half of {done}, "
        yield "close", f"{new}/pages/one", "and the second"
        yield "rename", new, done
        yield "write", f"{done}/image.tmp", f"later image of {done}\n" * 5000
        yield "rename", f"{done}/image.tmp", f"{done}/image"
        yield "rename", f"{done}/pages", f"{done}/all pages"
        number += 1


def after(tree: Tree, step: Step) -> Tree:
    """*tree* when *step* has been done."""
    what, name, other = step
    match what:
        case "mkdir":
            return {**tree, name: None}
        case "rename":
            return {moved(path, name, other): data for path, data in tree.items() if path != other}
        case _:
            return {**tree, name: (tree.get(name) or b"") + other.encode()}


def moved(path: str, old: str, new: str) -> str:
    return new + path.removeprefix(old) if path == old or path.startswith(f"{old}/") else path


def write_until_it_dies(top: str, uid: int, turn: int, acknowledge_to: str) -> int:
    """Do the steps, one byte into the pipe after each; the errno of the one that failed."""
    opened: dict[str, int] = {}
    pipe = os.open(acknowledge_to, os.O_WRONLY)
    try:
        for step in steps(uid, turn):
            do(top, step, opened)
            os.write(pipe, b".")
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(pipe)
        for fd in opened.values():
            with contextlib.suppress(OSError):
                os.close(fd)
    raise AssertionError("the steps have no end")


def do(top: str, step: Step, opened: dict[str, int]) -> None:
    what, name, other = step
    path = f"{top}/{name}"
    if what == "mkdir":
        os.mkdir(path)
    elif what == "rename":
        os.rename(path, f"{top}/{other}")
    else:
        if what != "close":
            opened[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        data = other.encode()
        assert os.write(opened[path], data) == len(data)
        if what == "fsync":
            os.fsync(opened[path])
        else:
            os.close(opened.pop(path))


def found(top: str, uid: int) -> Tree:
    """What is there of this writer's, who owns all of it."""
    tree: Tree = {}
    waiting = [name for name in os.listdir(top) if name.startswith(f"u{uid}-")]
    while waiting:
        name = waiting.pop()
        status = os.lstat(f"{top}/{name}")
        assert status.st_uid == uid, f"{name} is owned by {status.st_uid}"
        if stat.S_ISDIR(status.st_mode):
            tree[name] = None
            waiting += [f"{name}/{entry}" for entry in os.listdir(f"{top}/{name}")]
        else:
            with open(f"{top}/{name}", "rb") as file:
                tree[name] = file.read()
    return tree


def differences(acknowledged: Tree, begun: Step, actual: Tree) -> list[str]:
    """Names that are neither as they were acknowledged nor as the step that had begun may have left them."""
    complete = after(acknowledged, begun)
    if actual in (acknowledged, complete):
        return []
    what, name, _ = begun
    expected = dict(acknowledged)
    if what not in ("mkdir", "rename"):
        data, least, most = actual.get(name), acknowledged.get(name), complete[name]
        assert most is not None
        if data is None or (data.startswith(least or b"") and most.startswith(data)):
            actual = {**actual, name: b"begun"}
            expected[name] = b"begun" if data is not None or least is None else least
    return sorted(
        f"{path}: {described(expected, path)} acknowledged, found {described(actual, path)}; begun was {begun[:2]}"
        for path in expected.keys() | actual.keys()
        if (path in expected, expected.get(path)) != (path in actual, actual.get(path))
    )


def described(tree: Tree, path: str) -> str:
    data = tree.get(path)
    return "nothing" if path not in tree else "a directory" if data is None else f"{len(data)} bytes"


def killed_while_written(mount: Mount, turn: int, kill_after: int, scratch: Path) -> dict[int, int]:
    """How many steps each writer has acknowledged until it noticed that the daemon is dead."""
    top = str(mount.path)
    with contextlib.ExitStack() as stack:
        pipes: dict[int, int] = {}
        agents: dict[int, Agent] = {}
        for uid in WRITERS:
            fifo = scratch / f"acknowledged-{turn}-{uid}"
            os.mkfifo(fifo)
            os.chown(fifo, uid, uid)
            pipes[uid] = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, pipes[uid])
            agents[uid] = stack.enter_context(Agent(uid))
        # Whatever goes wrong, the writers come to an end.
        stack.callback(mount.kill)
        for uid, agent in agents.items():
            agent.begin(write_until_it_dies, top, uid, turn, str(scratch / f"acknowledged-{turn}-{uid}"))
        counts = dict.fromkeys(WRITERS, 0)
        read_until(pipes, counts, lambda: counts[ALICE] >= kill_after)
        mount.kill()
        for agent in agents.values():
            number = agent.result(WITHIN)
            assert number in DIED, f"a step failed with {errno.errorcode.get(number, number)}"
        # They have ended, so that everything that they said is in the pipes.
        for uid, pipe in pipes.items():
            while said := os.read(pipe, 1 << 16):
                counts[uid] += len(said)
    return counts


def read_until(pipes: dict[int, int], counts: dict[int, int], enough: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    poll = select.poll()
    by_pipe = {pipe: uid for uid, pipe in pipes.items()}
    for pipe in by_pipe:
        poll.register(pipe, select.POLLIN)
    while not enough():
        assert time.monotonic() < deadline, f"only {counts} steps done"
        for pipe, events in poll.poll(1000 * WITHIN):
            said = os.read(pipe, 1 << 16) if events & select.POLLIN else b""
            assert said, f"the writer {by_pipe[pipe]} gave up before the daemon was killed"
            counts[by_pipe[pipe]] += len(said)


def test_what_was_acknowledged_outlives_the_daemon(store: Path, workdir: Path) -> None:
    trees: dict[int, Tree] = {uid: {} for uid in WRITERS}
    begun: dict[int, Step] = {}
    for turn, kill_after in enumerate((*KILLED_AFTER, 0)):
        # What was not closed is partial: nothing of what was acknowledged is missing in it all the same.
        with mounted(store, workdir / "mount", options=["partial"]) as mount:
            for uid, step in begun.items():
                actual = as_user(uid, found, str(mount.path), uid)
                assert differences(trees[uid], step, actual) == [], f"of {uid}, after kill {turn}"
                trees[uid] = actual
            if not kill_after:
                break
            counts = killed_while_written(mount, turn, kill_after, workdir)
        for uid in WRITERS:
            script = steps(uid, turn)
            for _ in range(counts[uid]):
                trees[uid] = after(trees[uid], next(script))
            begun[uid] = next(script)
    assert sum(len(tree) for tree in trees.values()) > sum(KILLED_AFTER) // 3


BEFORE: Tree = {"set": None, "set/image": b"old", "set/half": b"first"}


@pytest.mark.parametrize(
    ("begun", "actual", "allowed"),
    [
        (("close", "set/half", " second"), BEFORE, True),
        (("close", "set/half", " second"), {**BEFORE, "set/half": b"first sec"}, True),
        (("close", "set/half", " second"), {**BEFORE, "set/half": b"firs"}, False),
        (("close", "set/half", " second"), {"set": None, "set/image": b"old"}, False),
        (("write", "set/new", "data"), {**BEFORE, "set/new": b""}, True),
        (("write", "set/new", "data"), {**BEFORE, "set/new": b"other"}, False),
        (("write", "set/new", "data"), {**BEFORE, "set/new": b"", "set/image": b""}, False),
        (("rename", "set", "done"), {"done": None, "done/image": b"old", "done/half": b"first"}, True),
        (("rename", "set", "done"), {"done": None, "done/image": b"old"}, False),
        (("rename", "set/half", "set/image"), {"set": None, "set/image": b"first"}, True),
        (("rename", "set/half", "set/image"), {"set": None, "set/half": b"first"}, False),
        (("mkdir", "set/d", ""), {**BEFORE, "set/e": None}, False),
    ],
)
def test_what_counts_as_lost(begun: Step, actual: Tree, allowed: bool) -> None:
    assert (differences(BEFORE, begun, actual) == []) is allowed
