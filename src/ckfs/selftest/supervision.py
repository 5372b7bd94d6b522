"""A call that may hang, in a process of its own, with a time limit: the store is never touched by the process that reports.

A process that waits for a store may not even be killed; then it is left behind, and ends when the store answers.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from ckfs.errors import CkfsError
from ckfs.names import shown

_REAPED_WITHIN_S = 2.0
_PIECE_BYTES = 1 << 16
_LONGEST_COMPLAINT = 300
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class NoAnswer(CkfsError):
    """The time was over."""


class Died(CkfsError):
    """The process ended without an answer."""


def bounded(call: Callable[[], object], timeout_s: float) -> object:
    """What *call* returns, which must be plain values that JSON knows. Raises NoAnswer, and Died with the last line of what it said."""
    reading, writing = os.pipe()
    life, alive = os.pipe()
    complaints = os.memfd_create("complaints")
    sys.stdout.flush()
    # A signal may come at any moment: the child is not the one that is meant, and is known before it is heard.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    child = os.fork()
    if child == 0:
        os.close(alive)
        _live(call, writing, complaints, life, unblocked)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        os.close(writing)
        os.close(life)
        answer = _read(reading, time.monotonic() + timeout_s)
    except NoAnswer:
        raise NoAnswer(f"no answer within {timeout_s:g} s") from None
    finally:
        os.close(reading)
        status = _end(child)
        os.close(alive)
        complaint = os.pread(complaints, _PIECE_BYTES, 0)
        os.close(complaints)
    if not answer:
        raise Died(_last_line(complaint) or f"the check ended without an answer (wait status {status})")
    return json.loads(answer)


def _live(
    call: Callable[[], object], writing: int, complaints: int, life: int, unblocked: set[int | signal.Signals]
) -> NoReturn:
    """In the child, which leaves by this door alone: nothing of the parent's is flushed or tidied up twice."""
    status = 1
    try:
        os.setsid()  # so that a Ctrl-C is the parent's, and whatever is started here is ended with it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        threading.Thread(target=_die_with_parent, args=(life,), daemon=True).start()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, copied in ((0, null), (1, null), (2, complaints)):
            os.dup2(copied, descriptor)
        answer = json.dumps(call()).encode()
        while answer:
            answer = answer[os.write(writing, answer) :]
        status = 0
    except CkfsError as error:
        os.write(complaints, str(error).encode())
    except BaseException as error:  # noqa: BLE001 - the child ends here, and the parent says why
        os.write(complaints, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        os._exit(status)


def _die_with_parent(life: int) -> None:
    """With all that was started here. (The kernel's own way, PR_SET_PDEATHSIG, ends when a thread acts as somebody else.)"""
    os.read(life, 1)
    os.killpg(0, signal.SIGKILL)


def _read(fd: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise NoAnswer
        part = os.read(fd, _PIECE_BYTES)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _end(child: int) -> int | None:
    """End *child* and all that it started. None if it does not go, since it waits for the store in the kernel."""
    deadline = time.monotonic() + _REAPED_WITHIN_S
    while True:
        for kill in (os.killpg, os.kill):  # the group is there once the child has made it
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def _last_line(complaint: bytes) -> str:
    lines = complaint.decode("utf-8", "replace").strip().splitlines()
    return shown(lines[-1][:_LONGEST_COMPLAINT]) if lines else ""
