"""Stores and mounts for tests, through the commands that an admin would use.

The daemon is always another process, and nothing here touches a mount point by path: a mount that hangs would
take the tests with it. Every mount is checked at its end: exit status 0, a log without surprises, no store file
left open, no mount left behind.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from ckfs.cli.main import main
from tests.support.commands import ckfs_as
from tests.support.preloaded import Preloaded, Process
from tests.support.users import ROOT

SOURCE = Path(__file__).resolve().parents[2] / "src"
READY_TIMEOUT = 30.0
"""Seconds for a daemon to say READY=1."""
END_TIMEOUT = 30.0
"""Seconds for a mount to come to an end: not busy any more, store files closed, the daemon gone."""
TRANSPORT = "CKFS_TEST_TRANSPORT"
"""The variable that says by which transport the tests' mounts are served, if not by the one that ckfs chooses."""
UMASK = 0o022
"""Every ckfs runs with a common umask, whatever the tests' own is."""
_POLL = 0.02
_PYTEST = os.getpid()

_SURPRISE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback |^<[0-4]>", re.IGNORECASE)


class MountTrouble(AssertionError):
    """A mount did not come up, did not end, or left something behind; the text has the daemon's log."""


def passes_through() -> bool:
    """Whether the kernel reads and writes by itself on these mounts: not with pyfuse3."""
    return kernel_can_pass() and os.environ.get(TRANSPORT) != "pyfuse3"


def kernel_can_pass() -> bool:
    """Whether this kernel reads and writes by itself: not before Linux 6.9."""
    return kernel_is(6, 9)


def kernel_is(*least: int) -> bool:
    """Whether this is the Linux of that release, or a later one."""
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2]) >= least


