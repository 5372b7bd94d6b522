"""Which items of the trash a command means: by their tokens, or by set, owner and time."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckfs.cli.users import uid_of
from ckfs.errors import UsageError
from ckfs.names import shown
from ckfs.store.removed import Damaged, Item

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SHORTEST_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """Times in ns since the epoch: *since_ns* included, *before_ns* not. None means any."""

    set_name: str | None
    uid: int | None
    since_ns: int | None
    before_ns: int | None

    @property
    def is_any(self) -> bool:
        return self == Choice(None, None, None, None)

    def fits(self, entry: Item | Damaged) -> bool:
        return self._fits_time(entry.when_ns) and self._fits_set(entry) and self._fits_owner(entry)

    def _fits_time(self, when_ns: int) -> bool:
        return (self.since_ns is None or when_ns >= self.since_ns) and (
            self.before_ns is None or when_ns < self.before_ns
        )

    def _fits_set(self, entry: Item | Damaged) -> bool:
        if self.set_name is None:
            return True
        if isinstance(entry, Damaged):
            return False
        # As it is, or as it is shown.
        return self.set_name in (os.fsdecode(entry.note.set_name), shown(entry.note.set_name))

    def _fits_owner(self, entry: Item | Damaged) -> bool:
        if self.uid is None:
            return True
        if isinstance(entry, Damaged):
            return entry.spot.identity.uid == self.uid
        return entry.note.owner is not None and entry.note.owner.uid == self.uid


def choice_of(arguments: argparse.Namespace) -> Choice:
    """Raises UsageError for what is no time or no user."""
    now_ns = time.time_ns()
    before = [] if arguments.older_than is None else [now_ns - _age_ns(arguments.older_than)]
    if arguments.before is not None:
        before.append(_time_ns(arguments.before, now_ns))
    return Choice(
        set_name=arguments.set,
        uid=None if arguments.owner is None else uid_of(arguments.owner),
        since_ns=None if arguments.since is None else _time_ns(arguments.since, now_ns),
        before_ns=min(before, default=None),
    )


def _age_ns(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", text)
    if match is None:
        raise UsageError(f"{shown(text)}: not an age: a number and s, m, h, d or w, for example 3d")
    return int(float(match[1]) * _UNITS_S[match[2]] * 1e9)


def _time_ns(text: str, now_ns: int) -> int:
    """ISO 8601, in this host's time if it says no other; or an age."""
    try:
        return int(dt.datetime.fromisoformat(text).timestamp() * 1e9)
    except (OverflowError, OSError):
        raise UsageError(f"{shown(text)}: out of the range of times") from None
    except ValueError:
        pass
    try:
        return now_ns - _age_ns(text)
    except UsageError:
        raise UsageError(
            f"{shown(text)}: not a time: give one as 2026-03-01T12:00, or an age as 3d"
        ) from None


def named(entries: Sequence[Item | Damaged], tokens: Sequence[str]) -> Iterator[Item | Damaged]:
    """Those of *entries* that *tokens* name, each by as much of its token as no other begins with."""
    for token in dict.fromkeys(tokens):
        fitting = [entry for entry in entries if entry.token == token]
        if not fitting and len(token) >= _SHORTEST_TOKEN:
            fitting = [entry for entry in entries if entry.token.startswith(token)]
        if not fitting:
            raise UsageError(f"{shown(token)}: there is no such item in the trash: see 'ckfs trash ls'")
        if len(fitting) > 1:
            raise UsageError(f"{shown(token)}: {len(fitting)} items begin so: give more of it")
        yield fitting[0]
