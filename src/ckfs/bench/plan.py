"""How much a bench writes, in which order, and whether there is room for it. Pure: it looks at nothing."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckfs.errors import NoRoom
from ckfs.policy.sizes import shown_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

NEEDED = 3
"""Times the size that must be free: twice it is there at once (the mount's and the control's), and the rest is for others."""
_PART_OF_ROOM = 16
"""Of what is free, unless a size is given."""
SMALL_FILE = 64 * KIB
WRITERS = 8
_FILES = (8, 256)
_PART_IN_SMALL_CALLS = 16
MOST_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Room:
    """What is free in *place*, as a message names it, and what of that is not for a bench: the reserve, which is not counted in
    *free_bytes* any more."""

    place: str
    free_bytes: int
    reserve_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """*most_bytes* at a time in one file, unless less is free; *rounds* unless others are given."""

    most_bytes: int
    rounds: int


DEFAULT = Sizes(GIB, 5)
QUICK = Sizes(128 * MIB, 3)


@dataclass(frozen=True, slots=True)
class Plan:
    """*size_bytes*, whole MiB, is what streams, dumps and all writers together write each time."""

    size_bytes: int
    rounds: int

    @property
    def needed_bytes(self) -> int:
        return NEEDED * self.size_bytes

    @property
    def small_bytes(self) -> int:
        """What is written with small calls."""
        return max(MIB, self.size_bytes // _PART_IN_SMALL_CALLS)

    @property
    def files(self) -> int:
        least, most = _FILES
        return max(least, min(most, self.size_bytes // _PART_IN_SMALL_CALLS // SMALL_FILE))

    @property
    def writer_bytes(self) -> int:
        """Of each of the writers."""
        return self.size_bytes // WRITERS // self.writer_call * self.writer_call

    @property
    def writer_call(self) -> int:
        return min(MIB, self.size_bytes // WRITERS)


def plan(rooms: Sequence[Room], sizes: Sizes, size_bytes: int | None, rounds: int | None) -> Plan:
    """By what is free in each of *rooms*, and what was asked for. Raises NoRoom."""
    least = min(rooms, key=lambda room: room.free_bytes)
    chosen = size_bytes
    if chosen is None:
        chosen = min(sizes.most_bytes, least.free_bytes // _PART_OF_ROOM // MIB * MIB)
        if chosen < MIB:
            raise NoRoom(
                f"{_is_free(least)}; without --size a bench writes a {_PART_OF_ROOM}th of that at a time, and at least 1M:"
                " make room, or give a smaller part of it with --size"
            )
    made = Plan(chosen, rounds or sizes.rounds)
    check_room(made, least)
    return made


def check_room(made: Plan, room: Room) -> None:
    """Raises NoRoom."""
    if room.free_bytes < made.needed_bytes:
        raise NoRoom(
            f"{_is_free(room)}; a bench of {shown_size(made.size_bytes)} needs {shown_size(made.needed_bytes)},"
            f" {NEEDED} times its size: give a smaller --size, or make room"
        )


def _is_free(room: Room) -> str:
    reserve = (
        f", without {shown_size(room.reserve_bytes)} that are kept in reserve" if room.reserve_bytes else ""
    )
    return f"{room.place}: {shown_size(max(0, room.free_bytes))} free{reserve}"


class Unit(enum.Enum):
    BYTES = "MB/s"
    FILES = "files/s"


@dataclass(frozen=True, slots=True)
class Step:
    """What is timed at once. *key* stays what it is, in JSON; *work* is the name of a function in ``workloads``, and *args* what it is
    given. Files of the step, or those before it, are removed after it unless they are *left* for the next one."""

    key: str
    title: str
    work: str
    args: tuple[int, ...]
    size_bytes: int
    files: int = 1
    unit: Unit = Unit.BYTES
    cold: bool = False
    left: bool = False


def steps(made: Plan) -> list[Step]:
    """Of one round, in their order."""
    size, small = made.size_bytes, made.small_bytes
    files, each = made.files, made.writer_bytes
    kib = SMALL_FILE // KIB
    return [
        Step("write_1m", "write, 1 MiB calls", "write_stream", (size, MIB), size, left=True),
        Step("read_warm", "read, 1 MiB calls, warm", "read_stream", (size, MIB), size, left=True),
        Step("read_cold", "read, 1 MiB calls, cold", "read_stream", (size, MIB), size, cold=True),
        Step("write_4k", "write, 4 KiB calls", "write_stream", (small, 4 * KIB), small),
        Step("small_files", f"files of {kib} KiB: create, write, fsync, rename, close", "write_images",
             (files, SMALL_FILE), files * SMALL_FILE, files, Unit.FILES),
        Step("many_writers", f"{WRITERS} writers at once, 1 MiB calls", "write_at_once", (WRITERS, each, made.writer_call),
             WRITERS * each, WRITERS),
        Step("hold_restart", "hold and restart: write, fsync, rename, read", "hold_and_restart", (size, MIB), size),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One step in one place; *done* of *count* turns were before it."""

    step: Step
    place: int
    round: int
    done: int
    count: int


def turns(made: Plan, places: int) -> Iterator[Turn]:
    """Turn about: the places in their order in one round, the other way round in the next, so that whatever changes slowly meets
    them alike."""
    each = steps(made)
    count, done = made.rounds * len(each) * places, 0
    for number in range(made.rounds):
        order = range(places) if number % 2 == 0 else range(places - 1, -1, -1)
        for step in each:
            for place in order:
                yield Turn(step, place, number, done, count)
                done += 1
