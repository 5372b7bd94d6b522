"""What many sets in one store cost: time to mount and to list, and the daemon's memory once all have been touched."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckfs.model import Owner, Record
from ckfs.names import Gid, SetName, Uid
from ckfs.store.layout import Store, open_store
from ckfs.store.record import new_inode
from tests.bench.places import USER, as_user, forget_names, scratch_in
from tests.bench.workloads import list_files
from tests.support.mounting import Mount, make_store, mounted

_OWNERS = 50
_FORGET_S = 30.0
_MOUNTS = 3


@dataclass(frozen=True, slots=True)
class Size:
    """Times in seconds, memory in bytes (VmRSS; *peak* is VmHWM over everything)."""

    sets: int
    ready_s: float
    first_entry_s: float
    listed_s: float
    touched_s: float
    fresh_bytes: int
    touched_bytes: int
    forgotten_bytes: int | None
    peak_bytes: int


def measure(directory: str, sets: int, say: Callable[[str], None]) -> Size:
    """*sets* sets of some users in a new store below *directory*, made and then served."""
    with scratch_in(directory) as scratch:
        private = scratch / "private"
        private.mkdir(mode=0o700)
        store = make_store(private)
        say(f"making {sets:,} sets")
        _make_sets(store, sets)
        ready_s = min(_time_to_ready(store, scratch / "mount") for _ in range(_MOUNTS))
        say(f"READY after {ready_s:.2f} s")
        with mounted(store, scratch / "mount", node="bench") as mount:
            return _touched(mount, sets, ready_s, say)


def _make_sets(path: Path, count: int) -> None:
    opened: Store = open_store(str(path))
    try:
        for number in range(count):
            _make_set(opened, number)
    finally:
        opened.close()


def _make_set(store: Store, number: int) -> None:
    uid = USER + number % _OWNERS
    owner = Owner(Uid(uid), Gid(uid))
    top = Record(new_inode(), owner.uid, owner.gid, stat.S_IFDIR | 0o700)
    name = SetName(b"%d.server.CK" % number)
    store.names.take(name, owner, owner, top.ino, lambda spot: store.door.make_directory(spot, lambda _: top))


def _time_to_ready(store: Path, mountpoint: Path) -> float:
    begin = time.monotonic()
    with mounted(store, mountpoint, node="bench"):
        return time.monotonic() - begin


def _touched(mount: Mount, sets: int, ready_s: float, say: Callable[[str], None]) -> Size:
    fresh_bytes, _ = _memory(mount)
    first_s = as_user(_first_entry, str(mount.path))
    listed_s = as_user(_list_names, str(mount.path), sets)
    say(f"first entry after {first_s:.3f} s, all names after {listed_s:.1f} s")
    touched_s = as_user(list_files, str(mount.path))
    touched_bytes, _ = _memory(mount)
    say(f"ls -l of all: {touched_s:.1f} s; {touched_bytes / 1e6:.0f} MB resident")
    forgotten_bytes = _forgotten(mount)
    _, peak_bytes = _memory(mount)
    return Size(
        sets, ready_s, first_s, listed_s, touched_s, fresh_bytes, touched_bytes, forgotten_bytes, peak_bytes
    )


def _first_entry(directory: str) -> float:
    begin = time.monotonic()
    with os.scandir(directory) as entries:
        next(entries)
        return time.monotonic() - begin


def _list_names(directory: str, expected: int) -> float:
    begin = time.monotonic()
    with os.scandir(directory) as entries:
        found = sum(1 for _ in entries)
    if found != expected:
        raise OSError(f"{found} sets are listed, {expected} were made")
    return time.monotonic() - begin


def _forgotten(mount: Mount) -> int | None:
    """VmRSS once the kernel has dropped what it knew and the daemon heard of it; None where that cannot be asked for."""
    if not forget_names():
        return None
    last, deadline = -1, time.monotonic() + _FORGET_S
    while time.monotonic() < deadline:  # FORGET has no answer: wait until it changes nothing any more
        time.sleep(0.5)
        resident, _ = _memory(mount)
        if resident == last:
            break
        last = resident
    return _memory(mount)[0]


def _memory(mount: Mount) -> tuple[int, int]:
    """VmRSS and VmHWM."""
    with open(f"/proc/{mount.process.pid}/status", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    resident, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, most
