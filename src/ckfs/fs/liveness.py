"""Which other mounts are alive, as far as this one can tell.

A mount's beat is watched by one's own monotonic clock: clocks of other hosts, and those of the store's servers, may say
anything. What serves a mount on this very host is looked for in /proc. Everything here blocks, and runs in threads and in the
loop alike.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.names import MountId
from ckfs.owners.processes import Process, is_running, process_of
from ckfs.store.mounts import Mounts, Registration, new_id


class Fate(enum.Enum):
    ALIVE = "alive"
    SILENT = "silent"
    """Its beat has not changed for a lease; it may be cut off, and come back."""
    GONE = "gone"
    """It has ended, or was fenced: it never writes again."""


@dataclass(slots=True)
class _Watched:
    beat: int
    looked_s: float
    silent_s: float = 0.0
    """For how long the beat is known to have been the same, counting no more than a lease between two looks: for the rest of
    that time the watcher itself may have been cut off."""


class Judge:
    """Says of a mount whether it is alive. One that was never looked at before has the benefit of a lease's time."""

    def __init__(self, mounts: Mounts, clock: Callable[[], float] = time.monotonic) -> None:
        self._mounts = mounts
        self._clock = clock
        self._here = _here()
        self._lock = threading.Lock()
        self._watched: dict[MountId, _Watched] = {}

    def fate(self, mount: MountId, lease_s: float) -> Fate:
        """OSError if the store does not say."""
        registration = self._mounts.read(mount)
        if registration is None or self.has_died_here(registration):
            with self._lock:
                self._watched.pop(mount, None)
            return Fate.GONE
        return Fate.SILENT if self._silent_s(registration, lease_s) >= lease_s else Fate.ALIVE

    def silent_s(self, registration: Registration, lease_s: float) -> float:
        """For how many seconds nothing was heard of it, as far as this mount has listened."""
        return self._silent_s(registration, lease_s)

    def has_died_here(self, registration: Registration) -> bool:
        """Its process was on this host, as this kernel runs, and is not there any more."""
        return self._is_here(registration) and not _is_running(registration)

    def is_running_here(self, registration: Registration) -> bool:
        """Its process is on this host, whether or not it does anything."""
        return self._is_here(registration) and _is_running(registration)

    def _is_here(self, registration: Registration) -> bool:
        return (registration.boot, registration.namespace) == self._here

    def _silent_s(self, registration: Registration, lease_s: float) -> float:
        with self._lock:
            now = self._clock()
            watched = self._watched.get(registration.id)
            if watched is None or watched.beat != registration.beat:
                self._watched[registration.id] = _Watched(registration.beat, now)
                return 0.0
            watched.silent_s += min(now - watched.looked_s, lease_s)
            watched.looked_s = now
            return watched.silent_s


def registration_here(node: bytes) -> Registration:
    """A new registration of this process."""
    boot, namespace = _here()
    process = process_of(os.getpid())
    assert process is not None  # it is this one
    return Registration(new_id(), node, boot, namespace, process.pid, process.started, wall_ns=time.time_ns())


def _is_running(registration: Registration) -> bool:
    return is_running(Process(registration.pid, registration.started))


def running_kernel() -> bytes:
    """By a number of its own."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def _here() -> tuple[bytes, int]:
    """The running kernel, and the pid namespace: within both, process ids mean the same."""
    return running_kernel(), os.stat("/proc/self/ns/pid").st_ino
