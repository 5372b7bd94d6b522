"""What ``criu dump`` and ``criu restore`` take, as whole commands, of a process with much memory: images in sets of ckfs against a plain
directory, in turns.

Everything is on one node as ``ckfs demo`` has them, with the CRIU that it would take. Each turn has a process of its own, which is dumped,
killed and restored; then it counts on and looks whether its memory is what it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckfs.bench import daemon
from ckfs.demo import counter
from ckfs.demo.checkpointers import ByCriu, make_set, round_trip
from ckfs.demo.counting import COUNTS_TO_SEE, Counting, python_for
from ckfs.demo.criu import Criu, candidates
from ckfs.demo.nodes import DemoFailed, Node
from ckfs.model import Owner
from ckfs.names import Gid, Uid
from tests.bench import holding, memory
from tests.bench.compare import DIGESTS_BEGIN_S, until_quiet
from tests.bench.places import BATCH_SET, USER, scratch_in, write_out
from tests.bench.workloads import GIB
from tests.support.mounting import daemons, make_store

PLAIN, OTHER, BATCH = "in a plain directory", "in a set of a user's own", "in a batch set"
WHERE = (PLAIN, OTHER, BATCH)
DUMP, RESTORE, BOTH = "criu dump", "criu restore", "dump and restore"
WHAT = (DUMP, RESTORE, BOTH)

_OWNER = Owner(Uid(USER), Gid(USER))
_SET, _IMAGES = "dumps", "dump"
_FIRST_PID = 5000
_CAP_SYS_RESOURCE = 24  # linux/capability.h


@dataclass(slots=True)
class Dumped:
    """*seconds* of :data:`DUMP` and :data:`RESTORE` at each of :data:`WHERE`, one number per repetition, of a process with *memory_bytes*;
    nothing, but *why_not*, where no CRIU works. *peak_bytes* is the most that the daemon ever had resident."""

    memory_bytes: int
    why_not: str = ""
    version: str = ""
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    cpu_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    peak_bytes: int = 0

    def times(self, what: str, where: str) -> list[float]:
        return _sums(self.seconds, what, where)

    def ratios(self, what: str, where: str) -> list[float]:
        """How many times as fast as in a plain directory it was, in each repetition."""
        return [
            plain / ours for ours, plain in zip(self.times(what, where), self.times(what, PLAIN), strict=True)
        ]


def measure(directory: str, memory_bytes: int, repetitions: int, say: Callable[[str], None]) -> Dumped:
    """*repetitions* times, below *directory*."""
    dumped = Dumped(memory_bytes)
    with scratch_in(directory) as scratch, _node(scratch) as node:
        found = _working(scratch, node, say)
        if isinstance(found, str):
            dumped.why_not = found
            say(f"CRIU: {found}")
            return dumped
        dumped.version = found.version(node)
    for repetition in range(repetitions):
        turn = repetition % len(WHERE)
        with scratch_in(directory) as scratch, _all(scratch) as (node, pid, images):
            way = _way(found, scratch, "logs")
            for where in WHERE[turn:] + WHERE[:turn]:
                _turn(dumped, way, node, pid, _Turn(scratch, where, *images[where]), say)
    return dumped


def _working(scratch: Path, node: Node, say: Callable[[str], None]) -> Criu | str:
    """One that moves a small process where no ckfs is involved; else why there is none."""
    complaints: list[str] = []
    work = _work(scratch)
    program = str(shutil.copy(counter.__file__, work))
    for number, criu in enumerate(candidates(say, complaints)):
        counting = Counting(python_for(_OWNER), program, _OWNER, str(work / f"trial-{number}"))
        try:
            criu.check(node)
            round_trip(
                _way(criu, scratch, f"trial-logs-{number}"),
                counting,
                node,
                node,
                f"{counting.workdir}/images",
            )
        except DemoFailed as error:
            complaints.append(f"{criu.origin}: {error}")
        else:
            return criu
    return f"none works here ({'; '.join(complaints)})"


def _way(criu: Criu, scratch: Path, logs: str) -> ByCriu:
    path = scratch / logs
    path.mkdir()
    os.chown(path, _OWNER.uid, _OWNER.gid)
    return ByCriu(criu, str(path), dump_as_user=not _has_sys_resource())


def _has_sys_resource() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next(line for line in status if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _work(scratch: Path) -> Path:
    work = scratch / "work"
    work.mkdir(mode=0o755)
    return work


@contextmanager
def _node(scratch: Path) -> Iterator[Node]:
    """It ends with the block, and all in it."""
    private = scratch / "private-node"
    private.mkdir(mode=0o700)
    with contextlib.closing(Node("bench", _FIRST_PID, str(private))) as node:
        node.start()
        yield node


@contextmanager
def _all(scratch: Path) -> Iterator[tuple[Node, int, dict[str, tuple[str, str]]]]:
    """A node, the daemon of a mount there, and for each of :data:`WHERE` a path for images, and where that lies below."""
    private, mountpoint = scratch / "private", scratch / "ckfs"
    private.mkdir(mode=0o700)
    mountpoint.mkdir()
    plain = _work(scratch) / "plain"
    plain.mkdir()
    os.chown(plain, _OWNER.uid, _OWNER.gid)
    store = make_store(private)
    with _node(scratch) as node:
        node.mount(str(store), str(mountpoint))
        batch, users = mountpoint / BATCH_SET, store / "users" / str(USER)
        node.run(["mkdir", str(batch)])
        node.run(["chown", f"{_OWNER.uid}:{_OWNER.gid}", str(batch)])
        where = {
            PLAIN: (str(plain / _IMAGES), str(plain / _IMAGES)),
            OTHER: (str(mountpoint / _SET), str(users / _SET)),
            BATCH: (str(batch / _IMAGES), str(users / BATCH_SET / _IMAGES)),
        }
        yield node, _daemon_of(node, mountpoint), where
        node.unmount()


def _daemon_of(node: Node, mountpoint: Path) -> int:
    """As the host numbers it: the child of what has entered the node for it."""
    entered = node._daemon
    assert entered is not None
    return next(pid for pid in daemons(mountpoint) if pid != entered.pid)


@dataclass(frozen=True, slots=True)
class _Turn:
    scratch: Path
    where: str
    images: str
    below: str


def _turn(dumped: Dumped, way: ByCriu, node: Node, pid: int, turn: _Turn, say: Callable[[str], None]) -> None:
    """One process is dumped and restored. Raises DemoFailed."""
    work = turn.scratch / "work"
    program = str(shutil.copy(holding.__file__, work))
    name = f"of-{WHERE.index(turn.where)}"
    counting = Counting(python_for(_OWNER), program, _OWNER, str(work / name))
    make_set(node, counting, turn.images)
    counting.start(node, "start", str(dumped.memory_bytes))
    counting.await_count(COUNTS_TO_SEE)

    def timed(what: str, call: Callable[[], object]) -> None:
        memory.touch(dumped.memory_bytes)
        before, begin = daemon.read(pid), time.monotonic()
        call()
        took_s, after = time.monotonic() - begin, daemon.read(pid)
        dumped.seconds.setdefault((what, turn.where), []).append(took_s)
        say(f"{what} {turn.where}: {took_s:.2f} s")
        if before is not None and after is not None:
            dumped.cpu_s.setdefault((what, turn.where), []).append(after.cpu_s - before.cpu_s)
            dumped.peak_bytes = max(dumped.peak_bytes, after.peak_bytes)

    timed(DUMP, lambda: way.checkpoint(node, counting, turn.images))
    count = counting.last_count()
    counting.kill(node)
    write_out(turn.below)
    until_quiet(pid, DIGESTS_BEGIN_S)
    timed(RESTORE, lambda: way.restore(node, counting, turn.images))
    counting.await_count(count + COUNTS_TO_SEE)
    counting.check_counted_on(count)
    counting.signal(node, "USR1")
    counting.await_saved()
    counting.kill(node)


def _sums(found: dict[tuple[str, str], list[float]], what: str, where: str) -> list[float]:
    parts = [found.get((part, where), []) for part in ((DUMP, RESTORE) if what == BOTH else (what,))]
    return [sum(numbers) for numbers in zip(*parts, strict=True)]


def per_gib(dumped: Dumped, what: str, where: str) -> float | None:
    """Seconds of a processor that the daemon took for each GiB of memory."""
    times = _sums(dumped.cpu_s, what, where)
    return statistics.median(times) * GIB / dumped.memory_bytes if times else None
