"""Two hosts that write as one owner, with a ledger in PostgreSQL: how much both together write, against one alone.

The hosts are two mounts of one store on this machine. As a control the same is done in a store in which nobody counts, in turns:
both share this machine's processors and memory, ledger or not.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckfs.bench.workloads import write_file
from ckfs.names import Uid
from ckfs.policy.quota import Amount
from tests.bench.owners import FAR, NEAR, NONE, Owner, book_of, clear, fill, let_post
from tests.bench.places import BY_DAEMON_ALONE, SET, USER, scratch_in
from tests.support import postgres
from tests.support.agents import Agent
from tests.support.mounting import make_store, mounted

KIB, MIB = 1 << 10, 1 << 20
HOW = (NONE, FAR, NEAR)

_MOST_BYTES, _MOST_SMALL_BYTES = 48 * MIB, 8 * MIB
"""What both write together, with large and with small calls: a turn is to be short."""
_LONGEST_S = 600.0


@dataclass(slots=True)
class Together:
    """Bytes per second with calls of some size, for each of :data:`HOW` one number per round: of one host *alone*, and of *both*. In
    all *size* bytes are written, by the one or by each of the two a half."""

    title: str
    call: int
    size: int
    alone: dict[str, list[float]] = field(default_factory=lambda: {how: [] for how in HOW})
    both: dict[str, list[float]] = field(default_factory=lambda: {how: [] for how in HOW})

    def ratios(self, how: str) -> list[float]:
        """How many times as much both wrote as one alone, in each round."""
        return [ours / theirs for ours, theirs in zip(self.both[how], self.alone[how], strict=True)]


def measure(
    directory: str, rounds: int, stream: int, small: int, say: Callable[[str], None]
) -> list[Together]:
    """*rounds* times, in stores below *directory* in turn: *stream* bytes by each host, and *small* with small calls. Nothing where
    PostgreSQL is not installed."""
    if postgres.programs() is None:
        say("two hosts: PostgreSQL's server is not installed")
        return []
    measured = [
        Together("write, 1 MiB calls", MIB, min(stream, _MOST_BYTES)),
        Together("write, 4 KiB calls", 4 * KIB, min(small, _MOST_SMALL_BYTES)),
    ]
    most = Amount(max(one.size for one in measured), files=2)
    with scratch_in(directory) as scratch, _pairs(scratch, most) as pairs:
        for one in measured:
            near = pairs[NEAR]
            near.agents[0].do(fill, near.directories[0], most.bytes - one.size)
            let_post()
            for number in range(rounds + 1):
                for how in random.Random(number).sample(HOW, len(HOW)):
                    alone, both = (pairs[how].rate(hosts, one) for hosts in (1, 2))
                    if number:  # the first is to warm up
                        one.alone[how].append(alone)
                        one.both[how].append(both)
            ratios = ", ".join(f"{how} {statistics.median(one.ratios(how)):.2f}" for how in HOW)
            say(f"two hosts, {one.title}: {ratios}")
    return measured


@dataclass(frozen=True, slots=True)
class _Pair:
    """The set of one owner on two mounts, and a process of his on each."""

    directories: list[str]
    agents: list[Agent]
    owner: Owner | None

    def used(self) -> Amount | None:
        return None if self.owner is None else self.owner.book.account(self.owner.uid).used

    def rate(self, hosts: int, what: Together) -> float:
        """Bytes per second of so many *hosts* together."""
        rest, size = self.used(), what.size // hosts
        writers = list(zip(self.agents, self.directories, strict=True))[:hosts]
        for number, (agent, directory) in enumerate(writers):
            agent.begin(_write, f"{directory}/{number}.tmp", size, what.call)
        times = [agent.result(_LONGEST_S) for agent, _ in writers]
        let_post()  # what one host has not posted yet is not to be removed on the other
        self.agents[0].do(clear, self.directories[0])
        let_post()
        if self.owner is not None and rest is not None:
            self.owner.until_quiet(rest)
        seconds = max(end for _, end in times) - min(begin for begin, _ in times)
        return float(hosts * size / seconds)


@contextmanager
def _pairs(scratch: Path, most: Amount) -> Iterator[dict[str, _Pair]]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres.running(durable=True))
        yield {
            **stack.enter_context(_on_a_store(scratch / "without", 'mode = "none"', None, most)),
            **stack.enter_context(
                _on_a_store(scratch / "with", f'ledger = "{server.connection}"', server.connection, most)
            ),
        }


@contextmanager
def _on_a_store(
    scratch: Path, policy: str, connection: str | None, most: Amount
) -> Iterator[dict[str, _Pair]]:
    """Two mounts of a new store, and those who write there."""
    scratch.mkdir(mode=0o711)
    (scratch / "private").mkdir(mode=0o700)
    store = make_store(scratch / "private")
    (store / "policy.toml").write_text(f"[quota]\n{policy}\n", encoding="ascii")
    with contextlib.ExitStack() as stack:
        mounts = [
            stack.enter_context(mounted(store, scratch / node, node=node, options=BY_DAEMON_ALONE))
            for node in ("a", "b")
        ]
        book = None if connection is None else stack.enter_context(book_of(store, connection))
        pairs = {}
        for number, how in enumerate([NONE] if book is None else [FAR, NEAR]):
            owner = None if book is None else Owner(book, Uid(USER + number), most)
            if owner is not None:
                owner.limit(how)
            agents = [stack.enter_context(Agent(USER + number)) for _ in mounts]
            directories = [str(mount.path / f"{SET}-{number}") for mount in mounts]
            agents[0].do(os.mkdir, directories[0], 0o700)
            pairs[how] = _Pair(directories, agents, owner)
        let_post()
        yield pairs


def _write(path: str, size: int, call: int) -> tuple[float, float]:
    """A new file; when it was opened and when it was closed, by the clock that all processes of the machine share."""
    taken, closed = write_file(path, size, call), time.monotonic()
    return closed - taken, closed
