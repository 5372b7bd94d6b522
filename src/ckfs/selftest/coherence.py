"""Whether what one mount does is seen by the next call on another: in both directions, and how late if it is not."""

from __future__ import annotations

import fcntl
import math
import os
from concurrent.futures import ThreadPoolExecutor

from ckfs.policy.advice import Family, Topic, family_of
from ckfs.selftest.aspects import ASPECTS, Aspect
from ckfs.selftest.joining import Joined, joined
from ckfs.selftest.outcome import Check, Outcome, fail, not_tried, ok, warn
from ckfs.selftest.place import Place
from ckfs.selftest.serving import (
    change_aspects,
    lock_file,
    prepare_aspects,
    prime_aspects,
    watch_aspects,
)
from ckfs.selftest.xattrs import has_attributes
from ckfs.store.identity import acting_as

_PREFIX = "coherence."
_LOCKS = "coherence.locks"
_PATIENCE = 3
_PART_OF_TIME = 3
"""Of the time that a check may take, each direction waits so long for what was not seen."""
_NEEDS_ATTRIBUTES = "attribute"

Delays = dict[str, tuple[float, str]]
"""By aspect the longest delay in seconds (infinite: not seen while it was watched for), and who had to look so often."""


def _seen(place: Place) -> list[Outcome]:
    if not place.peers:
        return [_not_tried(place, _PREFIX + aspect.name) for aspect in ASPECTS]
    with acting_as(place.keeper):
        attributes = has_attributes(place.new_room())
    chosen = [aspect for aspect in ASPECTS if attributes or aspect.name != _NEEDS_ATTRIBUTES]
    delays: Delays = {}
    watched_s = place.timeout_s / _PART_OF_TIME
    with joined(place, _PATIENCE) as peers, ThreadPoolExecutor(len(peers)) as threads:
        _seen_there(place, peers, chosen, delays, watched_s)
        looks = [threads.submit(_seen_here, place, peer, chosen, watched_s) for peer in peers]
        for peer, look in zip(peers, looks, strict=True):
            _note(delays, f"here, of {peer.name}", look.result())
    return [
        _judged(place, aspect, delays, watched_s)
        if aspect in chosen
        else not_tried(_PREFIX + aspect.name, "there are no attributes")
        for aspect in ASPECTS
    ]


def _not_tried(place: Place, check: str) -> Outcome:
    if family_of(place.kind) is Family.LOCAL:
        return not_tried(check, "a file system of this host alone, which has no other mount")
    return not_tried(check, "no other mount of the store takes part", "give --hosts HOST,… or --other PATH")


def _note(delays: Delays, who: str, found: object) -> None:
    assert isinstance(found, dict)
    for name, delay in found.items():
        late = (math.inf if delay is None else float(delay), who)
        delays[name] = max(delays.get(name, late), late)


def _seen_there(
    place: Place, peers: list[Joined], chosen: list[Aspect], delays: Delays, limit_s: float
) -> None:
    """What this host changes, all peers at once."""
    room, names = place.new_room(), [aspect.name for aspect in chosen]
    with acting_as(place.keeper):
        prepare_aspects(room, chosen)
    for peer in peers:
        peer.told("prime", room=room, aspects=names)
    with acting_as(place.keeper):
        change_aspects(room, chosen)
    for peer in peers:
        peer.ask("watch", limit_s=limit_s, aspects=names)
    for peer in peers:
        _note(delays, peer.name, peer.answer()["delays"])


def _seen_here(place: Place, peer: Joined, chosen: list[Aspect], limit_s: float) -> dict[str, float | None]:
    """What a peer changes; in a thread for each, so that many do not take longer than one."""
    room, names = place.new_room(), [aspect.name for aspect in chosen]
    peer.told("prepare", room=room, aspects=names)
    with acting_as(place.keeper):
        watched = prime_aspects(room, chosen)
        peer.told("change", room=room, aspects=names)
        return watch_aspects(watched, chosen, limit_s)


def _judged(place: Place, aspect: Aspect, delays: Delays, limit_s: float) -> Outcome:
    check = _PREFIX + aspect.name
    delay_s, who = delays[aspect.name]
    if delay_s == 0:
        return ok(check, f"{aspect.what}: seen by the next call", delay_s=0.0)
    mend = place.mend(aspect.topic)
    if math.isinf(delay_s):
        return fail(check, f"{aspect.what}: not seen within {limit_s:g} s ({who})", mend)
    return warn(check, f"{aspect.what}: seen {delay_s:.2f} s later ({who})", mend, delay_s=round(delay_s, 3))


def _locks(place: Place) -> list[Outcome]:
    if not place.peers:
        return [_not_tried(place, _LOCKS)]
    with joined(place, _PATIENCE) as peers, acting_as(place.keeper):
        room = place.new_room()
        fd = lock_file(room)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return [not_tried(_LOCKS, "there are no locks")]
            for peer in peers:
                if peer.told("lock", room=room)["got"]:
                    says = f"what is locked here is locked by {peer.name} as well"
                    return [warn(_LOCKS, says, place.mend(Topic.LOCKS))]
        finally:
            os.close(fd)
    return [ok(_LOCKS, "what one mount has locked another cannot lock")]


CHECKS = (
    Check(tuple(_PREFIX + aspect.name for aspect in ASPECTS), _seen, _PATIENCE),
    Check((_LOCKS,), _locks, _PATIENCE),
)
