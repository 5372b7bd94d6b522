"""Names that several processes want at the same moment, on this host and on all peers: exactly one gets each."""

from __future__ import annotations

from collections import Counter

from ckfs.policy.advice import Topic
from ckfs.selftest.contending import ACTS, NAMES, Contest, Won, wanted
from ckfs.selftest.joining import joined
from ckfs.selftest.outcome import Check, Outcome, fail, ok
from ckfs.selftest.place import Place
from ckfs.selftest.serving import won_of
from ckfs.store.identity import acting_as

PATIENCE = 2


def race(place: Place, check: str, act: str, what: str, topic: Topic = Topic.EXCLUSIVE) -> Outcome:
    won, mounts = _won(place, act)
    trouble = next((one.trouble for one in won if one.trouble), None)
    if trouble is not None:
        return fail(check, f"{what}: {trouble}", place.mend(topic))
    winners = Counter(number for one in won for number in one.numbers)
    several = sum(count > 1 for count in winners.values())
    nobody = NAMES - len(winners)
    contenders = len(won)
    figures: dict[str, int] = {"contenders": contenders, "mounts": mounts, "names": NAMES}
    if several or nobody:
        says = f"{what}: of {NAMES} names {several} were given to several of {contenders} processes, and {nobody} to none"
        return fail(check, says, place.mend(topic), **figures)
    where = "one mount" if mounts == 1 else f"{mounts} mounts"
    return ok(check, f"{what}: of {contenders} processes on {where} exactly one gets it", **figures)


def _won(place: Place, act: str) -> tuple[list[Won], int]:
    room, own = place.new_room(), place.new_room()
    common = ACTS[act].common
    with acting_as(place.keeper):
        for number in range(NAMES if common is not None else 0):
            assert common is not None
            common(wanted(room, number))
    here = Contest(act, room, own, "here")
    with joined(place, PATIENCE) as lines:
        for number, line in enumerate(lines):
            line.ask("get_ready", act=act, room=room, own=own, tag=f"peer{number}")
        with acting_as(place.keeper):
            here.get_ready()
        for line in lines:
            line.answer()
        for line in lines:
            line.ask("go")
        here.go()
        won = here.won()
        for line in lines:
            won += won_of(line.answer())
    return won, 1 + len(lines)


def _of(check: str, act: str, what: str, topic: Topic = Topic.EXCLUSIVE) -> Check:
    return Check((check,), lambda place: [race(place, check, act, what, topic)], PATIENCE)


CHECKS = (
    _of("names.create", "create", "a file that is made with O_EXCL"),
    _of("names.mkdir", "mkdir", "a directory that is made"),
    _of("names.symlink", "symlink", "a symbolic link that is made"),
    _of("names.link", "link", "a hard link, from another directory", Topic.LINKS),
    _of("names.rename", "rename", "a file that is renamed away"),
)
