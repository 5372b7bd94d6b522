"""A bench from its beginning to its end. Nothing here touches the mount, nor the store: processes do that may hang."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ckfs.bench import daemon, ends, workloads
from ckfs.bench import place as places
from ckfs.bench.daemon import Reading
from ckfs.bench.ends import CKFS, Asked, Begun, Left
from ckfs.bench.figures import Measured
from ckfs.bench.place import Place
from ckfs.bench.plan import Step, Turn, check_room, steps, turns
from ckfs.bench.running import Refused, in_child
from ckfs.errors import CkfsError, NoRoom, NotMounted, NotPermitted, StoreUnusable
from ckfs.names import shown

STEP_WITHIN_S = 3600.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_MOUNT = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ECONNREFUSED)
_NO_RIGHT = (errno.EACCES, errno.EPERM)
_NO_STORE = (errno.ETIMEDOUT, errno.EHOSTUNREACH)


class Tell(Protocol):
    """Whoever is told how far it is."""

    def begun(self, begun: Begun) -> None: ...

    def turn(self, turn: Turn, place: str) -> None: ...

    def removes(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Results:
    """*before* and *after* are of the mount's daemon, *highest_bytes* the most that was resident between any two steps."""

    begun: Begun
    measured: list[Measured]
    before: Reading | None
    after: Reading | None
    highest_bytes: int | None


def run(asked: Asked, pid: int | None, tell: Tell, purge: Callable[[], None]) -> Results:
    """Raises CkfsError, and KeyboardInterrupt, of which only one may come (``interrupted_once``). Whatever ends it, what it made is
    removed; *purge* takes from the trash what had to go there."""
    bench = _Bench(asked, pid, tell)
    try:
        try:
            results = bench.run()
        except CkfsError as error:
            raise type(error)(f"{error}{_also(bench.clean(purge))}") from None
        except BaseException:
            bench.clean(purge)
            raise
        left = bench.clean(purge)
    except KeyboardInterrupt:  # it may have come while something was removed, and comes once
        left = bench.clean(purge)
        if left:
            raise CkfsError(f"interrupted{_also(left)}") from None
        raise
    if left:
        raise CkfsError(f"all is measured{_also(left)}")
    return results


@dataclass(slots=True)
class _Bench:
    asked: Asked
    pid: int | None
    tell: Tell
    in_trash: bool = False

    def run(self) -> Results:
        asked = self.asked
        try:
            begun = ends.begin(asked)
        except Refused as error:
            raise _of(error, f"{shown(asked.mountpoint)}: nothing to work in can be made") from None
        for room in begun.rooms:
            check_room(asked.plan, room)
        self.tell.begun(begun)
        measured = {step.key: Measured(step, tuple([] for _ in begun.places)) for step in steps(asked.plan)}
        readings = [daemon.read(self.pid)]
        for turn in turns(asked.plan, len(begun.places)):
            self.tell.turn(turn, begun.places[turn.place].name)
            readings.append(self._take(begun, turn, measured[turn.step.key]))
        there = [one for one in readings if one is not None]
        highest = max((one.resident_bytes for one in there), default=None)
        return Results(begun, list(measured.values()), readings[0], readings[-1], highest)

    def _take(self, begun: Begun, turn: Turn, one: Measured) -> Reading | None:
        """One turn; what the daemon has taken then."""
        step, place = turn.step, begun.places[turn.place]
        try:
            if step.cold and not one.why_not:
                one.why_not = ends.forget(self.asked, place, begun.volume)
            before = daemon.read(self.pid)
            if not one.why_not:
                took_s = in_child(partial(_work, place, step), STEP_WITHIN_S)
                one.seconds[turn.place].append(float(str(took_s)))
            after = daemon.read(self.pid)
            if before is not None and after is not None and place.name == CKFS and not one.why_not:
                one.cpu_s.append(after.cpu_s - before.cpu_s)
            if not step.left:
                self.in_trash |= not in_child(partial(places.empty, place), STEP_WITHIN_S)
        except Refused as error:
            where = _where(self.asked, begun, place)
            raise _of(error, f"{where}: {step.title}, round {turn.round + 1}") from None
        return after

    def clean(self, purge: Callable[[], None]) -> list[Left]:
        self.tell.removes()
        left, in_trash = ends.clean(self.asked)
        self.in_trash |= in_trash
        if self.in_trash:
            try:
                purge()
            except CkfsError as error:
                left.append(Left(f"what was in {self.asked.set_name}, in the trash", str(error)))
        return left


def _work(place: Place, step: Step) -> float:
    work: Callable[..., float] = getattr(workloads, step.work)
    with place.entered():
        return work(*step.args)


def _where(asked: Asked, begun: Begun, place: Place) -> str:
    return shown(
        asked.set_path if place.name == CKFS else os.path.join(begun.control or "", asked.control_name)
    )


def _of(error: Refused, what: str) -> CkfsError:
    """In a line, with the exit status that fits."""
    text = f"{what}: {error}"
    if error.number in _NO_ROOM:
        return NoRoom(f"{text}: somebody else has taken the room: give a smaller --size, or make room")
    if error.number in _NO_MOUNT:
        return NotMounted(f"{text}: the mount is gone, or its daemon: see its log")
    if error.number in _NO_STORE:
        return StoreUnusable(f"{text}: the store does not answer: see 'ckfs status'")
    if error.number in _NO_RIGHT:
        return NotPermitted(text)
    return CkfsError(text)


def _also(left: list[Left]) -> str:
    if not left:
        return ""
    names = ", ".join(f"{one.path} ({one.why})" for one in left)
    return f"; left behind: {names}: the next bench removes it"
