"""Closing descriptors of the store without waiting for it."""

from __future__ import annotations

import logging
import os

import outcome
import trio

log = logging.getLogger(__name__)


def close_soon(fd: int) -> None:
    """Close in a thread, since a store may hang there too; nobody waits for it. Here and now if no thread is to be had."""

    def close() -> None:
        os.close(fd)

    try:
        trio.lowlevel.start_thread_soon(close, _log_failed_close)
    except RuntimeError:
        _log_failed_close(outcome.capture(close))


def _log_failed_close(result: outcome.Outcome[None]) -> None:
    if isinstance(result, outcome.Error):
        log.warning("closing a file of the store failed: %s", result.error)
