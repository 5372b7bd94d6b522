"""Other mounts of the same store, seen from here: a process there does what it is told, line by line (see serving).

Another host is reached by ssh, without a password and without a question; the same ckfs must be there. A second mount of this
host is served by a process of this host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckfs.errors import CkfsError
from ckfs.names import shown

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:%-]*")
_CONNECT_S = 10
_END_S = 1.0
_PIECE_BYTES = 1 << 16
_LONGEST_COMPLAINT = 200


class PeerFailed(CkfsError):
    """It cannot be reached, or does not do what it is told."""


@dataclass(frozen=True, slots=True)
class Peer:
    """*name* is what the report calls it; *host* None is this one; *store* is where the store is there."""

    name: str
    host: str | None
    store: str

    @property
    def argv(self) -> list[str]:
        here = [
            sys.executable,
            "-P",
            "-m",
            "ckfs",
            "selftest",
            "--peer",
        ]  # P: nothing of the directory that it starts in
        if self.host is None:
            return here
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
        return ["ssh", *options, "--", self.host, shlex.join(here)]


def is_host(name: str) -> bool:
    """Whether *name* can be given to ssh as a host, and as nothing else."""
    return _HOST.fullmatch(name) is not None


class Line:
    """A peer that runs. Answers are waited for until *deadline*, on the clock of time.monotonic()."""

    def __init__(self, peer: Peer, process: subprocess.Popen[bytes], deadline: float) -> None:
        self.peer = peer
        self._process = process
        self._deadline = deadline
        self._rest = b""

    def ask(self, what: str, **values: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **values}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.answer()  # says why

    def answer(self) -> dict[str, object]:
        """The answer to the oldest question. Raises PeerFailed."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([fd], [], [], max(0.0, self._deadline - time.monotonic()))
            if not ready:
                raise PeerFailed(f"{self.peer.name}: no answer")
            piece = os.read(fd, _PIECE_BYTES)
            if not piece:
                raise PeerFailed(f"{self.peer.name}: {self._complaint()}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            raise PeerFailed(f"{self.peer.name}: what answers there is no ckfs") from None
        if not isinstance(answer, dict):
            raise PeerFailed(f"{self.peer.name}: what answers there is no ckfs")
        if "failed" in answer:
            raise PeerFailed(f"{self.peer.name}: {shown(str(answer['failed']))}")
        return answer

    def told(self, what: str, **values: object) -> dict[str, object]:
        self.ask(what, **values)
        return self.answer()

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read(_PIECE_BYTES).decode("utf-8", "replace").strip().splitlines()
        said = shown(lines[-1][:_LONGEST_COMPLAINT]) if lines else "it ended"
        return f"ckfs cannot be run there: {said}"


@contextlib.contextmanager
def connected(peers: Sequence[Peer], timeout_s: float) -> Iterator[list[Line]]:
    """All of *peers*, running; they end with the block."""
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_running(peer, deadline)) for peer in peers]


@contextlib.contextmanager
def _running(peer: Peer, deadline: float) -> Iterator[Line]:
    try:
        process = subprocess.Popen(
            peer.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        )
    except OSError as error:
        raise PeerFailed(f"{peer.name}: {peer.argv[0]} cannot be run: {error.strerror}") from None
    try:
        yield Line(peer, process, deadline)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends when nothing comes any more; ssh, too."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:  # it waits for its store
        process.kill()
    process.stdout.close()
    process.stderr.close()
