"""The other side of a test between two mounts: ``ckfs selftest --peer``, which does what comes on standard input.

A line is one question, a JSON object whose ``do`` is a name of :data:`DOES`; so is the answer. What ends standard input ends the
process, whatever it waits for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ckfs import __version__
from ckfs.errors import CkfsError
from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.selftest.aspects import ASPECTS, Aspect, Watched, seen_or_stale
from ckfs.selftest.contending import Contest, Won
from ckfs.store.identity import acting_as, prepare_process

PROOF = "proof"
"""The file of the scratch directory's room by which another mount is known to be one of the same store."""
_BETWEEN_LOOKS_S = 0.01
_LOCK = "lock"

Values = dict[str, object]


@dataclass(slots=True)
class Serving:
    """What the peer keeps from one question to the next."""

    keeper: Owner = field(default_factory=lambda: Owner(Uid(0), Gid(0)))
    watched: dict[str, Watched] = field(default_factory=dict)
    contest: Contest | None = None

    def hello(self, asked: Values) -> Values:
        self.keeper = Owner(Uid(_number(asked["uid"])), Gid(_number(asked["gid"])))
        with acting_as(self.keeper):
            os.chdir(str(asked["room"]))
            with open(PROOF, encoding="ascii") as file:
                return {"version": __version__, "proof": file.read()}

    def prepare(self, asked: Values) -> Values:
        with acting_as(self.keeper):
            prepare_aspects(str(asked["room"]), _chosen(asked))
        return {}

    def prime(self, asked: Values) -> Values:
        with acting_as(self.keeper):
            self.watched = prime_aspects(str(asked["room"]), _chosen(asked))
        return {}

    def change(self, asked: Values) -> Values:
        with acting_as(self.keeper):
            change_aspects(str(asked["room"]), _chosen(asked))
        return {}

    def watch(self, asked: Values) -> Values:
        limit_s = asked["limit_s"]
        assert isinstance(limit_s, int | float)
        with acting_as(self.keeper):
            return {"delays": watch_aspects(self.watched, _chosen(asked), limit_s)}

    def get_ready(self, asked: Values) -> Values:
        act, room, own, tag = (str(asked[key]) for key in ("act", "room", "own", "tag"))
        self.contest = Contest(act, room, own, tag)
        with acting_as(self.keeper):
            self.contest.get_ready()
        return {}

    def go(self, asked: Values) -> Values:
        assert self.contest is not None
        self.contest.go()
        return {"won": [[won.numbers, won.trouble] for won in self.contest.won()]}

    def lock(self, asked: Values) -> Values:
        with acting_as(self.keeper):
            return {"got": can_lock(str(asked["room"]))}


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _chosen(asked: Values) -> list[Aspect]:
    names = asked["aspects"]
    assert isinstance(names, list)
    return [aspect for aspect in ASPECTS if aspect.name in names]


# What both sides do


def prepare_aspects(room: str, chosen: Sequence[Aspect]) -> None:
    for aspect in chosen:
        os.mkdir(os.path.join(room, aspect.name))
        aspect.prepare(os.path.join(room, aspect.name))


def prime_aspects(room: str, chosen: Sequence[Aspect]) -> dict[str, Watched]:
    watched = {aspect.name: Watched(os.path.join(room, aspect.name)) for aspect in chosen}
    for aspect in chosen:
        aspect.prime(watched[aspect.name])
    return watched


def change_aspects(room: str, chosen: Sequence[Aspect]) -> None:
    for aspect in chosen:
        aspect.change(os.path.join(room, aspect.name))


def watch_aspects(
    watched: dict[str, Watched], chosen: Sequence[Aspect], limit_s: float
) -> dict[str, float | None]:
    """After how many seconds each was seen: 0 if by the first look, None if not within *limit_s*."""
    delays: dict[str, float | None] = {}
    began = time.monotonic()
    for aspect in chosen:
        if seen_or_stale(aspect, watched[aspect.name]):
            delays[aspect.name] = 0.0
    while len(delays) < len(chosen) and time.monotonic() - began < limit_s:
        time.sleep(_BETWEEN_LOOKS_S)
        for aspect in chosen:
            if aspect.name not in delays and seen_or_stale(aspect, watched[aspect.name]):
                delays[aspect.name] = time.monotonic() - began
    for one in watched.values():
        one.close()
    return {aspect.name: delays.get(aspect.name) for aspect in chosen}


def lock_file(room: str) -> int:
    """A descriptor of the room's file to lock, which ckfs opens for writing, as NFS wants it."""
    return os.open(os.path.join(room, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def can_lock(room: str) -> bool:
    fd = lock_file(room)
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False
    finally:
        os.close(fd)


def won_of(answer: Values) -> list[Won]:
    won = answer["won"]
    assert isinstance(won, list)
    return [Won(tuple(numbers), str(trouble)) for numbers, trouble in won]


DOES: dict[str, Callable[[Serving, Values], Values]] = {
    "hello": Serving.hello,
    "prepare": Serving.prepare,
    "prime": Serving.prime,
    "change": Serving.change,
    "watch": Serving.watch,
    "get_ready": Serving.get_ready,
    "go": Serving.go,
    "lock": Serving.lock,
}


def serve() -> int:
    """Until standard input ends."""
    prepare_process()
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    serving = Serving()
    while True:
        line = asked.get()
        sys.stdout.buffer.write(json.dumps(_answer(serving, line)).encode() + b"\n")
        sys.stdout.buffer.flush()


def _listen(asked: queue.SimpleQueue[bytes]) -> None:
    """A thread of its own, which sees the end while the other waits for the store."""
    for line in sys.stdin.buffer:
        asked.put(line)
    os._exit(0)


def _answer(serving: Serving, line: bytes) -> Values:
    try:
        values = json.loads(line)
        return DOES[values["do"]](serving, values)
    except (OSError, CkfsError) as error:
        return {"failed": getattr(error, "strerror", None) or str(error)}
    except (ValueError, KeyError, TypeError):
        return {"failed": "asked what this version of ckfs does not know"}
