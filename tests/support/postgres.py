"""A PostgreSQL server of a test's own: Debian's programs, a new directory, a unix socket and no TCP.

It runs as the user postgres, since it refuses root, and is ended by its pid. Nothing is asked of a server that the system may run.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

PROGRAMS = Path("/usr/lib/postgresql")
POOLER = Path("/usr/sbin/pgbouncer")
READY_WITHIN_S = 60.0
_SMALL = ("shared_buffers=16MB",)
_QUICK = ("fsync=off", "full_page_writes=off")
"""What is lost with the machine's power is of no interest to tests."""


def skip_unless_installed() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to run PostgreSQL as its own user")
    if programs() is None:
        pytest.skip("needs PostgreSQL's server (Debian: postgresql)")


def skip_unless_pooler_installed() -> None:
    skip_unless_installed()
    if not POOLER.exists():
        pytest.skip("needs PgBouncer (Debian: pgbouncer)")


def programs() -> Path | None:
    """Where the newest version's are."""
    found = [path.parent for path in PROGRAMS.glob("*/bin/initdb") if (path.parent / "postgres").exists()]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class Server:
    """It keeps its data in *directory*; made by :func:`running`."""

    def __init__(self, directory: Path, settings: Sequence[str]) -> None:
        self.directory = directory
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def connection(self) -> str:
        """For libpq, as the superuser."""
        return f"host={self.directory} user=postgres dbname=postgres"

    def connection_to(self, database: str) -> str:
        return f"host={self.directory} user=postgres dbname={database}"

    def start(self) -> None:
        """Returns when it takes connections."""
        options = [word for setting in self._settings for word in ("-c", setting)]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    _program("postgres"),
                    "-D",
                    self.directory / "data",
                    "-k",
                    self.directory,
                    "-h",
                    "",
                    *options,
                ],
                stdout=log,
                stderr=log,
                **_as_postgres(),
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while not _answers(self.connection):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.directory / "log").read_text("utf-8", "replace"))
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all connections first; SIGQUIT is as if it had crashed."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(READY_WITHIN_S)
            self.process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All of its processes stop where they are: connections stay, and nobody answers."""
        assert self.process is not None
        pids = [self.process.pid, *_children(self.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def run(self, statement: str) -> None:
        with psycopg.connect(self.connection, autocommit=True) as connection:
            connection.execute(statement)

    def new_database(self, name: str) -> str:
        """The connection string of a new, empty database."""
        self.run(f"CREATE DATABASE {name}")
        return self.connection_to(name)


@contextlib.contextmanager
def running(*, durable: bool = False, connections: int = 60) -> Iterator[Server]:
    """A new server; gone with all its data afterwards. *durable*: it syncs what it commits, as an admin's own does. It takes so many
    *connections* at a time."""
    directory = Path(tempfile.mkdtemp(prefix="ckfs-postgres-"))
    try:
        account = pwd.getpwnam("postgres")
        os.chown(directory, account.pw_uid, account.pw_gid)
        subprocess.run(
            [_program("initdb"), "-D", directory / "data", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"],
            check=True,
            capture_output=True,
            **_as_postgres(),
        )
        settings = (*_SMALL, f"max_connections={connections}")
        server = Server(directory, settings if durable else (*settings, *_QUICK))
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def pooled(server: Server, sessions: int, clients: int = 100) -> Iterator[Callable[[str], str]]:
    """PgBouncer before *server*, which has so many *sessions* there for each database, and gives each transaction any of them. Yields
    what makes a database's name a connection string through it."""
    directory = Path(tempfile.mkdtemp(prefix="ckfs-pooler-"))
    try:
        account = pwd.getpwnam("postgres")
        os.chown(directory, account.pw_uid, account.pw_gid)
        (directory / "ini").write_text(
            f"[databases]\n* = host={server.directory} user=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {directory}\nauth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {sessions}\nmax_client_conn = {clients}\nserver_login_retry = 1\n",
            encoding="ascii",
        )
        with open(directory / "log", "ab") as log:
            process = subprocess.Popen([POOLER, directory / "ini"], stdout=log, stderr=log, **_as_postgres())
        try:
            string = f"host={directory} port=6432 user=postgres dbname="
            deadline = time.monotonic() + READY_WITHIN_S
            while not _answers(f"{string}postgres"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((directory / "log").read_text("utf-8", "replace"))
                time.sleep(0.02)
            yield lambda database: f"{string}{database}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(READY_WITHIN_S)
    finally:
        shutil.rmtree(directory)


def _answers(connection: str) -> bool:
    try:
        psycopg.connect(connection).close()
    except psycopg.OperationalError:
        return False
    return True


def _as_postgres() -> dict[str, Any]:
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}


def _program(name: str) -> Path:
    found = programs()
    assert found is not None
    return found / name


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