def command(*arguments: str | Path) -> list[str]:
    """The argument vector of a ckfs command of this source tree."""
    return [sys.executable, "-m", "ckfs", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """The environment in which this source tree's ckfs runs without being installed, and keeps its state out of the host's."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    return {"CKFS_STATE_DIR": str(state_directory()), **os.environ, **own, **more}


@functools.cache
def state_directory() -> Path:
    """Where the ckfs of this process's tests keep what is their host's; gone when the process ends."""
    directory, here = Path(tempfile.mkdtemp(prefix="ckfs-state-")), os.getpid()

    def remove() -> None:
        if os.getpid() == here:  # not in a child that was forked as another user
            shutil.rmtree(directory)

    atexit.register(remove)
    return directory


def run_ckfs(*arguments: str | Path, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a ckfs command to its end; its exit status is the caller's to check. Only of ``ckfs mount`` the process list says the words."""
    if arguments[0] == "mount" or _needs_exec():
        return subprocess.run(
            command(*arguments),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    words = list(map(str, arguments))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = Preloaded(main, [words], stdout=out.fileno(), stderr=errors.fileno(), env=environment())
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess(words, status, out.read(), errors.read())


def make_store(directory: Path, *options: str) -> Path:
    """A new store ``directory/store``, made by ``ckfs init`` with *options*."""
    store = directory / "store"
    ran = ckfs_as(ROOT, "init", *options, store)
    if ran.status != 0:
        raise MountTrouble(f"ckfs init {store}: exit status {ran.status}\n{ran.text}{ran.errors}")
    return store


class Mount:
    """One running ckfs. Made by :func:`mounted`; a test may end it early by any of the ways that there are."""

    def __init__(self, path: Path, store: Path, process: Process, log_file: Path) -> None:
        self.path = path
        self.store = store
        self.process = process
        self.options: tuple[str, ...] = ()
        """Which mount options it was given beside role and node."""
        self.ended = False
        """True once a test has ended the mount itself."""
        self._log_file = log_file

    def log(self) -> str:
        """What the daemon has logged so far."""
        return self._log_file.read_text("utf-8", "backslashreplace")

    def umount(self, timeout: float = END_TIMEOUT) -> None:
        """``umount``, again while it is busy, and the daemon's exit with status 0."""
        self.ended = True
        deadline = time.monotonic() + timeout
        while (answer := _umount(self.path)) is not None:
            if "busy" not in answer or time.monotonic() > deadline:
                raise MountTrouble(f"umount {self.path}: {answer}")
            time.sleep(_POLL)
        self._expect_exit(0, "umount", deadline)

    def terminate(self, timeout: float = END_TIMEOUT) -> None:
        """SIGTERM, and the daemon's exit with status 0."""
        self.ended = True
        self.process.send_signal(signal.SIGTERM)
        self._expect_exit(0, "SIGTERM", time.monotonic() + timeout)

    def kill(self) -> None:
        """SIGKILL. The dead mount stays, and answers ENOTCONN, until :meth:`detach`."""
        self.ended = True
        self.process.kill()
        self.process.wait()

    def detach(self) -> None:
        """``umount -l``, as often as the mount point is mounted on; without any effect if it is not."""
        while is_mounted(self.path):
            answer = _umount(self.path, "-l")
            if answer is not None and is_mounted(self.path):
                raise MountTrouble(f"umount -l {self.path}: {answer}")

    def open_store_files(self) -> list[str]:
        """What the daemon holds open below the store's ``users/``."""
        below = f"{self.store.resolve()}/users/"
        links = []
        directory = f"/proc/{self.process.pid}/fd"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for name in os.listdir(directory):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    links.append(os.readlink(f"{directory}/{name}"))
        return sorted(link for link in links if link.startswith(below))

    def surprises(self, may_log: Sequence[str]) -> list[str]:
        """The lines of the log that no test announced: warnings, errors and tracebacks."""
        return [
            line
            for line in self.log().splitlines()
            if _SURPRISE.search(line) and not any(re.search(pattern, line) for pattern in may_log)
        ]

    def _expect_exit(self, expected: int, what: str, deadline: float) -> None:
        try:
            status = self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise MountTrouble(f"the daemon still runs after {what}{self._log_for_message()}") from None
        if status != expected:
            raise MountTrouble(f"exit status {status} after {what}{self._log_for_message()}")

    def _log_for_message(self) -> str:
        return f"; its log:\n{self.log()}"


@contextlib.contextmanager
def mounted(
    store: Path,
    mountpoint: Path,
    *,
    role: str = "node",
    node: str | None = None,
    options: Sequence[str] = (),
    may_log: Sequence[str] = (),
    within: Sequence[str] = (),
) -> Iterator[Mount]:
    """*store* mounted on *mountpoint* (made if missing), and at the end all checks that this module promises.

    *may_log* are regular expressions of log lines that are expected although they are warnings or errors. *within* is what goes
    before the command to run it on another machine (:attr:`tests.support.machines.Machine.enter`).
    """
    mountpoint.mkdir(exist_ok=True)
    transport = os.environ.get(TRANSPORT)
    chosen = [
        f"role={role}",
        *([f"node={node}"] if node else []),
        *([f"transport={transport}"] if transport else []),
        *options,
    ]
    with tempfile.TemporaryDirectory(prefix="ckfs-daemon-") as scratch:
        log_file = Path(scratch) / "log"
        words = list(map(str, ("mount", store, mountpoint, "-f", "-o", ",".join(chosen))))
        with _Readiness(Path(scratch) / "notify") as readiness:
            process = _begun(words, environment(NOTIFY_SOCKET=str(readiness.path)), log_file, within)
            mount = Mount(mountpoint, store, process, log_file)
            mount.options = tuple(options)
            try:
                readiness.wait_for(mount)
                yield mount
                if not mount.ended:
                    _wait_until(lambda: not mount.open_store_files(), mount.open_store_files)
                    mount.umount()
                _check_end(mount, may_log)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                mount.detach()


def _needs_exec() -> bool:
    """Whether the environment says something that only a program that is executed hears, or this is a child, as another user perhaps, for
    whom pytest's server forks nothing."""
    return os.getpid() != _PYTEST or any(name.startswith("LD_") for name in os.environ)


def _begun(words: Sequence[str], env: Mapping[str, str], log_file: Path, within: Sequence[str]) -> Process:
    with log_file.open("wb") as log:
        if not within and not _needs_exec():
            return Preloaded(main, [words], stdout=log.fileno(), stderr=log.fileno(), env=env, umask=UMASK)
        return subprocess.Popen(
            [*within, *command(*words)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=UMASK,
        )


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there, as the kernel's list says, without touching it."""
    wanted = str(path.parent.resolve() / path.name)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(_unescaped(line.split(" ")[4]) == wanted for line in lines)


def daemons(mountpoint: Path) -> list[int]:
    """The processes that a ``ckfs mount`` on *mountpoint* is, or has left behind."""
    wanted = os.fsencode(mountpoint)
    pids = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if b"ckfs" in arguments and b"mount" in arguments and wanted in arguments:
                pids.append(int(name))
    return pids


class _Readiness:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        self._socket.bind(str(self.path))
        self._socket.settimeout(_POLL)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_for(self, mount: Mount) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            alive = mount.process.poll() is None
            with contextlib.suppress(TimeoutError):
                if "READY=1" in self._socket.recv(4096).decode().splitlines():
                    return
            if not alive:
                raise MountTrouble(
                    f"the daemon ended with status {mount.process.returncode} before READY=1; its log:\n{mount.log()}"
                )
            if time.monotonic() > deadline:
                raise MountTrouble(f"no READY=1 within {READY_TIMEOUT:.0f} s; the log:\n{mount.log()}")


def _check_end(mount: Mount, may_log: Sequence[str]) -> None:
    killed = mount.process.returncode == -signal.SIGKILL
    if is_mounted(mount.path) and not killed:
        raise MountTrouble(f"a mount is left on {mount.path}; the log:\n{mount.log()}")
    if surprises := mount.surprises(may_log):
        raise MountTrouble("unexpected in the log:\n" + "\n".join(surprises) + f"\nall of it:\n{mount.log()}")


def _wait_until(done: Callable[[], bool], rest: Callable[[], list[str]]) -> None:
    """RELEASE comes after close(2) has returned, so that the last store file is closed a little later."""
    deadline = time.monotonic() + END_TIMEOUT
    while not done():
        if time.monotonic() > deadline:
            raise MountTrouble("store files left open:\n" + "\n".join(rest()))
        time.sleep(_POLL)


def _umount(path: Path, *options: str) -> str | None:
    """None, or what ``umount`` had to say against it."""
    done = subprocess.run(
        ["umount", *options, str(path)],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip()


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
