"""A process that holds memory, for CRIU to dump: all of it was written, and after a restore it can say whether it is the same.

It stands alone, as :mod:`ckfs.demo.counter`, whose way of counting it has: every line of ``count`` is ``<count> <CRC-32 of the first
block>``. On SIGUSR1 it compares all of its memory, and says ``saved <count>`` in its ``log`` if that is what it was.

Usage: ``holding.py start WORKDIR BYTES``; WORKDIR gets ``pid``, ``log`` and ``count``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib

BLOCK_BYTES = 1 << 20
TICK_SECONDS = 0.05
LAST_COUNT = 12_000
"""Ten minutes: one that everybody lost ends by itself."""


def detach(log: str) -> None:
    """As the counter of the demo does: nothing is open that another mount namespace opened."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, 1024)


def main(_mode: str, workdir: str, size: str) -> None:
    os.chdir(workdir)
    detach("log")
    is_asked = False

    def on_usr1(_signal: int, _frame: object) -> None:
        nonlocal is_asked
        is_asked = True

    signal.signal(signal.SIGUSR1, on_usr1)
    block = os.urandom(BLOCK_BYTES)
    memory = bytearray(int(size) // BLOCK_BYTES * BLOCK_BYTES)
    parts = [memoryview(memory)[at : at + BLOCK_BYTES] for at in range(0, len(memory), BLOCK_BYTES)]
    for part in parts:
        part[:] = block
    out = os.open("count", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with open("pid.tmp", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename("pid.tmp", "pid")
    for count in range(1, LAST_COUNT + 1):
        os.write(out, f"{count} {zlib.crc32(parts[0]):08x}\n".encode())
        if is_asked:
            is_asked = False
            said = "saved" if all(part == block for part in parts) else "other memory at"
            os.write(1, f"{said} {count}\n".encode())
        time.sleep(TICK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
