"""The two ways in which the demo's process is saved: by CRIU from outside, or by itself where no CRIU works."""

from __future__ import annotations

import os
from typing import Protocol

from ckfs.demo.counting import COUNTS_TO_SEE, Counting
from ckfs.demo.criu import Criu, first_complaint
from ckfs.demo.nodes import CommandFailed, DemoFailed, Node, as_user


class Checkpointer(Protocol):
    """Saves a process on one node and brings it back on another."""

    saved: str
    """What :meth:`checkpoint` did, as the beginning of a sentence."""
    restored: str
    """The same for :meth:`restore`."""
    main_image: str
    """The file of the checkpoint that holds the memory."""

    def checkpoint(self, node: Node, counting: Counting, images: str) -> int:
        """Save the process into the directory *images*; the count at which it was saved."""

    def restore(self, node: Node, counting: Counting, images: str) -> None:
        """Bring it back on *node*."""


class ByCriu:
    """``criu dump`` and ``criu restore``, run by root inside the node.

    A root without CAP_SYS_RESOURCE (some virtual machines and containers have none) may not read the limits of another
    user's process, and CRIU must. There the dump runs as the user, who needs only CAP_CHECKPOINT_RESTORE to save his own
    process, and CAP_SYS_PTRACE where Yama restricts tracing. The restore needs root either way: it switches users.
    """

    saved = "CRIU checkpointed it"
    restored = "CRIU restored it"
    main_image = "pages-1.img"

    def __init__(self, criu: Criu, logs: str, dump_as_user: bool) -> None:
        """CRIU's logs go to *logs*, aside from the images, so that they can be read whatever becomes of a mount."""
        self._criu = criu
        self._logs = logs
        self._dump_as_user = dump_as_user
        self.remarks = (
            ["its dump is run by the user, as root has no CAP_SYS_RESOURCE here"] if dump_as_user else []
        )

    def checkpoint(self, node: Node, counting: Counting, images: str) -> int:
        command = self._command("dump", images)
        # Left stopped, the process writes nothing more until it is killed: each output file must be as long at the
        # restore as it was at the dump.
        command += ["--leave-stopped", "--tree", str(counting.pid)]
        if self._dump_as_user:
            capabilities = "+checkpoint_restore,+sys_ptrace"
            command = as_user(counting.user, [*command, "--unprivileged"], capabilities)
        self._run(node, "dump", command)
        return counting.last_count()

    def restore(self, node: Node, counting: Counting, images: str) -> None:
        self._run(node, "restore", [*self._command("restore", images), "--restore-detached"])

    def _command(self, verb: str, images: str) -> list[str]:
        command = [*self._criu.command, verb, "--images-dir", images, "--work-dir", self._logs]
        # The counter brings no control group of its own: leave groups alone.
        return [*command, "--manage-cgroups=ignore", "--log-file", f"{verb}.log", "-v4"]

    def _run(self, node: Node, verb: str, command: list[str]) -> None:
        log = os.path.join(self._logs, f"{verb}.log")
        try:
            node.run(command)
        except CommandFailed as error:
            complaint = first_complaint(_text_of(log) or error.output)
            raise DemoFailed(f"criu {verb} on {node.name}: {complaint}") from error


class ByItself:
    """The process writes its own state, and is started anew from it: what is left where no CRIU works."""

    saved = "it saved its own state"
    restored = "started anew from that state"
    main_image = "state"

    def checkpoint(self, node: Node, counting: Counting, images: str) -> int:
        counting.signal(node, "USR1")
        return counting.await_saved()

    def restore(self, node: Node, counting: Counting, images: str) -> None:
        counting.start(node, "resume", os.path.join(images, self.main_image))


def round_trip(way: Checkpointer, counting: Counting, source: Node, target: Node, images: str) -> None:
    """Checkpoint on *source*, kill, restore on *target*, and see that it counted on; raises DemoFailed."""
    make_set(source, counting, images)
    counting.start(source, "start", os.path.join(images, way.main_image))
    counting.await_count(COUNTS_TO_SEE)
    count = way.checkpoint(source, counting, images)
    counting.kill(source)
    way.restore(target, counting, images)
    counting.await_count(count + COUNTS_TO_SEE)
    counting.check_counted_on(count)
    counting.kill(target)


def make_set(node: Node, counting: Counting, images: str) -> None:
    """The user makes the set, so it is his: what CRIU writes there as root is charged to him."""
    node.run(as_user(counting.user, ["mkdir", images]))


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
