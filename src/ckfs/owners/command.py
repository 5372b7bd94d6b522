"""The owner of a job, from a command that the administrator configured."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time

from ckfs.names import JobId
from ckfs.owners.accounts import Accounts, is_user_name
from ckfs.owners.jobs import is_job_id
from ckfs.owners.resolver import Gone, Known, ReasonedResolver, Resolution, Unknown

MAX_OUTPUT_BYTES = 4096
GONE_STATUS = 44
"""The exit status that says that there is no such job any more: one that no common program, shell or interpreter ends with
when it merely fails."""
_STEP_S = 0.01
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class _Failed(Exception):
    """No answer; ``str()`` is the reason."""


class CommandResolver(ReasonedResolver):
    """Runs *argv* with the job as its last argument; it prints one line, a user's name or number, and exits with 0; or it
    exits with 44 if there is no such job any more.

    No shell, no input, almost no environment, nothing of the daemon's open. Whatever it starts is killed with it, at the
    latest after *timeout_s*. Anything else is *unknown*.
    """

    name = "the configured command"

    def __init__(self, argv: tuple[str, ...], timeout_s: float, accounts: Accounts) -> None:
        if not argv:
            raise ValueError("owner command: empty, name a program")
        self._argv = argv
        self._timeout_s = timeout_s
        self._accounts = accounts

    def resolve(self, job: JobId) -> Resolution:
        # A job id starts with a digit, so it cannot be taken for an option; here it is checked, not assumed.
        if not is_job_id(job):
            return Unknown("not a job id", suspect=True)
        try:
            status, output = self._run(job)
        except _Failed as error:
            return Unknown(str(error), suspect=True)
        except OSError as error:
            return Unknown(f"cannot be run: {error.strerror}", suspect=True)
        if status == GONE_STATUS:
            return Gone()
        if status != 0:
            return Unknown("failed", suspect=True)
        return self._resolution(output)

    def why_never_gone(self) -> str | None:
        if shutil.which(self._argv[0], path=_ENVIRONMENT["PATH"]) is None:
            return "cannot be run on this host"
        return None

    def _resolution(self, output: bytes) -> Resolution:
        line = output.decode("ascii", "replace").removesuffix("\n")
        if not is_user_name(line):
            return Unknown("printed something else than one user", suspect=True)
        if line.isdigit():
            # Ten digits hold every uid; more would be a number that no kernel knows.
            found = self._accounts.owner_of_uid(int(line)) if len(line) <= 10 else None
        else:
            found = self._accounts.owner_of_name(line)
        return Unknown("named root or nobody known", suspect=True) if found is None else Known(found)

    def _run(self, job: JobId) -> tuple[int, bytes]:
        """The exit status and the output."""
        deadline = time.monotonic() + self._timeout_s
        process = subprocess.Popen(
            [*self._argv, job],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            close_fds=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            return _answer(process, process.stdout.fileno(), deadline)
        finally:
            process.stdout.close()
            # The leader is not reaped yet, so its number still is its group's and nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answer(process: subprocess.Popen[bytes], output: int, deadline: float) -> tuple[int, bytes]:
    """How *process* ended, and what it printed until it closed its output. It is not reaped."""
    os.set_blocking(output, False)
    poll = select.poll()
    poll.register(output, select.POLLIN)
    printed = bytearray()
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _Failed("took too long")
        piece = os.read(output, MAX_OUTPUT_BYTES + 1 - len(printed))
        if not piece:
            break
        printed += piece
        if len(printed) > MAX_OUTPUT_BYTES:
            raise _Failed(f"printed more than {MAX_OUTPUT_BYTES} bytes")
    return _exit_status(process.pid, deadline), bytes(printed)


def _exit_status(pid: int, deadline: float) -> int:
    """Wait for *pid*'s end without reaping it. It has closed its output, so as a rule the first look finds it."""
    while (status := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() >= deadline:
            raise _Failed("took too long")
        time.sleep(_STEP_S)  # no descriptor tells of a process's end on kernels before 5.3
    if status.si_code != os.CLD_EXITED:
        raise _Failed("was killed")
    return status.si_status
