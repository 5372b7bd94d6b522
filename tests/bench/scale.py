"""``python -m tests.bench.scale``: what a ledger in PostgreSQL bears when hundreds of mounts ask it at once.

No file is written: clients ask what mounts ask while they checkpoint. Each *dump* is a note of the file and a first grant, a grant for each
further piece, the posting of what the file takes in the end, and what is left of the last grant given back; between them a look whether others
ask for something back. All clients begin the next dump as soon as one has ended, which is as much as they can ask, so a figure here is
what the database bears, not what mounts want of it (docs/scale.md says that). Clients, database and disk share this machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from ckfs.ledger import opening
from ckfs.ledger.ledger import Ledger, Opened, Posting, Settled
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import GRANT_BYTES, NOTHING, Amount, Settings
from tests.support import postgres

STORE = "0123456789abcdef"
FIRST_UID = 5000
LIMIT_S = 60.0
GRANTS = 4
"""For one dump: 256 MiB with grants of 64 MiB."""
_SPARE_CONNECTIONS = 20
_READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Answers:
    """How long each question of one kind took, in seconds."""

    kind: str
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Borne:
    """What so many *clients* of so many *owners* together asked in *seconds*."""

    clients: int
    owners: int
    seconds: float
    dumps: int
    answers: list[Answers]

    @property
    def questions(self) -> list[float]:
        return [second for answers in self.answers for second in answers.seconds]


class _Client:
    """One mount, as the ledger sees it."""

    def __init__(self, ledger: Ledger, number: int, owner: Uid) -> None:
        self._ledger = ledger
        self._mount = MountId(b"%016x" % (number + 1))
        self._owner = owner
        self._posts = 0
        self._inode = (number + 1) << 32
        self.dumps = 0
        self.took: dict[str, list[float]] = {"grant": [], "post": [], "look": []}

    def dump(self) -> None:
        self._inode += 1
        ino, base, size = Inode(self._inode), Amount(0, 1), NOTHING
        self._timed("grant", lambda: self._draw(NOTHING, (Opened(ino, base),)))
        for _ in range(GRANTS):
            self._timed("grant", lambda: self._draw(Amount(GRANT_BYTES)))
            self._timed("look", lambda: self._ledger.recalled(self._mount))
            size += Amount(GRANT_BYTES)
        rest = Amount(GRANT_BYTES // 2)
        settled = (Settled(ino, base + size - rest),)
        self._timed("post", lambda: self._post(settled=settled, given_up=size - rest))
        # What is left is given back; and the file goes again, so that nobody's amount grows without end.
        self._timed("post", lambda: self._post(used=rest - size, given_up=rest))
        self.dumps += 1

    def end(self) -> None:
        self._ledger.end(self._mount)

    def _draw(self, wanted: Amount, opened: tuple[Opened, ...] = ()) -> object:
        return self._ledger.draw(self._mount, self._owner, wanted, wanted, opened)

    def _post(
        self, used: Amount = NOTHING, given_up: Amount = NOTHING, settled: tuple[Settled, ...] = ()
    ) -> None:
        self._posts += 1
        self._ledger.post(self._mount, self._posts, [Posting(self._owner, used, given_up, settled)])

    def _timed(self, kind: str, ask: Callable[[], object]) -> None:
        begin = time.monotonic()
        ask()
        self.took[kind].append(time.monotonic() - begin)


def measure(clients: int, owners: int, seconds: float, processes: int) -> Borne:
    """So many *clients* dump for *seconds*, as fast as they get answers, as so many *owners*, whose limits are far away, in a new database
    of a server that syncs what it commits. Raises AssertionError if the ledger's sums are wrong in the end."""
    with postgres.running(durable=True, connections=clients + _SPARE_CONNECTIONS) as server:
        where = server.new_database("scale")
        ledger = opening.database(where, STORE, LIMIT_S)
        ledger.set_limits(None, Settings(hard_bytes=1 << 50))
        begin, end = multiprocessing.Event(), multiprocessing.Event()
        shares = [range(first, clients, processes) for first in range(processes)]
        pipes, running = [], []
        for share in shares:
            ours, theirs = multiprocessing.Pipe()
            arguments = (where, share, owners, begin, end, theirs)
            running.append(multiprocessing.Process(target=_clients, args=arguments, daemon=True))
            running[-1].start()
            pipes.append(ours)
        for pipe in pipes:
            _told(pipe)
        begin.set()
        begun_s = time.monotonic()
        time.sleep(seconds)  # the time of the measurement, nothing that is waited for
        end.set()
        took_s = time.monotonic() - begun_s
        told = [_told(pipe) for pipe in pipes]
        for process in running:
            process.join(_READY_S)
        assert ledger.check() == []
        for account in ledger.accounts():
            assert account.total.bytes == 0, f"{account}: something is left"
        ledger.close()
    dumps = sum(count for count, _ in told)
    kinds = ("grant", "post", "look")
    answers = [Answers(kind, [one for _, took in told for one in took[kind]]) for kind in kinds]
    return Borne(clients, owners, took_s, dumps, answers)


def _told(pipe: Connection) -> tuple[int, dict[str, list[float]]]:
    if not pipe.poll(_READY_S):
        raise AssertionError("a process of clients has not answered")
    found: tuple[int, dict[str, list[float]]] = pipe.recv()
    return found


def _clients(where: str, numbers: range, owners: int, begin: Event, end: Event, pipe: Connection) -> None:
    """A process with a thread for each client, with a connection each."""
    books = [opening.database(where, STORE, LIMIT_S) for _ in numbers]
    clients = [
        _Client(book, number, Uid(FIRST_UID + number % owners))
        for number, book in zip(numbers, books, strict=True)
    ]

    def work(client: _Client) -> None:
        begin.wait(_READY_S)
        while not end.is_set():
            client.dump()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    pipe.send((0, {}))
    for thread in threads:
        thread.join()
    for client, book in zip(clients, books, strict=True):
        client.end()
        book.close()
    took = {
        kind: [one for client in clients for one in client.took[kind]] for kind in ("grant", "post", "look")
    }
    pipe.send((sum(client.dumps for client in clients), took))


def text(rows: list[Borne]) -> str:
    """As a table of Markdown. Rates per second, times in milliseconds."""
    lines = [
        "| clients | owners | dumps/s | questions/s | grant: median, 99 % | post: median, 99 % | look: median, 99 % |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row.clients:,}", f"{row.owners:,}", f"{row.dumps / row.seconds:,.0f}"]
        cells.append(f"{len(row.questions) / row.seconds:,.0f}")
        cells += [_times(answers.seconds) for answers in row.answers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "-"
    return f"{statistics.median(seconds) * 1000:.1f}, {statistics.quantiles(seconds, n=100)[98] * 1000:.1f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 128, 512], metavar="N")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each line (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=4, help="that have the clients as threads (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if postgres.programs() is None:
        print("PostgreSQL's server is not installed", file=sys.stderr)
        return 1
    rows = []
    for clients in options.clients:
        for owners in sorted({1, max(1, clients // 8), clients}):
            rows.append(measure(clients, owners, options.seconds, min(options.processes, clients)))
            print(text(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
