"""Whether a mount of a store is alive, for whoever must not go on beside one: any mount, or one of another host under the same name."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ckfs.fs.liveness import Judge
from ckfs.names import MountId, shown
from ckfs.store.mounts import Mounts, Registration

_LOOKS_PER_LEASE = 40
_BEATS_OF_A_LEASE = 0.5
"""Of a lease, in which whoever lives has let others hear of him twice."""


def first_alive(
    registered: Mounts,
    judge: Judge,
    lease_s: float,
    say: Callable[[str], None],
    ended_boots: Collection[bytes] = (),
) -> Registration | None:
    """A mount that is alive; None if none is. That takes up to a lease's time, if any is registered that is not known to be dead,
    and *say* is told so: who is not heard of for that long is taken for gone. Mounts under the kernels *ended_boots* are known
    to be dead."""
    first: dict[MountId, int] = {}
    silent = set[MountId]()
    said = False
    while True:
        listening: list[Registration] = []
        for one in registered.all():
            if one.boot in ended_boots or judge.has_died_here(one):
                continue
            if judge.is_running_here(one) or one.beat != first.setdefault(one.id, one.beat):
                return one
            if judge.silent_s(one, lease_s) < lease_s:
                listening.append(one)
            elif one.id not in silent:
                silent.add(one.id)
                say(f"{described(one)} was silent for {lease_s:g} s, and is taken for gone")
        if not listening:
            return None
        if not said:
            said = True
            say(f"listening for {lease_s:g} s whether {described(listening[0])} is alive")
        time.sleep(lease_s / _LOOKS_PER_LEASE)


def namesake(
    registered: Mounts, judge: Judge, own: Registration, lease_s: float, say: Callable[[str], None]
) -> Registration | None:
    """The mount of another host that has the node's name, and lives; None once *own* has the name, or another mount of this host.

    That takes up to half of a lease's time if a mount has the name that is not known to be dead.
    """
    while True:
        holder = registered.holder_of(own.node)
        if holder == own.id:
            return None
        one = None if holder is None else registered.read(holder)
        if one is not None and not judge.has_died_here(one):
            if judge.is_running_here(one):
                return None
            if _is_heard_of(registered, judge, one, lease_s, say):
                return one
        if registered.take_node(own.node, own.id, holder):
            return None


def _is_heard_of(
    registered: Mounts, judge: Judge, one: Registration, lease_s: float, say: Callable[[str], None]
) -> bool:
    limit_s = lease_s * _BEATS_OF_A_LEASE
    say(f"listening for {limit_s:g} s whether {described(one)}, on another host, is alive")
    while judge.silent_s(one, lease_s) < limit_s:
        time.sleep(lease_s / _LOOKS_PER_LEASE)
        now = registered.read(one.id)
        if now is None:
            return False
        if now.beat != one.beat:
            return True
    return False


def described(one: Registration) -> str:
    return f"mount {shown(one.id)} of node {shown(one.node) if one.node else '(unknown)'}"
