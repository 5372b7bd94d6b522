"""Two computers out of one: namespaces with a name, a network, processes and mounts of their own.

A node is ``unshare`` holding its namespaces and :mod:`ckfs.demo.node_init` as process 1 in them; everything else enters
by ``nsenter``. The parent-death signal ties the node to the demo: if the demo is killed, the kernel kills the node's
process 1, with that every process of the node, and with those the node's mounts.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO

from ckfs.errors import CkfsError
from ckfs.model import Owner

START_SECONDS = 20.0
MOUNT_SECONDS = 60.0
COMMAND_SECONDS = 60.0
END_SECONDS = 20.0
_LOG_LINES = 15
_LOOK_SECONDS = 0.02

Say = Callable[[str], None]


class DemoFailed(CkfsError):
    """A step of the demo did not do what it should."""


class CommandFailed(DemoFailed):
    """A command ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        self.output = output
        said = output.strip().splitlines() or ["it said nothing"]
        super().__init__(f"{shlex.join(command)}: exit status {status}: {' | '.join(said[-_LOG_LINES:])}")


def nothing(_line: str) -> None:
    """Say nothing: what a quiet demo does with details."""


def ckfs_command(*words: str) -> list[str]:
    """This very ckfs, not one that PATH may find."""
    return [sys.executable, "-m", "ckfs", *words]


def environment_of_ckfs() -> dict[str, str]:
    """The environment in which ``-m ckfs`` finds this ckfs from any directory, also where it is not installed."""
    places = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(here) not in {"site-packages", "dist-packages"}:
        places.append(here)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def as_user(user: Owner, command: Sequence[str], capabilities: str = "-all") -> list[str]:
    """*command* as run by *user*, who has no groups, and no *capabilities* but those given."""
    given = [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    return ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", *given, "--", *command]


def run(command: Sequence[str], detail: Say = nothing, within: Sequence[str] = ()) -> str:
    """The output of *command*, which must succeed in time. *within* is what goes before it to run it on a node."""
    detail(f"$ {shlex.join([*within, *command])}")
    try:
        done = subprocess.run(
            [*within, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=COMMAND_SECONDS,
            env=environment_of_ckfs(),
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{shlex.join(command)}: no end within {COMMAND_SECONDS:.0f} s") from None
    except OSError as error:
        raise DemoFailed(f"{command[0]}: {error.strerror}") from error
    for line in done.stdout.splitlines():
        detail("  " + line)
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stdout)
    return done.stdout


class Node:
    """One node; :meth:`close` ends it and all in it, and may be called at any time, more than once."""

    def __init__(self, name: str, first_pid: int, private: str, detail: Say = nothing) -> None:
        """*private* is a directory of root alone, for the node's log and socket."""
        self.name = name
        self.mounted_at: str | None = None
        self._detail = detail
        self._private = private
        self._log = os.path.join(private, f"{name}.log")
        self._first_pid = first_pid
        self._holder: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the namespaces; back when process 1 is up."""
        init = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node_init.py")
        unshare = ["unshare", "--mount", "--propagation=private", "--net", "--uts", "--pid", "--fork"]
        command = ["setpriv", "--pdeathsig=KILL", *unshare, "--mount-proc", "--kill-child=KILL", "--"]
        command += [sys.executable, "-I", "-S", init, self.name, str(self._first_pid)]
        self._detail("$ " + shlex.join(command))
        with open(self._log, "ab") as log:
            self._holder = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        _await_up(self._holder)
        # Each computer has a /run of its own: what programs leave there is not for the other node.
        self.run(["mount", "-t", "tmpfs", "-o", "mode=0755,nosuid,nodev", f"{self.name}-run", "/run"])

    def run(self, command: Sequence[str]) -> str:
        """The output of *command*, which must succeed, run inside the node by root."""
        return run(command, self._detail, self._enter())

    def _enter(self) -> list[str]:
        """What goes before a command to run it inside the node."""
        namespaces = f"/proc/{self._pid}/ns"
        return ["nsenter", *(f"--{kind}={namespaces}/{file}" for kind, file in _NAMESPACES), "--"]

    @property
    def _pid(self) -> int:
        assert self._holder is not None, "the node was not started"
        return self._holder.pid

    def has_process(self, pid: int) -> bool:
        """Whether *pid*, as numbered on the node, is there."""
        return os.path.exists(f"/proc/{self._pid}/root/proc/{pid}")

    def _spawn(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start *command* inside the node, its output in the node's log; the process returned ends when it does."""
        inside = [*self._enter(), *command]
        self._detail("$ " + shlex.join(inside))
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                inside,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**environment_of_ckfs(), **environment},
                start_new_session=True,
            )

    def mount(self, store: str, mountpoint: str) -> None:
        """Mount ckfs over *store* at *mountpoint*, in the node's own mount namespace; back when it answers."""
        address = os.path.join(self._private, f"{self.name}.notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(address)
            # Two computers cannot share an embedded ledger, but these two are one.
            options = f"role=node,node={self.name},state={os.path.join(self._private, 'state')}"
            command = ckfs_command("mount", store, mountpoint, "-f", "-o", options)
            self._daemon = self._spawn(command, NOTIFY_SOCKET=address)
            if not _is_ready(ready, self._daemon):
                raise DemoFailed(f"{self.name}: the mount did not come up")
        self.mounted_at = mountpoint

    def unmount(self) -> None:
        """umount(8), after which the daemon ends by itself with exit status 0."""
        if self.mounted_at is None or self._daemon is None:
            return
        deadline = time.monotonic() + END_SECONDS
        while not self._umounted(self.mounted_at):
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.name}: {self.mounted_at} stays busy")
            time.sleep(_LOOK_SECONDS)
        self.mounted_at = None
        try:
            status = self._daemon.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name}: the daemon goes on after umount") from None
        if status != 0:
            raise DemoFailed(f"{self.name}: the daemon ended with status {status}")

    def _umounted(self, mountpoint: str) -> bool:
        """Whether umount(8) could; a file that was just closed keeps the mount busy for a moment."""
        try:
            self.run(["umount", mountpoint])
        except CommandFailed as error:
            if "busy" not in error.output:
                raise
            return False
        return True

    def close(self) -> None:
        """Unmount if that can be done, and end process 1; with it the kernel ends the node."""
        with contextlib.suppress(DemoFailed):
            self.unmount()
        if self._holder is not None:
            _end_holder(self._holder)
        if self._daemon is not None:
            self._daemon.wait(END_SECONDS)

    def logged(self) -> list[str]:
        """The end of the node's log: what its daemon said."""
        with open(self._log, encoding="utf-8", errors="backslashreplace") as log:
            return log.read().splitlines()[-_LOG_LINES:]


