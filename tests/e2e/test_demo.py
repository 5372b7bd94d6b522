"""``ckfs demo`` for real: its story, its exit status, and that nothing of it is left, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckfs.demo.counting import check_counts
from ckfs.demo.criu import first_complaint
from ckfs.demo.nodes import DemoFailed
from tests.support.mounting import environment

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

DEMO_SECONDS = 300.0
"""Long, for the first run on a machine may fetch CRIU."""
GONE_SECONDS = 30.0
_PROGRAM = "import sys; from ckfs.demo import run_demo; sys.exit(run_demo(use_criu=sys.argv[1] == 'criu'))"
_MARKER = "CKFS_TEST_DEMO"


@dataclass
class Demo:
    """One running or ended demo; its temporary directory lies in *parent*, its processes carry *marker*."""

    parent: Path
    process: subprocess.Popen[str]
    marker: bytes
    lines: list[str] = field(default_factory=list)

    def read_until(self, pattern: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return
        pytest.fail(f"the demo never said {pattern!r}:\n{self.output}")

    def end(self) -> int:
        """The exit status, when it has ended."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return self.process.wait(DEMO_SECONDS)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def processes(self) -> list[str]:
        """Every process that the demo started, however far it has moved: all inherited its environment."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.marker in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
        return found

    def mounts(self) -> list[str]:
        """Every mount below the demo's directory, in the mount namespace of any process."""
        found = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/mounts").read_text("utf-8", "backslashreplace")
                found |= {line for line in text.splitlines() if line.split()[1].startswith(f"{self.parent}/")}
        return sorted(found)

    def check_nothing_left(self) -> None:
        assert self.processes() == []
        assert self.mounts() == []
        assert list(self.parent.iterdir()) == []


