"""A way to a PostgreSQL that a test cuts, for one host among several: a unix socket that is passed on to the server's."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"
_PIECE = 1 << 16


class Relay:
    """Listens in *directory*, as a server would, for one whose socket is in *server*. Made by :func:`relayed`."""

    def __init__(self, directory: Path, server: Path) -> None:
        self.directory = directory
        self._server = server / _SOCKET
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_cut = False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(directory / _SOCKET))
        (directory / _SOCKET).chmod(0o777)
        self._listening.listen()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Connections break, and new ones do as soon as they are made."""
        with self._lock:
            self._is_cut = True
        self._break()
        try:
            yield
        finally:
            with self._lock:
                self._is_cut = False

    def close(self) -> None:
        with self._lock:
            self._is_cut = True
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._break()

    def run(self) -> None:
        """Until it is closed."""
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                server.connect(str(self._server))
            with self._lock:
                self._open |= {client, server}
                is_cut = self._is_cut
            if is_cut:
                self._break()
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _break(self) -> None:
        with self._lock:
            for one in self._open:
                _shut(one)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        """The last of the two ways of a connection closes it."""
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                target.sendall(piece)
        _shut(source)
        _shut(target)
        with self._lock:
            self._open.discard(target)
        target.close()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relayed(directory: Path, server: Path) -> Iterator[Relay]:
    relay = Relay(directory, server)
    running = threading.Thread(target=relay.run)
    running.start()
    try:
        yield relay
    finally:
        relay.close()
        running.join()
