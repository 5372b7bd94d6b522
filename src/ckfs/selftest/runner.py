"""A selftest from its beginning to its end: the scratch directory, each check in a process of its own, and what is left.

Once the store has not answered, nothing more is asked of it than whether it does again.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ckfs.errors import UsageError
from ckfs.selftest import (
    coherence,
    identities,
    joining,
    late,
    quotas,
    racing,
    renaming,
    roots,
    scratch,
    speed,
    syncing,
    xattrs,
)
from ckfs.selftest.ends import SCRATCH, Asked, begin, left_overs, mend_of, place_of, removed
from ckfs.selftest.outcome import Check, Outcome, Verdict, decoded, encoded, fail, not_tried
from ckfs.selftest.place import Place
from ckfs.selftest.supervision import Died, NoAnswer, bounded
from ckfs.store.identity import ROOT

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ANSWERS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class About:
    """Of the store, for the head of a report."""

    kind: str
    source: str
    options: str


Tell = Callable[[Outcome], None]


def run(asked: Asked, tell: Tell, about: Callable[[About], None]) -> None:
    """*tell* each outcome when it is known. Whatever ends this, the scratch directory is removed. Raises UsageError."""
    name, place, may_be_there = scratch.new_name(), None, True
    try:
        place = _begun(asked, name, tell, about)
        may_be_there = place is not None
        if place is not None:
            tell(left_overs(place))
            _run_all(place, checks(asked, place), tell)
    finally:
        if may_be_there:
            with _undisturbed():
                left = removed(asked, name, place)
            if place is not None:
                tell(left)


def _begun(asked: Asked, name: str, tell: Tell, about: Callable[[About], None]) -> Place | None:
    """The scratch directory *name*, made; None if there is none, which has been told."""
    try:
        found = bounded(partial(begin, asked, name, os.getpid()), asked.timeout_s)
    except (NoAnswer, Died) as error:
        _say_that_nothing_can_be_tried(asked, tell, str(error))
        return None
    assert isinstance(found, dict)
    if "wrong" in found:
        raise UsageError(str(found["wrong"]))
    about(About(found["kind"], found["source"], found["options"]))
    if "refused" in found:
        _say_that_nothing_can_be_tried(asked, tell, str(found["refused"]), str(found["mend"]))
        return None
    tell(decoded(found["outcome"]))
    return place_of(asked, name, found)


def checks(asked: Asked, place: Place | None) -> list[Check]:
    """Those that are meant, in their order."""
    return [check for check in _all(asked, place) if check in joining.CHECKS or _is_meant(check, asked.only)]


def groups() -> list[str]:
    """What the names of checks begin with."""
    nothing = Asked("", (ROOT, ROOT))
    return list(dict.fromkeys(one.partition(".")[0] for check in _all(nothing, None) for one in check.ids))


def _is_meant(check: Check, only: tuple[str, ...]) -> bool:
    return not only or any(name in (one, one.partition(".")[0]) for one in check.ids for name in only)


def _all(asked: Asked, place: Place | None) -> tuple[Check, ...]:
    tries_engine = place is not None and quotas.wanted(place)
    is_limited = asked.limited is not None
    return (
        *joining.CHECKS,
        *identities.CHECKS,
        *roots.CHECKS,
        *xattrs.CHECKS,
        *racing.CHECKS,
        *renaming.CHECKS,
        *syncing.CHECKS,
        *coherence.CHECKS,
        quotas.check_of(tells_late=not is_limited) if tries_engine else quotas.NO_ENGINE,
        *([late.check_of(limited=is_limited)] if is_limited or not tries_engine else ()),
        *speed.CHECKS,
    )


def _run_all(place: Place, chosen: Sequence[Check], tell: Tell) -> None:
    answers = True
    for check in chosen:
        if not answers:
            for one in check.ids:
                tell(not_tried(one, "the store does not answer any more"))
            continue
        outcomes, answers = _run(place, check)
        for outcome in outcomes:
            tell(outcome)
        if check in joining.CHECKS and outcomes[0].verdict is not Verdict.OK:
            place = replace(place, peers=())


def _run(place: Place, check: Check) -> tuple[list[Outcome], bool]:
    """What it found, and whether the store still answers."""
    limit_s = place.timeout_s * check.patience
    try:
        found = bounded(lambda: [encoded(outcome) for outcome in _outcomes(place, check)], limit_s)
    except NoAnswer as error:
        return _all_failed(check, str(error)), _answers(place)
    except Died as error:
        return _all_failed(check, str(error)), True
    assert isinstance(found, list)
    return [decoded(values) for values in found], True


def _outcomes(place: Place, check: Check) -> list[Outcome]:
    """In the process of the check."""
    os.chdir(place.room)
    try:
        return check.run(place)
    except OSError as error:
        return _all_failed(check, error.strerror or str(error), mend_of(error))


def _all_failed(check: Check, says: str, mend: str = "") -> list[Outcome]:
    return [fail(one, says, mend) for one in check.ids]


def _answers(place: Place) -> bool:
    """Not only the one call may have hung."""
    try:
        bounded(partial(_make_room, place), min(_ANSWERS_WITHIN_S, place.timeout_s))
    except (NoAnswer, Died):
        return False
    return True


def _make_room(place: Place) -> None:
    os.chdir(place.room)
    place.new_room()


def _say_that_nothing_can_be_tried(asked: Asked, tell: Tell, says: str, mend: str = "") -> None:
    tell(fail(SCRATCH, says, mend))
    for check in checks(asked, None):
        for one in check.ids:
            tell(not_tried(one, "there is no scratch directory"))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever is impatient has been heard: removing takes a limited time."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
