"""The daemon has no way past disk quotas: CAP_SYS_RESOURCE, which root has and which they do not hold for, is not in effect."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from ckfs.store.syscalls import CAP_SYS_RESOURCE
from tests.support.mounting import Mount
from tests.support.users import ALICE, BOB, as_user

MIB = 1 << 20
_BIT = 1 << CAP_SYS_RESOURCE


def _effective(process: int) -> dict[str, int]:
    """The effective capabilities of each thread of *process* that there is at the moment."""
    found = {}
    for task in os.listdir(f"/proc/{process}/task"):
        try:
            lines = Path(f"/proc/{process}/task/{task}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":", 1) for line in lines)
        found[task] = int(fields["CapEff"], 16)
    return found


def test_no_thread_of_a_daemon_that_serves_can_pass_disk_quotas(mount: Mount) -> None:
    for uid in (0, ALICE, BOB):
        as_user(uid, (mount.path / f"image{uid}").write_bytes, b"x" * MIB)
    threads = _effective(mount.process.pid)
    assert len(threads) > 1, "no thread has worked"
    assert not any(capabilities & _BIT for capabilities in threads.values())


def test_nor_while_threads_write_as_root_and_as_users(mount: Mount) -> None:
    seen: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for task, capabilities in _effective(mount.process.pid).items():
                seen[task] = seen.get(task, 0) | capabilities

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for uid in (0, ALICE, BOB):
            as_user(uid, _writing(mount.path / f"images{uid}"))
    finally:
        ended.set()
        watching.join()
    assert seen
    assert not any(capabilities & _BIT for capabilities in seen.values())


def _writing(place: Path) -> Callable[[], None]:
    def write() -> None:
        place.mkdir()
        for number in range(20):
            (place / str(number)).write_bytes(b"x" * MIB)

    return write
