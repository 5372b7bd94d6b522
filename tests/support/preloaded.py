"""Programs for tests, each a process of its own that is forked from one which has loaded ckfs once. A suite begins thousands of them, and
loading it anew each time would take most of its time, as would forking pytest itself.

What an admin's command does before its first own instruction is for tests that run :func:`tests.support.mounting.command`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pkgutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.context import ForkServerContext
from typing import NoReturn, Protocol

import ckfs.cli

_LOADED = (
    *(f"ckfs.cli.{module.name}" for module in pkgutil.iter_modules(ckfs.cli.__path__)),
    "ckfs.transport.kernel",
    "ckfs.transport.pyfuse",
    "tests.support.nfsfs",
    __name__,
)


class Process(Protocol):
    """Of :class:`subprocess.Popen` what tests need."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class _Descriptor:
    """A descriptor of this process, on its way to another."""

    fd: int

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return _received, (reduction.DupFd(self.fd),)


class _Passed(Protocol):
    def detach(self) -> int: ...


def _received(passed: _Passed) -> _Descriptor:
    return _Descriptor(passed.detach())


class Preloaded:
    """*call*, a function of a module, with *words*, in a process of its own; what it returns is the exit status, None being 0. Reads nothing,
    and writes to the descriptors *stdout* and *stderr*."""

    def __init__(
        self,
        call: Callable[..., int | None],
        words: Sequence[object],
        *,
        stdout: int,
        stderr: int,
        env: Mapping[str, str],
        umask: int | None = None,
    ) -> None:
        output = _Descriptor(stdout), _Descriptor(stderr)
        arguments = (call, words, output, dict(env), umask, os.getcwd())
        self._process = _server().Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_LOADED])
    return context


def _run(
    call: Callable[..., int | None],
    words: Sequence[object],
    output: tuple[_Descriptor, _Descriptor],
    env: dict[str, str],
    umask: int | None,
    directory: str,
) -> NoReturn:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(directory)
    if umask is not None:
        os.umask(umask)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, fd in enumerate((null, output[0].fd, output[1].fd)):
        os.dup2(fd, number)
        os.close(fd)
    raise SystemExit(call(*words))
