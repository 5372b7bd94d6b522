"""Computers made of namespaces, on one network: each has a name, an address, and what else a computer of its kind needs.

A :class:`Machine` that serves has mounts and processes of its own, which end with it. One that is a client has only a network of
its own: its mounts are seen by the tests, which so reach them by path, and what it runs sees the tests' processes.
The cable of each can be pulled. Nothing of all this is seen in the network of the tests themselves.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support import inherited

UP_WITHIN_S = 60.0
COMMAND_WITHIN_S = 120.0
_LOOK_S = 0.05
_BRIDGE = "br0"
_CABLE = "eth0"
_PREFIX_LENGTH = 24
_FIRST_PROCESS = """
import os, runpy, signal, socket, subprocess, sys
socket.sethostname(sys.argv[1])
if len(sys.argv) > 2:
    runpy.run_path(sys.argv[2])["leave_mounts_to_the_host"]()
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the machine are reaped by the kernel
os.write(1, b"up\\n")
while os.read(0, 4096):
    pass
"""
_CLIENT = {"net": "net", "uts": "uts"}
_SERVER = {"mount": "mnt", "net": "net", "uts": "uts", "pid": "pid_for_children"}
"""Namespaces as unshare(1) and nsenter(1) call them, and as ``/proc/PID/ns`` does."""


class MachineTrouble(AssertionError):
    """A machine did not come up, or a command on it failed; the text says what it said."""


class Machine:
    """It ends with :meth:`close`, with the process that made it, or when that is killed."""

    def __init__(self, name: str, *, serves: bool = False) -> None:
        self.name = name
        self.address = ""
        self._kinds = _SERVER if serves else _CLIENT
        words = ["setpriv", "--pdeathsig=KILL", "unshare", *(f"--{kind}" for kind in self._kinds)]
        inherits = [inherited.__file__] if serves else []
        if serves:
            words += ["--propagation=private", "--fork", "--mount-proc", "--kill-child=KILL"]
        self._holder = subprocess.Popen(
            [*words, "--", sys.executable, "-I", "-S", "-c", _FIRST_PROCESS, name, *inherits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        ready, _, _ = select.select([self._holder.stdout], [], [], UP_WITHIN_S)
        if not ready or self._holder.stdout.readline() != b"up\n":
            self.close()
            raise MachineTrouble(f"{name} does not come up: namespaces need root with CAP_SYS_ADMIN")

    @property
    def pid(self) -> int:
        """Who holds its namespaces."""
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        """What goes before a command to run it on the machine."""
        namespaces = f"/proc/{self.pid}/ns"
        return ["nsenter", *(f"--{kind}={namespaces}/{file}" for kind, file in self._kinds.items()), "--"]

    def run(self, *words: str | Path, check: bool = True) -> str:
        """What the command said on its standard output. Raises MachineTrouble if it fails, unless *check* is false."""
        done = subprocess.run(
            [*self.enter, *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise MachineTrouble(f"{self.name}: {' '.join(map(str, words))}: {said}")
        return done.stdout

    def spawn(self, *words: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a command that ends with the tests' process, if not before."""
        with log.open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *self.enter, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def path(self, path: str | Path) -> Path:
        """*path* of a machine that serves, as the tests reach it."""
        return Path(f"/proc/{self._first_pid}/root") / str(path).lstrip("/")

    @property
    def _first_pid(self) -> int:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if "pid" in self._kinds else self.pid

    @property
    def moved_bytes(self) -> int:
        """All that has come in and gone out over its cable so far."""
        for line in self.run("cat", "/proc/net/dev").splitlines():
            name, _, counters = line.strip().partition(":")
            if name == _CABLE:
                received, sent = counters.split()[0], counters.split()[8]
                return int(received) + int(sent)
        raise MachineTrouble(f"{self.name} has no {_CABLE}")

    def pull_cable(self) -> None:
        """Nothing comes or goes any more, and nobody is told."""
        self.run("ip", "link", "set", _CABLE, "down")

    def plug_cable_in(self) -> None:
        self.run("ip", "link", "set", _CABLE, "up")

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        self.pull_cable()
        try:
            yield
        finally:
            self.plug_cable_in()

    def close(self) -> None:
        """End it; with its first process all ends that it runs, if it is one that serves."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        try:
            self._holder.wait(UP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        self._holder.stdout.close()


def connect(switch: Machine, machines: Sequence[tuple[Machine, str]]) -> None:
    """A network of *machines*, each with its address; *switch* is what their cables lead to."""
    switch.run("ip", "link", "add", "name", _BRIDGE, "type", "bridge")
    switch.run("ip", "link", "set", _BRIDGE, "up")
    for machine, address in machines:
        port = f"to-{machine.name}"
        assert len(port) < 16, f"no interface can be called {port}"
        # The ends of a cable are made where they belong, so that no other network ever sees them.
        switch.run(
            *("ip", "link", "add", "name", port, "type", "veth"),
            *("peer", "name", _CABLE, "netns", str(machine.pid)),
        )
        switch.run("ip", "link", "set", port, "master", _BRIDGE, "up")
        machine.run("ip", "address", "add", f"{address}/{_PREFIX_LENGTH}", "dev", _CABLE)
        machine.plug_cable_in()
        machine.address = address


def wait_until(holds: Callable[[], bool], what: str, within_s: float = UP_WITHIN_S) -> None:
    """Raises MachineTrouble if *what* does not come true in time."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise MachineTrouble(f"not within {within_s:.0f} s: {what}")
        time.sleep(_LOOK_S)


def is_alive(pid: int) -> bool:
    """Whether the process *pid* runs; one that has ended and waits for its parent does not."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] not in "ZX"
    return False


def pids_of(machine: Machine) -> list[int]:
    """The processes of a machine that serves, as the tests number them."""
    namespace = os.readlink(f"/proc/{machine.pid}/ns/pid_for_children")
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                found.append(int(name))
    return found
