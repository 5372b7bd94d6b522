"""Whether anybody has a store mounted, on this host or another, for who must have it alone."""

from __future__ import annotations

import contextlib
import os
import sys

from ckfs.daemon.mounting import is_dead, mounts
from ckfs.errors import StoreInUse, StoreUnusable
from ckfs.fs.listening import described, first_alive
from ckfs.fs.liveness import Judge
from ckfs.names import shown
from ckfs.policy import settings
from ckfs.store.layout import policy_text
from ckfs.store.mounts import Mounts

_WAY_OUT = "umount it on all hosts, or give --even-if-mounted"
_IN_A_COPY = "; in a copy of a store, remove what is in its mounts/ first"


def check(path: str, registered: Mounts, judge: Judge) -> None:
    """Raises StoreInUse if a mount of the store at *path* is alive. That takes up to a lease's time, if any is registered that
    is not known to be dead: who is not heard of for that long is taken for gone."""
    if places := _mounted_at(path):
        raise StoreInUse(f"{shown(path)}: mounted on {', '.join(places)}: {_WAY_OUT}")
    alive = first_alive(registered, judge, _lease_s(path), _say)
    if alive is not None:
        raise StoreInUse(f"{shown(path)}: {described(alive)} is alive: {_WAY_OUT}{_IN_A_COPY}")


def _mounted_at(path: str) -> list[str]:
    """Where on this host."""
    places = []
    for mounted in mounts():
        with contextlib.suppress(OSError):
            if (
                mounted.is_ckfs
                and os.path.samefile(mounted.source, path)
                and not is_dead(os.fsdecode(mounted.path))
            ):
                places.append(shown(mounted.path))
    return places


def _lease_s(path: str) -> float:
    try:
        return settings.parse(policy_text(path)).lease_s
    except StoreUnusable:  # which is a finding
        return settings.parse(settings.DEFAULT_TEXT).lease_s


def _say(what: str) -> None:
    print(f"ckfs: {what}", file=sys.stderr, flush=True)
