"""Whether the kernel reads and writes an open file by itself: then it does so while the daemon is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.agents import Agent
from tests.support.mounting import Mount, passes_through

_AT_ONCE_S = 0.5
NEEDED = pytest.mark.skipif(
    not passes_through(), reason="this kernel (before Linux 6.9), or this transport, cannot pass through"
)


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """Within the block the daemon answers nothing."""
    mount.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.process.send_signal(signal.SIGCONT)


def is_written_unseen(mount: Mount, agent: Agent, fd: int, data: bytes = b"unseen", offset: int = 0) -> bool:
    """Whether the kernel writes by itself what *agent* has open; *data* is written in any case."""
    agent.do(os.pwrite, fd, data, offset)  # before the first the kernel asks for security attributes
    with stopped(mount):
        agent.begin(os.pwrite, fd, data, offset)
        is_done = agent.is_done(_AT_ONCE_S)
    assert agent.result() == len(data)
    return is_done


def is_read_unseen(mount: Mount, agent: Agent, fd: int) -> bool:
    """Whether the kernel reads by itself what *agent* has open, and what has content."""
    with stopped(mount):
        agent.begin(os.pread, fd, 1, 0)
        is_done = agent.is_done(_AT_ONCE_S)
    assert len(agent.result()) == 1
    return is_done
