"""Processes of a bench that may be ended, and signals of which one is enough."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import pytest

from ckfs.bench import workloads
from ckfs.bench.place import Place, empty, left_overs, make, new_token, opened, remove
from ckfs.bench.running import Refused, in_child, interrupted_once
from ckfs.selftest.scratch import Worker
from ckfs.store import syscalls

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", ENDING)
def test_one_signal_is_heard_and_the_rest_is_not(number: signal.Signals) -> None:
    was = signal.signal(number, signal.default_int_handler)  # it may be ignored, under nohup
    try:
        before = [signal.getsignal(one) for one in ENDING]
        with interrupted_once():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            signal.raise_signal(number)
        assert [signal.getsignal(one) for one in ENDING] == before
    finally:
        signal.signal(number, was)


def test_what_is_ignored_stays_ignored() -> None:
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_once():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, was)


def test_a_child_says_what_it_met() -> None:
    assert in_child(lambda: {"a": [1]}, 10.0) == {"a": [1]}
    with pytest.raises(Refused, match=os.strerror(errno.EDQUOT)) as refused:
        in_child(lambda: os.close(_fail(errno.EDQUOT)), 10.0)
    assert refused.value.number == errno.EDQUOT
    with pytest.raises(Refused) as hung:
        in_child(lambda: time.sleep(60), 0.05)
    assert hung.value.number == errno.ETIMEDOUT
    with pytest.raises(Refused) as died:
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), 10.0)
    assert died.value.number == errno.EIO


def _fail(number: int) -> int:
    raise OSError(number, os.strerror(number))


def test_what_a_child_started_is_over_with_it() -> None:
    """As writers of one that is ended in the middle are: what it made can be removed then, and nobody makes more."""
    reading, writing = os.pipe()

    def start() -> None:
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
        time.sleep(60)

    with pytest.raises(Refused):
        in_child(start, 5.0)
    pid = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        assert os.listdir(f"/proc/{pid}/fd") == []  # of one that lives at least the pipe


def test_every_workload_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    place = Place("control", str(tmp_path), "own", None)
    own = tmp_path / "own"

    def files(call: object) -> dict[str, int]:
        def work() -> None:
            with place.entered():
                assert callable(call)
                assert call() > 0

        in_child(work, 60.0)
        found = {path.name: path.stat().st_size for path in own.iterdir()}
        assert in_child(lambda: empty(place), 60.0) is True
        assert list(own.iterdir()) == []
        return found

    assert files(lambda: workloads.write_stream(3 << 20, 4096)) == {"stream.tmp": 3 << 20}
    assert files(lambda: workloads.write_images(3, 65536)) == {
        f"image-{number}": 65536 for number in range(3)
    }
    assert files(lambda: workloads.write_at_once(8, 1 << 17, 1 << 17)) == {
        f"{number}.tmp": 1 << 17 for number in range(8)
    }
    assert files(lambda: workloads.hold_and_restart(2 << 20, 1 << 20)) == {"image": 2 << 20}


def test_what_is_read_must_be_all_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"image")
    with pytest.raises(OSError, match="of 6 bytes 5 were read"):
        workloads.read_file(str(tmp_path / "file"), 6, 4096)


def test_the_error_of_a_writer_is_the_call_s(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    with pytest.raises(FileExistsError):
        workloads.write_files_at_once([str(tmp_path / "0")], 4096, 4096)


def test_pages_that_were_dropped_are_not_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 << 20) + b"more")
    pages = -(-path.stat().st_size // os.sysconf("SC_PAGESIZE"))
    with path.open("rb") as file:
        fd = file.fileno()
        os.fsync(fd)
        while os.read(fd, 1 << 20):
            pass
        assert syscalls.pages_in_memory(fd) == pages
        is_cold = workloads.forget_pages(fd)
        assert is_cold is not syscalls.is_in_memory(fd)


# What killed ones left


def test_what_is_certainly_left_is_removed_and_the_rest_named(tmp_path: Path) -> None:
    uids = frozenset({os.geteuid()})
    here, away = Worker.here(os.getpid()), Worker("tqn7", "0" * 8, 4711, "12")
    gone = Worker(here.node, here.boot, here.pid, "1")
    names = {worker: f"ckfs-bench-{new_token()}" for worker in (here, away, gone)}
    with opened(str(tmp_path)) as top_fd:
        for worker, name in names.items():
            make(top_fd, name, None, worker)
        (tmp_path / names[gone] / "deep").mkdir()
        (tmp_path / names[gone] / "deep" / "image").write_bytes(b"image")
        (tmp_path / "ckfs-bench-1234").mkdir()
        (tmp_path / f"ckfs-bench-{new_token()}").write_text("a file")
        lines = sorted(left_overs(top_fd, "", "/mnt", uids))
        assert lines == sorted(
            [
                f"/mnt/{names[gone]}, left by process {here.pid} of this host, was removed",
                f"/mnt/{names[away]} is of process 4711 on tqn7: remove it if no bench runs there",
            ]
        )
        assert not (tmp_path / names[gone]).exists()
        assert len(list(tmp_path.iterdir())) == 4
        remove(top_fd, names[here])
        assert remove(top_fd, names[here]) is True
        assert not (tmp_path / names[here]).exists()
