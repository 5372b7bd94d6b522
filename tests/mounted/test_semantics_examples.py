"""The examples in docs/SEMANTICS.md are run: each ``console`` block on an empty mount, each line's output compared."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.mounting import UMASK, Mount, mounted
from tests.support.users import ALICE, BOB, ROOT

pytestmark = pytest.mark.root

PAGE = Path(__file__).resolve().parents[2] / "docs" / "SEMANTICS.md"
PROMPTS = {"# ": ROOT, "alice$ ": ALICE, "bob$ ": BOB}
TIMEOUT_S = 60.0


@dataclass
class Step:
    """A command line of the page, with whose it is, where it stands, and the output that it should have."""

    line: int
    uid: int
    command: str
    expected: list[str] = field(default_factory=list)


def examples(page: str) -> Iterator[tuple[int, list[Step]]]:
    """The line and the steps of each block. Every line is a command or output of the one before it."""
    steps: list[Step] | None = None
    for number, line in enumerate(page.splitlines(), 1):
        if line == "```console":
            start, steps = number, []
        elif line == "```" and steps is not None:
            yield start, steps
            steps = None
        elif steps is not None:
            prompt = next((prompt for prompt in PROMPTS if line.startswith(prompt)), None)
            if prompt is not None:
                steps.append(Step(number, PROMPTS[prompt], line.removeprefix(prompt)))
            else:
                steps[-1].expected.append(line)


EXAMPLES = list(examples(PAGE.read_text("utf-8")))


@pytest.fixture(scope="module")
def other(module_mount: Mount, module_workdir: Path) -> Iterator[Mount]:
    with mounted(module_mount.store, module_workdir / "other", node="other") as running:
        yield running


@pytest.fixture(scope="module")
def server(module_mount: Mount, module_workdir: Path) -> Iterator[Mount]:
    """Where root removes what is protected."""
    with mounted(module_mount.store, module_workdir / "server", role="server", node="server") as running:
        yield running


def output_of(step: Step, here: Path, other: Path) -> list[str]:
    """What the command prints; the path of the other mount reads ``$OTHER``, as on the page."""
    identity = [f"--reuid={step.uid}", f"--regid={step.uid}", "--clear-groups"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "OTHER": str(other)}
    done = subprocess.run(
        ["setpriv", *identity, "sh", "-c", step.command],
        cwd=here,
        env=environment,
        umask=UMASK,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout.decode("utf-8", "backslashreplace").replace(str(other), "$OTHER").splitlines()


@pytest.mark.parametrize("steps", [pytest.param(steps, id=f"line-{line}") for line, steps in EXAMPLES])
def test_an_example(module_mount: Mount, other: Mount, server: Mount, steps: list[Step]) -> None:
    assert os.listdir(module_mount.path) == []
    try:
        for step in steps:
            printed = output_of(step, module_mount.path, other.path)
            assert printed == step.expected, f"{PAGE.name}:{step.line}: {step.command}"
    finally:
        clear(server.path)


def clear(directory: Path) -> None:
    for batch_set in directory.glob("*.CK*"):
        os.setxattr(batch_set, "user.ckfs.keep", b"released")
    subprocess.run(["find", directory, "-mindepth", "1", "-delete"], check=True, timeout=TIMEOUT_S)


def test_every_block_is_found() -> None:
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert fences == ["console", ""] * len(EXAMPLES)
    assert all(steps for _, steps in EXAMPLES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```console\n# true\n```\n", [(1, [Step(2, ROOT, "true")])]),
        (
            "x\n```console\nalice$ a\none\n\nbob$ b\n```\n```console\n# c\n#d\n```",
            [
                (2, [Step(3, ALICE, "a", ["one", ""]), Step(6, BOB, "b")]),
                (8, [Step(9, ROOT, "c", ["#d"])]),
            ],
        ),
        ("```sh\n# true\n```\n", []),
    ],
)
def test_blocks_are_read_line_by_line(text: str, expected: list[tuple[int, list[Step]]]) -> None:
    assert list(examples(text)) == expected
