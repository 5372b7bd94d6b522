"""What the ledger costs who writes: a store in which it counts against one in which nobody does, file by file in turns.

Turns are short, so that whatever else the machine does meets all alike, and there are many. Beside the time that the user waits, the
daemon's own processor time is compared, which others on the machine disturb less.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckfs.names import Uid
from ckfs.policy.quota import Amount
from tests.bench.owners import (
    FAR,
    FREE,
    NEAR,
    NONE,
    Owner,
    book_of,
    clear,
    file_of_ledger,
    fill,
    let_post,
)
from tests.bench.places import BY_DAEMON_ALONE, SET, scratch_in
from tests.bench.workloads import make_files, write
from tests.support.agents import Agent
from tests.support.mounting import Mount, make_store, mounted

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TIME, CPU = "time", "daemon's processor time"
EVERYBODY = (NONE, FREE, FAR, NEAR)
COUNTING = (FREE, FAR, NEAR)
"""Those for whom a ledger counts."""

_FIRST_UID = 2110
_PRIVATE = "private"
_LONGEST_S = 600.0
_MOST_BYTES, _MOST_SMALL_BYTES = 256 * MIB, 8 * MIB
"""Of one file, with large and with small calls: a turn is to be short."""
_POLICIES = {"ledger": "", NONE: '[quota]\nmode = "none"\n'}


@dataclass(frozen=True, slots=True)
class Load:
    """*calls* of some kind, which :data:`_WORK` makes in an owner's set and times; *size* bytes are written, in so many *files*."""

    title: str
    kind: str
    args: tuple[int, ...]
    calls: int
    size: int = 0
    files: int = 1


@dataclass(slots=True)
class Charge:
    """What one call of a *load* took, in seconds: by :data:`TIME` and :data:`CPU`, for each of :data:`EVERYBODY` one number per round."""

    load: Load
    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {what: {who: [] for who in EVERYBODY} for what in (TIME, CPU)}
    )

    def microseconds(self, what: str, who: str) -> float:
        return statistics.median(self.seconds[what][who]) * 1e6

    def ratios(self, what: str, who: str) -> list[float]:
        """How many times as long as without a ledger it took *who*, in each round."""
        taken = self.seconds[what]
        return [ours / theirs for ours, theirs in zip(taken[who], taken[NONE], strict=True)]


@dataclass(frozen=True, slots=True)
class Asked:
    """How often the ledger was asked while *who* wrote *size* bytes with calls of *call*: as often as that for each GiB."""

    size: int
    call: int
    who: str
    grants: float
    """How often a mount's grant grew."""
    posts: float
    notes: float
    """How often it was told of a file that begins to be written."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of the ledger on one backing file system."""

    rounds: int
    charges: list[Charge]
    asked: list[Asked]


