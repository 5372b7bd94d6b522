"""The demo's process: counts aloud, and shows with each count that its memory is still the same.

It stands alone (standard library, no import of ckfs), because an ordinary user runs it who may not be able to read
where ckfs lies. Every line of its output is ``<count> <CRC-32 of 4 MiB of random memory>``: a process that was
restored goes on with the next count and the same sum, a process that was merely started again cannot.

Without a checkpointer it can save itself: on SIGUSR1 it writes count and memory to the state file (under a temporary
name, fsync, rename) and ``resume`` starts from there.

Usage: ``counter.py start|resume WORKDIR STATE``; WORKDIR gets ``pid``, ``log`` and ``count``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib

MEMORY_BYTES = 4 << 20
TICK_SECONDS = 0.05
LAST_COUNT = 12_000
"""Ten minutes: a counter that everybody lost ends by itself."""


def detach(log: str) -> None:
    """Leave the parent, the terminal, and every file that another mount namespace opened.

    CRIU finds open files by their path; and whoever started this may itself stop when CRIU stops its child.
    """
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, 1024)


def save(state: str, count: int, length: int, memory: bytes) -> None:
    """Write the state so that it is there as a whole or not at all."""
    temporary = state + ".tmp"
    with open(temporary, "wb") as file:
        file.write(f"{count} {length}\n".encode() + memory)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, state)


def load(state: str) -> tuple[int, int, bytes]:
    with open(state, "rb") as file:
        count, length = (int(word) for word in file.readline().split())
        return count, length, file.read()


def main(mode: str, workdir: str, state: str) -> None:
    os.chdir(workdir)
    detach("log")
    asked_to_save = False

    def on_usr1(_signal: int, _frame: object) -> None:
        nonlocal asked_to_save
        asked_to_save = True

    signal.signal(signal.SIGUSR1, on_usr1)
    out = os.open("count", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    if mode == "resume":
        count, length, memory = load(state)
        os.ftruncate(out, length)  # what was counted after the checkpoint did not happen
    else:
        count, memory = 0, os.urandom(MEMORY_BYTES)
    with open("pid.tmp", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename("pid.tmp", "pid")
    while count < LAST_COUNT:
        count += 1
        os.write(out, f"{count} {zlib.crc32(memory):08x}\n".encode())
        if asked_to_save:
            asked_to_save = False
            save(state, count, os.fstat(out).st_size, memory)
            os.write(1, f"saved {count}\n".encode())
        time.sleep(TICK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
