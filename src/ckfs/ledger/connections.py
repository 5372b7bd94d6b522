"""Connections to PostgreSQL that nobody waits for longer than he said, whatever the network or the server does.

They are made in threads of their own, since looking up a host's name, or a host that does not answer, takes as long as it likes. One that
has failed once is never used again: the server takes back what it had not committed. After an outage new ones are made.

Nothing is kept in the server's session from one transaction to the next, so that a pooler between may give each transaction
another one (PgBouncer with ``pool_mode = transaction``): what is set is set for the transaction.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo

from ckfs.errors import LedgerDown
from ckfs.names import shown

logging.getLogger("psycopg").setLevel(logging.ERROR)
"""It warns of connections that break; what becomes of that is for the mount to say."""

R = TypeVar("R")

_MOST = 4
"""Connections that are kept for the next call, and that are being made at a time."""
_AGAIN_S = 0.2
"""Until the next attempt, while the server is away."""
_LEAST_S = 2
"""libpq's own least time for an attempt."""
_SETTINGS = """\
SELECT set_config('search_path', 'ckfs', true), set_config('client_min_messages', 'warning', true),
 set_config('statement_timeout', %(limit)s, true), set_config('lock_timeout', %(limit)s, true),
 set_config('idle_in_transaction_session_timeout', %(limit)s, true)"""
"""By the last of these the server takes back what a host that died was about to do, and gives others its locks."""


class TooLate(Exception):
    """A server that the connection leads to does not answer in time."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """One that gives up waiting at the time :attr:`until`, of the monotonic clock. It is of no use any more then."""

    until: float = math.inf
    limit_ms: int = 0
    """How long the server may take for a statement, or wait in the middle of a transaction; 0 is any time."""

    def begin(self, begin: str) -> None:
        """Begin a transaction by the statement *begin*."""
        self.execute(begin)
        self.execute(_SETTINGS, {"limit": str(self.limit_ms)})

    def wait(self, gen: Generator[Any, Any, R], *args: Any, **kwargs: Any) -> R:
        return super().wait(self._in_time(gen), *args, **kwargs)

    def _in_time(self, gen: Generator[Any, Any, R]) -> Generator[Any, Any, R]:
        """*gen* is woken at least every 0.1 s, psycopg's interval."""
        try:
            asked = next(gen)
            while True:
                ready = yield asked
                if not ready and time.monotonic() > self.until:
                    raise TooLate
                asked = gen.send(ready)
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            gen.close()


class Connections:
    """To the database that *connection* (a libpq connection string) leads to."""

    def __init__(self, connection: str, timeout_s: float) -> None:
        self._parameters = _parameters(connection, timeout_s)
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._waiting = 0
        self._being_made = 0
        self._failure = ""
        self._is_closed = False

    @contextlib.contextmanager
    def taken(self, until: float) -> Iterator[Connection]:
        """A connection for one transaction, that waits no longer than *until*. If the block raises, it is closed.

        Raises LedgerDown if there is none by then.
        """
        connection = self._take(until)
        connection.until = until
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._put_back(connection)

    def drop(self) -> None:
        """One has failed: those that were idle will have, too."""
        with self._changed:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.drop()

    def _take(self, until: float) -> Connection:
        with self._changed:
            self._waiting += 1
            try:
                while not self._idle:
                    if self._is_closed:
                        raise LedgerDown("the ledger is closed")
                    if self._being_made < min(self._waiting, _MOST):
                        self._being_made += 1
                        threading.Thread(target=self._make, name="ledger-connect", daemon=True).start()
                    if not self._changed.wait(until - time.monotonic()):
                        raise LedgerDown(
                            f"the ledger's database cannot be reached: {self._failure or 'it does not answer'}"
                        )
                return self._idle.pop()
            finally:
                self._waiting -= 1

    def _put_back(self, connection: Connection) -> None:
        with self._changed:
            if not self._is_closed and len(self._idle) < _MOST:
                self._idle.append(connection)
                self._changed.notify()
                return
        connection.close()

    def _make(self) -> None:
        """In a thread of its own. Tries for as long as somebody waits."""
        made: Connection | None = None
        while made is None:
            try:
                made = self._connected()
            except (psycopg.Error, TooLate, OSError) as error:
                time.sleep(_AGAIN_S)
                with self._changed:
                    self._failure = one_line(error)
                    if not self._waiting or self._is_closed:
                        break
        with self._changed:
            self._being_made -= 1
            self._failure = self._failure if made is None else ""
        if made is not None:
            self._put_back(made)

    def _connected(self) -> Connection:
        made = Connection.connect(**self._parameters, autocommit=True)
        made.until = time.monotonic() + self._timeout_s
        made.limit_ms = math.ceil(self._timeout_s * 1000)
        try:
            pid = made.execute("SELECT pg_backend_pid()").fetchone()
        except BaseException:
            made.close()
            raise
        if pid != (
            made.pgconn.backend_pid,
        ):  # a pooler: what was prepared there may be asked of another session
            made.prepare_threshold = None
        return made


def _parameters(connection: str, timeout_s: float) -> dict[str, Any]:
    """Those of the connection string, with what bounds a connection that was made as well; what the string says holds."""
    ours = {
        "application_name": "ckfs",
        "target_session_attrs": "read-write",
        "connect_timeout": max(_LEAST_S, math.ceil(timeout_s)),
        "keepalives_idle": max(_LEAST_S, math.ceil(timeout_s)),
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": math.ceil(timeout_s * 1000),
    }
    return {**ours, **conninfo.conninfo_to_dict(connection)}


def one_line(error: BaseException) -> str:
    return (
        shown("; ".join(line.strip() for line in str(error).splitlines() if line.strip()))
        or type(error).__name__
    )