_NAMESPACES = (("mount", "mnt"), ("net", "net"), ("uts", "uts"), ("pid", "pid_for_children"))


def _await_up(holder: subprocess.Popen[bytes]) -> None:
    out: IO[bytes] | None = holder.stdout
    assert out is not None
    readable, _, _ = select.select([out], [], [], START_SECONDS)
    if not readable or os.read(out.fileno(), 16) != b"up\n":
        raise DemoFailed("a node did not start: namespaces need root with CAP_SYS_ADMIN")


def _end_holder(holder: subprocess.Popen[bytes]) -> None:
    """End process 1 and see the whole node gone: ``unshare`` ends when the kernel has reaped the last process."""
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.close()
    try:
        holder.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait(END_SECONDS)
    holder.stdout.close()


def _is_ready(ready: socket.socket, daemon: subprocess.Popen[bytes]) -> bool:
    """Wait for ``READY=1`` (sd_notify(3)); False if the daemon ends first or takes too long."""
    deadline = time.monotonic() + MOUNT_SECONDS
    ended = os.pidfd_open(daemon.pid)
    watched: list[socket.socket | int] = [ready, ended]
    try:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select(watched, [], [], left)
            if ready in readable and b"READY=1" in ready.recv(4096).split(b"\n"):
                return True
            if readable == [ended]:
                return False
        return False
    finally:
        os.close(ended)
