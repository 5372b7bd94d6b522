"""16 writers on 4 mounts of one store, all at one owner's cost: together they never have a byte more than his limit, at no moment,
and in the end no less than fits."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.images import save
from tests.support.ledgers import Policy, rewrite_policy
from tests.support.mounting import Mount, mounted
from tests.support.payers import UNIT, Payer, Quotas, charged, ledger_in, new_payer, private_store

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

NODES = ("a", "b", "c", "d")
FITS_WITHIN_S = 60.0
WRITERS = 16
KIB = 1 << 10
MIB = 1 << 20
ROOM = 24 * MIB + 12_345
"""Far less than what all of them want."""
ROOM_IN_FEW = 6 * MIB + 12_345
"""The same, of four files that are cut and removed all the time."""
FILES = 40
ROUNDS = 5
ROUND_S = 1.5
REFUSED = ["is partial"]
SIZES = (1, 7, 700, UNIT - 1, UNIT, UNIT + 1, 5 * UNIT, 64 * KIB, 100_000, 256 * KIB, MIB)

Run = Callable[[str, int], int]
"""What a writer does in a directory, with dice of that seed; how often he was refused."""


@dataclass
class Sampler:
    """Asks again and again how an owner stands, while he writes."""

    payer: Payer
    samples: int = 0
    too_much: list[str] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        hard_bytes, hard_files = self.payer.hard_bytes, self.payer.hard_files
        assert hard_bytes is not None
        assert hard_files is not None
        while not self._end.is_set():
            standing = self.payer.quotas.standing(self.payer.uid)
            self.samples += 1
            if standing.total.bytes > hard_bytes or standing.total.files > hard_files:
                self.too_much.append(f"{standing.used} used and {standing.claimed} claimed")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


# Writers


def write_anything(directory: str, seed: int, round_s: float, files: str) -> int:
    """Appends, sparse writes, truncations and deletions, for a while, in *files* "of his own" or "of all"."""
    dice = random.Random(seed)
    end, refused = time.monotonic() + round_s, 0
    while time.monotonic() < end:
        whose = os.getpid() if files == "of his own" else "all"
        name = f"of-{whose}-{dice.randrange(4)}"
        try:
            _one_step(dice, f"{directory}/{name}.tmp")
        except OSError as error:
            if error.errno == errno.EDQUOT:
                refused += 1
            elif error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
    return refused


def _one_step(dice: random.Random, path: str) -> None:
    match dice.randrange(12):
        case 0:
            os.unlink(path)
        case 1:
            os.truncate(path, dice.choice(SIZES))
        case 2:
            os.rename(path, f"{path[:-5]}0.tmp")
        case _:
            flags = dice.choice([os.O_WRONLY, os.O_RDWR]) | dice.choice([0, os.O_APPEND])
            fd = os.open(path, flags | os.O_CREAT, 0o600)
            try:
                _write(dice, fd, flags)
            finally:
                os.close(fd)


def _write(dice: random.Random, fd: int, flags: int) -> None:
    for _ in range(dice.randrange(1, 6)):
        data = b"x" * dice.choice(SIZES)
        if dice.randrange(8) == 0:
            os.ftruncate(fd, len(data))
        elif flags & os.O_APPEND:
            os.write(fd, data)
        else:
            os.pwrite(fd, data, dice.choice([0, dice.randrange(2 * MIB), dice.randrange(1 << 34)]))


def fill_up(directory: str, seed: int) -> int:
    """Appends of any size to one of two files, until not a byte more fits."""
    dice = random.Random(seed)
    fd = os.open(f"{directory}/last-{dice.randrange(2)}.tmp", os.O_WRONLY | os.O_APPEND)
    try:
        while True:
            os.write(fd, b"x" * dice.choice(SIZES))
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        return 1
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Crowd:
    """Writers of one owner, spread over the mounts."""

    payer: Payer
    writers: list[tuple[Agent, str]]

    def at_once(self, run: Run, seed: int) -> int:
        """All of them *run*: how often they were refused, in all."""
        for number, (writer, directory) in enumerate(self.writers):
            writer.begin(run, directory, seed + number)
        return sum(writer.result() for writer, _ in self.writers)


@pytest.fixture
def mounts(root_and_fuse: None, workdir: Path, ledger: Policy) -> Iterator[list[Mount]]:
    with ledger_in(workdir / "state"), ExitStack() as stack:
        store = private_store(workdir)
        rewrite_policy(store, ledger)
        yield [
            stack.enter_context(mounted(store, workdir / node, node=node, may_log=REFUSED)) for node in NODES
        ]


@pytest.fixture
def crowd(mounts: list[Mount]) -> Iterator[Crowd]:
    payer = new_payer(mounts[0], Quotas(mounts[0].store, mounts[0].store))
    with ExitStack() as stack:
        directories = [f"{mounts[number % len(mounts)].path}/set-{payer.uid}" for number in range(WRITERS)]
        yield Crowd(payer, [(stack.enter_context(Agent(payer.uid)), each) for each in directories])


def write_to_the_limit(crowd: Crowd, files: str, room: int) -> Payer:
    """All of them write, cut and remove *files*, then fill up what is left; at no time is more charged than the limit."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    payer = crowd.payer
    for name in ("last-0.tmp", "last-1.tmp"):
        payer.calls(save, payer.inside(name), b"")
    payer.may_add(bytes=room, files=FILES)
    assert payer.hard_bytes is not None
    sampler, refused = Sampler(payer), 0
    with sampler.watching():
        for turn in range(ROUNDS):
            refused += crowd.at_once(
                partial(write_anything, round_s=ROUND_S, files=files), seed + turn * WRITERS
            )
            there = charged(payer.quotas.store, payer.uid)
            assert there.bytes <= payer.hard_bytes, "with nobody writing"
        crowd.at_once(fill_up, seed)
    assert sampler.samples > 0
    assert sampler.too_much == []
    assert refused > 0, "the limit was never met"
    return payer


def test_no_byte_more_than_the_limit_and_none_less(crowd: Crowd) -> None:
    payer = write_to_the_limit(crowd, "of his own", ROOM)
    deadline = time.monotonic() + FITS_WITHIN_S
    while payer.room >= UNIT * (len(NODES) + 1):  # each mount may keep a unit for a moment
        assert time.monotonic() < deadline, "the last bytes never fit"
        crowd.at_once(
            fill_up, 0
        )  # one who was refused before the other mounts had given back what they were granted
    payer.quotas.check()


def test_no_byte_more_where_all_mounts_write_cut_and_remove_the_same_files(crowd: Crowd) -> None:
    payer = write_to_the_limit(crowd, "of all", ROOM_IN_FEW)
    assert payer.quotas.settled(payer.uid) == charged(payer.quotas.store, payer.uid)
    payer.quotas.check()