@contextlib.contextmanager
def started(parent: Path, how: str) -> Iterator[Demo]:
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, how],
        env=environment(TMPDIR=str(parent), **{_MARKER: mark}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Demo(parent, process, f"{_MARKER}={mark}".encode())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module", params=["criu", "no-criu"])
def demo(request: pytest.FixtureRequest, module_workdir: Path) -> Demo:
    """A demo that ran to its end, with whatever CRIU the machine can have, and without."""
    parent = module_workdir / request.param
    parent.mkdir()
    parent.chmod(0o711)
    with started(parent, request.param) as running:
        status = running.end()
        assert status == 0, running.output
        return running


def main_image(demo: Demo) -> str:
    return "pages-1.img" if "CRIU checkpointed it" in demo.output else "state"


def attributes(output: str) -> dict[str, str]:
    return dict(re.findall(r"^ +((?:user|trusted)\.ckfs\.\S+) = (.*)$", output, re.MULTILINE))


def test_it_counts_on_where_it_stopped(demo: Demo) -> None:
    at = re.search(
        r"through nodea's mount, into \S+/demo-counter: it was at (\d+)$", demo.output, re.MULTILINE
    )
    on = re.search(
        r"it counted on from (\d+): ([\d, ]+), and its memory is the same$", demo.output, re.MULTILINE
    )
    assert at is not None, demo.output
    assert on is not None, demo.output
    assert on[1] == at[1]
    assert int(on[2].partition(",")[0]) == int(at[1]) + 1


def test_every_step_has_its_time(demo: Demo) -> None:
    told = [line for line in demo.lines if not line.startswith(" " * 12)]
    assert len(told) >= 10
    assert [line for line in told if not re.match(r" *\d+\.\d\d s  \S", line)] == []


def test_ls_shows_the_images(demo: Demo) -> None:
    listing = demo.output.partition("ckfs ls ")[2].partition("extended attributes of ")[0]
    assert re.search(rf"\b{re.escape(main_image(demo))}\b", listing), demo.output


def test_attributes_tell_whose_it_is(demo: Demo) -> None:
    uid = re.search(r"started a process as uid (\d+)", demo.output)
    assert uid is not None, demo.output
    shown = attributes(demo.output)
    assert shown["user.ckfs.uid"] == uid[1]
    assert shown["user.ckfs.set"] == "demo-counter"
    assert shown["user.ckfs.state"] == "complete"
    assert shown["user.ckfs.written_by"] == "nodea"
    assert "user.ckfs.owner" in shown
    assert shown["trusted.ckfs.path"].endswith(f"/users/{uid[1]}/demo-counter/{main_image(demo)}")


def test_nothing_is_left(demo: Demo) -> None:
    demo.check_nothing_left()


def test_the_process_is_moved_by_criu_or_the_reason_is_told(demo: Demo) -> None:
    before = re.search(r"on nodea, pid (\d+)", demo.output)
    after = re.search(r"CRIU restored it through nodeb's mount: it runs on nodeb, pid (\d+)", demo.output)
    assert before is not None
    if after is None:
        assert re.search(r"no CRIU works here \(.+\)|CRIU is not wanted", demo.output)
        assert "started anew from that state" in demo.output
    else:
        assert after[1] == before[1]


@pytest.mark.parametrize(
    "moment", ["made two nodes", "mounted the store on nodea", "started a process", "killed it"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(workdir: Path, moment: str, number: signal.Signals) -> None:
    with started(workdir, "criu") as demo:
        demo.read_until(moment)
        demo.process.send_signal(number)
        assert demo.end() == 128 + number, demo.output
        assert f"interrupted by {number.name}" in demo.output
        demo.check_nothing_left()


def test_killed_it_leaves_no_process_and_no_mount(workdir: Path) -> None:
    with started(workdir, "criu") as demo:
        demo.read_until("started a process")
        demo.process.kill()
        demo.process.wait()
        deadline = time.monotonic() + GONE_SECONDS
        while (left := [*demo.processes(), *demo.mounts()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
    for directory in workdir.iterdir():
        shutil.rmtree(directory)  # the one thing that nobody is left to remove


SAME = "0a0b0c0d"


def counted(*counts: int, memory: str = SAME) -> list[str]:
    return [f"{count} {memory}" for count in counts]


def test_counting_on_is_accepted() -> None:
    check_counts(counted(1, 2, 3, 4, 5, 6), from_count=3)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (counted(1, 2, 3, 1, 2, 3, 4), "after 3 comes 1"),
        (counted(1, 2, 3, 5, 6, 7), "after 3 comes 5"),
        (counted(1, 2, 3, 3, 4, 5, 6), "after 3 comes 3"),
        (counted(2, 3, 4, 5, 6, 7), "after 0 comes 2"),
        (counted(1, 2, 3, 4, 5), "stopped at 5"),
        (counted(1, 2, 3) + counted(4, 5, 6, memory="00000000"), "memory"),
        ([], "stopped at 0"),
    ],
)
def test_anything_else_is_not_counting_on(lines: list[str], why: str) -> None:
    with pytest.raises(DemoFailed, match=why):
        check_counts(lines, from_count=3)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "Warn  (criu/kerndat.c:1): slow\nError (criu/cr-check.c:1223): UFFD is not supported\nLooks good.\n",
            "UFFD is not supported",
        ),
        (
            "(00.04) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
            "(00.05) Error (criu/cr-dump.c:371): Can't get rlimit 0: Operation not permitted\n",
            "Can't get rlimit 0: Operation not permitted",
        ),
        (
            "Error (criu/util.c:642): exited, status=1\n"
            "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n",
            "vdso: Unexpected rt vDSO area bounds",
        ),
        ("(00.06) pie: 1001: Error (criu/pie/restorer.c:316): no\n", "no"),
        ("criu: error while loading shared libraries\n", "criu: error while loading shared libraries"),
        ("\n", "it failed without a word"),
    ],
)
def test_first_complaint_of_criu(output: str, expected: str) -> None:
    assert first_complaint(output) == expected
