"""Running an engine's own tool: a fixed argument vector without a shell, a clean environment, a time limit."""

from __future__ import annotations

import shutil
import subprocess

from ckfs.errors import EngineFailed
from ckfs.names import shown

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 5.0
"""Less than what a call on the store may take: a tool that hangs is no store that hangs."""
_LONGEST_COMPLAINT = 200


def find(tool: str, package: str) -> str:
    """Where *tool* is; EngineFailed names the *package* that has it."""
    path = shutil.which(tool, path=PATH)
    if path is None:
        raise EngineFailed(f"the tool '{tool}' is not there: install the package {package} on this host")
    return path


def run(
    tool: str, package: str, arguments: list[str], keeps: tuple[int, ...] = (), timeout_s: float = TIMEOUT_S
) -> str:
    """What *tool* prints. *keeps* are the descriptors that it inherits. EngineFailed in one line if it does not end well."""
    shortly = " ".join([tool, *arguments[:2]])
    try:
        done = subprocess.run(
            [find(tool, package), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": PATH, "LC_ALL": "C"},
            pass_fds=keeps,
            timeout=timeout_s,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise EngineFailed(f"'{shortly}' did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise EngineFailed(f"'{shortly}' cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        complaint = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace")
        raise EngineFailed(f"'{shortly}' failed: {_one_line(complaint) or f'status {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")


def _one_line(text: str) -> str:
    line = "; ".join(filter(None, (line.strip() for line in text.splitlines())))
    return shown(line[:_LONGEST_COMPLAINT])


def unexpected(tool: str, text: str) -> EngineFailed:
    """The error for output that is not what the documentation of *tool* says."""
    return EngineFailed(f"'{tool}' printed what ckfs does not understand: {_one_line(text) or 'nothing'}")