def loads(stream: int, small: int, files: int) -> list[list[Load]]:
    """Writes of *stream* bytes and of *small* with small calls, in one file each; and so many *files*. What is in one list is done
    one after the other in the same turn."""
    stream, small = min(stream, _MOST_BYTES), min(small, _MOST_SMALL_BYTES)
    return [
        [Load("write, 1 MiB calls", "write", (stream, MIB), stream // MIB, stream)],
        [Load("write, 4 KiB calls", "write", (small, 4 * KIB), small // (4 * KIB), small)],
        [
            Load("create and close an empty file", "make", (files,), files, files=files),
            Load("unlink it", "remove", (files,), files),
        ],
    ]


def measure(
    directory: str, rounds: int, turn: list[list[Load]], amounts: tuple[int, int], say: Callable[[str], None]
) -> Costs:
    """*rounds* times each of the *turn* by everybody, in stores below *directory*. The ledger's grants are
    counted for *amounts*, of bytes written with large and with small calls."""
    loads_of_all = [load for steps in turn for load in steps]
    most = Amount(max(load.size for load in loads_of_all), max(load.files for load in loads_of_all))
    with scratch_in(directory) as scratch, _everybody(scratch, most) as writers:
        charges = [charge for steps in turn for charge in _charges(steps, rounds, writers, say)]
        asked = _asked(scratch, writers, amounts, most.bytes)
    return Costs(rounds, charges, asked)


@dataclass(frozen=True, slots=True)
class _Writer:
    name: str
    directory: str
    agent: Agent
    daemon: int
    owner: Owner | None

    def do(self, load: Load) -> float:
        self.agent.begin(_WORK[load.kind], self.directory, *load.args)
        return float(self.agent.result(_LONGEST_S))


def _charges(
    steps: list[Load], rounds: int, writers: list[_Writer], say: Callable[[str], None]
) -> list[Charge]:
    charges = [Charge(load) for load in steps]
    _leave(writers, steps[0].size)
    for number in range(rounds + 1):
        for writer in random.Random(number).sample(writers, len(writers)):  # nobody always after the same one
            for charge, taken in zip(charges, _taken(writer, steps), strict=True):
                for what, seconds in taken.items():
                    if number:  # the first is to warm up
                        charge.seconds[what][writer.name].append(seconds / charge.load.calls)
    for charge in charges:
        ratios = ", ".join(f"{who} {statistics.median(charge.ratios(TIME, who)):.2f}" for who in COUNTING)
        say(f"ledger, {charge.load.title}: {ratios}")
    return charges


def _leave(writers: list[_Writer], size: int) -> None:
    """Whoever writes up to his limit reaches it with *size* bytes."""
    for writer in writers:
        if writer.name == NEAR and writer.owner is not None:
            writer.agent.do(fill, writer.directory, writer.owner.most.bytes - size)
    let_post()


def _taken(writer: _Writer, steps: list[Load]) -> list[dict[str, float]]:
    """Seconds of all calls of each step. What the daemon does later about files that were removed counts, too."""
    rest = None if writer.owner is None else writer.owner.book.account(writer.owner.uid).used
    taken = []
    for load in steps:
        before = _processor_s(writer.daemon)
        seconds = writer.do(load)
        taken.append({TIME: seconds, CPU: _processor_s(writer.daemon) - before})
    before = _processor_s(writer.daemon)
    writer.agent.do(clear, writer.directory)
    let_post()
    if steps[-1].kind == "remove":
        taken[-1][CPU] += _processor_s(writer.daemon) - before
    if writer.owner is not None and rest is not None:
        writer.owner.until_quiet(rest)
    return taken


def _processor_s(pid: int) -> float:
    """All that the process has used (Linux: the clock of another process is made of its pid)."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def _everybody(scratch: Path, most: Amount) -> Iterator[list[_Writer]]:
    """Two mounts side by side, and everybody with a set of his own in one of them."""
    with contextlib.ExitStack() as stack:
        mounts = {
            kind: stack.enter_context(_mounted(scratch / kind.replace(" ", "-"), text))
            for kind, text in _POLICIES.items()
        }
        book = stack.enter_context(book_of(mounts["ledger"].store))
        writers = []
        for number, who in enumerate(EVERYBODY):
            uid = Uid(_FIRST_UID + number)
            mount = mounts.get(who, mounts["ledger"])
            owner = None if who == NONE else Owner(book, uid, most)
            if owner is not None:
                owner.limit(who)
            agent = stack.enter_context(Agent(uid))
            directory = str(mount.path / f"{SET}-{number}")
            agent.do(os.mkdir, directory, 0o700)
            writers.append(_Writer(who, directory, agent, mount.process.pid, owner))
        let_post()
        yield writers


@contextmanager
def _mounted(scratch: Path, policy: str) -> Iterator[Mount]:
    scratch.mkdir(mode=0o711)
    (scratch / _PRIVATE).mkdir(mode=0o700)
    store = make_store(scratch / _PRIVATE)
    (store / "policy.toml").write_text(policy, encoding="ascii")
    with mounted(store, scratch / "mount", node="bench", options=BY_DAEMON_ALONE) as mount:
        yield mount


# What owners do, with files of temporary names: they go for good when they are removed


def _make(directory: str, count: int) -> float:
    return make_files(directory, count, ".tmp")


def _remove(directory: str, count: int) -> float:
    begin = time.monotonic()
    for number in range(count):
        os.unlink(f"{directory}/{number}.tmp")
    return time.monotonic() - begin


_WORK: dict[str, Callable[..., float]] = {"write": write, "make": _make, "remove": _remove}


# How often the ledger is asked

_TALLY = """
    CREATE TABLE bench_tally (what TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL);
    INSERT INTO bench_tally VALUES ('grants', 0), ('posts', 0), ('notes', 0);
    CREATE TRIGGER bench_first_grant AFTER INSERT ON grants WHEN NEW.bytes > 0
    BEGIN UPDATE bench_tally SET number = number + 1 WHERE what = 'grants'; END;
    CREATE TRIGGER bench_grant AFTER UPDATE ON grants WHEN NEW.bytes > OLD.bytes
    BEGIN UPDATE bench_tally SET number = number + 1 WHERE what = 'grants'; END;
    CREATE TRIGGER bench_post AFTER UPDATE ON posts
    BEGIN UPDATE bench_tally SET number = number + 1 WHERE what = 'posts'; END;
    CREATE TRIGGER bench_note AFTER INSERT ON open_files
    BEGIN UPDATE bench_tally SET number = number + 1 WHERE what = 'notes'; END;
"""
"""The ledger's own tables count how they are changed."""


def _asked(scratch: Path, writers: list[_Writer], amounts: tuple[int, int], most_bytes: int) -> list[Asked]:
    path = file_of_ledger(scratch / "ledger" / _PRIVATE / "store")
    asked = []
    with contextlib.closing(sqlite3.connect(path, timeout=_LONGEST_S)) as tables:
        tables.executescript(_TALLY)
        for amount, call in zip(amounts, (MIB, 4 * KIB), strict=True):
            size = min(amount, most_bytes)
            _leave(writers, size)
            for writer in writers:
                if writer.owner is not None:
                    before = _tally(tables)
                    rest = writer.owner.book.account(writer.owner.uid).used
                    writer.agent.begin(write, writer.directory, size, call)
                    writer.agent.result(_LONGEST_S)
                    writer.agent.do(clear, writer.directory)
                    let_post()
                    writer.owner.until_quiet(rest)
                    after = _tally(tables)
                    per_gib = [(now - then) * GIB / size for then, now in zip(before, after, strict=True)]
                    asked.append(Asked(size, call, writer.name, *per_gib))
    return asked


def _tally(tables: sqlite3.Connection) -> tuple[int, int, int]:
    found = dict(tables.execute("SELECT what, number FROM bench_tally"))
    return found["grants"], found["posts"], found["notes"]
