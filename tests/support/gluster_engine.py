"""ckfs over a GlusterFS volume that enforces quotas itself: how far users come who do not stop by themselves.

``python -m tests.support.gluster_engine DIRECTORY`` runs as root in new namespaces (:func:`run`) and prints what it met as one JSON object.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support import gluster_node
from tests.support.agents import Agent
from tests.support.gluster_node import LIMIT, MIB
from tests.support.mounting import mounted, run_ckfs
from tests.support.users import as_user, errno_as

FIRST_UID = 2201
MOST_BYTES = 8 * LIMIT


def run(directory: Path) -> dict[str, dict[str, int]]:
    """What each way of writing met."""
    namespaces = ["unshare", "-m", "-n", "-u", "-p", "--fork", "--mount-proc", "--kill-child"]
    program = [sys.executable, "-m", "tests.support.gluster_engine", str(directory)]
    done = subprocess.run([*namespaces, *program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return facts


def write(path: str, piece: int) -> int:
    """In pieces of so many bytes, until that is refused. Returns the errno."""
    try:
        with open(path, "wb", buffering=0) as file:
            file.writelines(os.urandom(piece) for _ in range(MOST_BYTES // piece))
    except OSError as error:
        return error.errno or 0
    return 0


def small_files(path: str, piece: int) -> int:
    try:
        os.mkdir(path)
        for number in range(MOST_BYTES // piece):
            with open(f"{path}/{number}", "wb", buffering=0) as file:
                file.write(os.urandom(piece))
    except OSError as error:
        return error.errno or 0
    return 0


WAYS: dict[str, tuple[Callable[[str, int], int], int, int]] = {
    # how, by how many bytes at a time, and by how many processes at once
    "by_1_mib": (write, MIB, 1),
    "by_64_kib": (write, 64 << 10, 1),
    "by_4_kib": (write, 4 << 10, 1),
    "by_files_of_64_kib": (small_files, 64 << 10, 1),
    "by_four_at_once": (write, 256 << 10, 4),
}


def taken_on(brick: Path) -> int:
    """What the brick holds there."""
    return sum(path.lstat().st_blocks * 512 for path in brick.rglob("*"))


def scenario(directory: Path) -> dict[str, dict[str, int]]:
    volume = gluster_node.prepare(directory)
    store = volume / "store"
    done = run_ckfs("init", "--quota", "engine", store)
    assert done.returncode == 0, done.stderr
    facts = {}
    with mounted(store, directory / "mount", options=["partial"], may_log=[r"."]) as mount:
        done = run_ckfs("quota", "default", "--hard", str(LIMIT), "--store", mount.path)
        assert done.returncode == 0, done.stderr
        for uid, (name, (how, piece, count)) in zip(itertools.count(FIRST_UID), WAYS.items(), strict=False):
            path = f"{mount.path}/set-{uid}"
            as_user(uid, os.mkdir, path)
            with contextlib.ExitStack() as stack:
                writers = [stack.enter_context(Agent(uid)) for _ in range(count)]
                for number, writer in enumerate(writers):
                    writer.begin(how, f"{path}/image{number}", piece)
                refusals = {writer.result(300.0) for writer in writers}
            taken = taken_on(directory / "brick" / "data" / "store" / "users" / str(uid))
            facts[name] = {
                "refused": int(refusals == {errno.EDQUOT}),
                "taken_bytes": taken,
                "over_bytes": taken - LIMIT,
                "renames": errno_as(uid, os.rename, path, f"{path}-moved"),
            }
    subprocess.run(["umount", "-l", volume], check=True)
    return facts


if __name__ == "__main__":
    print(json.dumps(scenario(Path(sys.argv[1]))))
