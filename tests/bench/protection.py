"""What protection and the trash cost: a store with the default policy against two with both turned off, in turns.

Works on a batch set, as its owner: images are made, read and, once they are superseded, removed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.places import BY_DAEMON_ALONE, USER, scratch_in
from tests.support.agents import Agent
from tests.support.mounting import make_store, mounted

WITH, OFF, PLAIN = "with", "off", "plain"
"""Policies: the default; nothing protected by age and no trash; the same, and no set that counts as a batch set."""
STEPS = ("create, write 4 KiB", "close", "open to read, close", "unlink")
A_FEW, DUMPS = "a few images", "dumps of 24 files"

_SET = "1.server.CK"
_NO_PROTECTION = "[protection]\nkeep = 0\n\n[trash]\nretention_days = 0\n"
_POLICIES = {WITH: None, OFF: _NO_PROTECTION, PLAIN: "[sets]\nbatch = []\n\n" + _NO_PROTECTION}
_KEPT = 2
_FILES_OF_A_DUMP = 24
_LONGEST_S = 600.0


@dataclass(slots=True)
class Cost:
    """*seconds* of a *step*, each call's mean, in a set of some *kind*: for each policy one number per round."""

    kind: str
    step: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {policy: [] for policy in _POLICIES})

    def microseconds(self, policy: str) -> float:
        return statistics.median(self.seconds[policy]) * 1e6

    def ratios(self, control: str) -> list[float]:
        """How many times as long as by the policy *control* it took with protection, in each round."""
        return [ours / theirs for ours, theirs in zip(self.seconds[WITH], self.seconds[control], strict=True)]


def measure(directory: str, rounds: int, cycles: int, say: Callable[[str], None]) -> list[Cost]:
    """*rounds* times, in all stores below *directory* in turn: *cycles* images, and a dump for every 24 of them."""
    costs = [Cost(kind, step) for kind in (A_FEW, DUMPS) for step in STEPS]
    with scratch_in(directory) as scratch:
        for kind in (A_FEW, DUMPS):
            with _all(scratch / kind.replace(" ", "-")) as sets:
                for number in range(rounds + 1):
                    turn = number % len(sets)
                    for policy in [*list(sets)[turn:], *list(sets)[:turn]]:
                        with Agent(USER) as agent:
                            agent.begin(_work, kind, sets[policy], cycles, number)
                            seconds = agent.result(_LONGEST_S)
                        if number:  # in the first there is nothing yet that could be removed
                            _add(costs, kind, policy, seconds)
            for cost in (cost for cost in costs if cost.kind == kind):
                say(f"protection, {kind}, {cost.step}: {statistics.median(cost.ratios(PLAIN)):.2f}")
    return costs


def _add(costs: list[Cost], kind: str, policy: str, seconds: dict[str, float]) -> None:
    for cost in costs:
        if cost.kind == kind:
            cost.seconds[policy].append(seconds[cost.step])


@contextmanager
def _all(scratch: Path) -> Iterator[dict[str, str]]:
    """The batch set of a new mount for each policy."""
    scratch.mkdir(mode=0o711)
    with contextlib.ExitStack() as stack:
        sets = {}
        for policy, text in _POLICIES.items():
            private = scratch / f"private-{policy}"
            private.mkdir(mode=0o700)
            store = make_store(private)
            if text is not None:
                (store / "policy.toml").write_text(text, encoding="ascii")
            mount = stack.enter_context(
                mounted(store, scratch / policy, node="bench", options=BY_DAEMON_ALONE)
            )
            sets[policy] = str(mount.path / _SET)
            with Agent(0) as root:  # nothing here touches a mount by itself
                root.do(os.mkdir, sets[policy], 0o700)
                root.do(os.chown, sets[policy], USER, USER)
        yield sets


def _work(kind: str, directory: str, cycles: int, number: int) -> dict[str, float]:
    """Seconds of one call of each step, on average."""
    took: Counter[str] = Counter()
    data = os.urandom(4096)
    if kind == A_FEW:
        count = cycles
        for cycle in range(number * cycles, (number + 1) * cycles):
            _image(f"{directory}/ckpt.{cycle}", data, took)
            _remove(f"{directory}/ckpt.{cycle - _KEPT}", took)
    else:
        dumps = max(_KEPT, cycles // _FILES_OF_A_DUMP)
        count = dumps * _FILES_OF_A_DUMP
        for dump in range(number * dumps, (number + 1) * dumps):
            os.mkdir(f"{directory}/dump.{dump}")
            for file in range(_FILES_OF_A_DUMP):
                _image(f"{directory}/dump.{dump}/{file}.img", data, took)
            for file in range(_FILES_OF_A_DUMP):
                _remove(f"{directory}/dump.{dump - _KEPT}/{file}.img", took)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{directory}/dump.{dump - _KEPT}")
    return {step: took[step] / count for step in STEPS}


def _image(path: str, data: bytes, took: Counter[str]) -> None:
    begin = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, data)
    written = time.perf_counter()
    os.close(fd)
    closed = time.perf_counter()
    os.close(os.open(path, os.O_RDONLY))
    read = time.perf_counter()
    for step, seconds in zip(STEPS, (written - begin, closed - written, read - closed), strict=False):
        took[step] += seconds  # type: ignore[assignment]  # a Counter counts floats as well


def _remove(path: str, took: Counter[str]) -> None:
    """What newer ones have outlived; nothing of before the first."""
    begin = time.perf_counter()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        took[STEPS[3]] += time.perf_counter() - begin  # type: ignore[assignment]  # a Counter counts floats as well
