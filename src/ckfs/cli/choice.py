"""Which items of the trash a command's arguments mean."""

from __future__ import annotations

import argparse
import datetime as dt
import time

from ckfs.cli.users import uid_of
from ckfs.errors import UsageError
from ckfs.names import shown
from ckfs.policy import sizes
from ckfs.store.choosing import Choice


def add_choice(action: argparse.ArgumentParser) -> None:
    action.add_argument("--set", metavar="SET", help="what was in this set, or was it")
    action.add_argument(
        "--image", metavar="SET/PATH", help="what was this image, or this directory and all in it"
    )
    action.add_argument("--owner", metavar="USER", help="what was in this user's sets (name or uid)")
    action.add_argument(
        "--older-than", metavar="AGE", help="what was removed longer ago: 90s, 30m, 12h, 3d, 2w"
    )
    action.add_argument("--since", metavar="TIME", help="what was removed then or later: ISO 8601, or an age")
    action.add_argument("--before", metavar="TIME", help="what was removed earlier: ISO 8601, or an age")


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
        tokens=tuple(getattr(arguments, "items", ())),
        image=arguments.image,
    )


def _age_ns(text: str) -> int:
    age_ns = sizes.ns_in(text)
    if age_ns is None:
        raise UsageError(f"{shown(text)}: not an age: a number and s, m, h, d or w, for example 3d")
    return age_ns


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
