"""The demo's process seen from outside: started, watched, killed, and judged by what it wrote."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from ckfs.demo.nodes import DemoFailed, Node, as_user
from ckfs.model import Owner

PROGRESS_SECONDS = 30.0
COUNTS_TO_SEE = 3
"""So many counts before the checkpoint, and as many after the restore."""
_LOOK_SECONDS = 0.01
_USABLE_SECONDS = 20.0


class Counting:
    """One run of counter.py on behalf of *user*, in a work directory that every node sees."""

    def __init__(self, python: str, program: str, user: Owner, workdir: str) -> None:
        self.user = user
        self.workdir = workdir
        self.pid = 0
        self._python = python
        self._program = program
        os.mkdir(workdir, 0o755)
        os.chown(workdir, user.uid, user.gid)

    def start(self, node: Node, mode: str, state: str) -> None:
        """Start it on *node*, afresh (``start``) or from its own *state* (``resume``)."""
        if os.path.exists(self._path("pid")):
            os.unlink(self._path("pid"))
        command = [self._python, "-I", "-S", self._program, mode, self.workdir, state]
        node.run(as_user(self.user, command))
        self._await(lambda: bool(self._text("pid")), "come to its first count")
        self.pid = int(self._text("pid"))

    def kill(self, node: Node) -> None:
        """SIGKILL, and back when it is gone."""
        self.signal(node, "KILL")
        self._await(lambda: not node.has_process(self.pid), "die")

    def signal(self, node: Node, name: str) -> None:
        node.run(["sh", "-c", 'kill -s "$1" "$2"', "sh", name, str(self.pid)])

    def last_count(self) -> int:
        lines = self._lines()
        return int(lines[-1].split()[0]) if lines else 0

    def await_count(self, count: int) -> None:
        self._await(lambda: self.last_count() >= count, f"come to {count}")

    def await_saved(self) -> int:
        """The count at which it last saved itself."""
        self._await(lambda: "saved " in self._text("log"), "save its state")
        return int(re.findall(r"^saved (\d+)$", self._text("log"), re.MULTILINE)[-1])

    def check_counted_on(self, from_count: int) -> list[int]:
        """The counts after *from_count*, which follow it without a gap and with the same memory."""
        check_counts(self._lines(), from_count)
        return list(range(from_count + 1, self.last_count() + 1))

    def _await(self, come: Callable[[], bool], what: str) -> None:
        """Look again and again until *come* is true: the process is not ours to be told by."""
        deadline = time.monotonic() + PROGRESS_SECONDS
        while not come():
            if time.monotonic() > deadline:
                said = self._text("log").strip().replace("\n", " | ") or "nothing in its log"
                raise DemoFailed(f"the counter did not {what} within {PROGRESS_SECONDS:.0f} s: {said}")
            time.sleep(_LOOK_SECONDS)

    def _lines(self) -> list[str]:
        """Whole lines only: the last one may be in the writing."""
        return self._text("count").split("\n")[:-1]

    def _text(self, name: str) -> str:
        try:
            with open(self._path(name), encoding="ascii", errors="backslashreplace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _path(self, name: str) -> str:
        return os.path.join(self.workdir, name)


def check_counts(lines: list[str], from_count: int) -> None:
    """Refuse an output that is not one process counting 1, 2, 3… over the same memory, beyond *from_count*."""
    words = [line.split() for line in lines]
    counts = [int(count) for count, _ in words]
    if counts != list(range(1, len(counts) + 1)):
        odd = next(
            n for n, (got, due) in enumerate(zip(counts, itertools.count(1), strict=False)) if got != due
        )
        raise DemoFailed(f"the process did not count on: after {odd} comes {counts[odd]}")
    if len({memory for _, memory in words}) > 1:
        raise DemoFailed("the process did not count on: its memory is not the same any more")
    if len(counts) < from_count + COUNTS_TO_SEE:
        raise DemoFailed(f"the process did not count on from {from_count}: it stopped at {len(counts)}")


def python_for(user: Owner) -> str:
    """A Python that *user* can run: the one of a virtual environment may lie in root's own directory."""
    candidates = [sys.executable, os.path.realpath(sys.executable), shutil.which("python3", path=os.defpath)]
    for python in dict.fromkeys(filter(None, candidates)):
        trial = subprocess.run(
            as_user(user, [python, "-I", "-S", "-c", "import zlib"]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            timeout=_USABLE_SECONDS,
            check=False,
        )
        if trial.returncode == 0:
            return python
    raise DemoFailed(f"no Python that uid {user.uid} can run: install the system's python3")
