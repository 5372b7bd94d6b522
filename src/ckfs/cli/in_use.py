"""Whether anybody has a store mounted, on this host or another, for who must have it alone."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from ckfs.daemon.mounting import is_dead, mounts
from ckfs.errors import StoreInUse, StoreUnusable
from ckfs.fs.liveness import Judge
from ckfs.names import MountId, shown
from ckfs.policy import settings
from ckfs.store.layout import policy_text
from ckfs.store.mounts import Mounts, Registration

_LOOKS_PER_LEASE = 40
_WAY_OUT = "umount it on all hosts, or give --even-if-mounted"
_IN_A_COPY = "; in a copy of a store, remove what is in its mounts/ first"


def check(path: str, registered: Mounts, judge: Judge) -> None:
    """Raises StoreInUse if a mount of the store at *path* is alive. That takes up to a lease's time, if any is registered that
    is not known to be dead: who is not heard of for that long is taken for gone."""
    if places := _mounted_at(path):
        raise StoreInUse(f"{shown(path)}: mounted on {', '.join(places)}: {_WAY_OUT}")
    lease_s = _lease_s(path)
    first: dict[MountId, int] = {}
    silent = set[MountId]()
    said = False
    while True:
        listening: list[Registration] = []
        for one in registered.all():
            if judge.has_died_here(one):
                continue
            if judge.is_running_here(one) or one.beat != first.setdefault(one.id, one.beat):
                raise StoreInUse(f"{shown(path)}: {_mount(one)} is alive: {_WAY_OUT}{_IN_A_COPY}")
            if judge.silent_s(one, lease_s) < lease_s:
                listening.append(one)
            elif one.id not in silent:
                silent.add(one.id)
                _say(f"{_mount(one)} was silent for {lease_s:g} s, and is taken for gone")
        if not listening:
            return
        if not said:
            said = True
            _say(f"listening for {lease_s:g} s whether {_mount(listening[0])} is alive")
        time.sleep(lease_s / _LOOKS_PER_LEASE)


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


def _mount(one: Registration) -> str:
    return f"mount {shown(one.id)} of node {shown(one.node) if one.node else '(unknown)'}"


def _say(what: str) -> None:
    print(f"ckfs: {what}", file=sys.stderr, flush=True)
