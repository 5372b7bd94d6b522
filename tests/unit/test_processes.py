"""What /proc says of callers, asked of real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.owners.processes import (
    Process,
    is_one_of,
    open_for_writing,
    process_of,
    program_of,
    was_killed,
)

_SOON_S = 10.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=-1
    )
    assert process.stdout is not None
    process.stdout.read(1)
    yield process
    process.kill()
    process.communicate()


def _is_zombie(pid: int) -> bool:
    return b") Z " in Path(f"/proc/{pid}/stat").read_bytes()


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _SOON_S
    while not _is_zombie(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_thread_belongs_to_its_process() -> None:
    of_main, of_thread = process_of(os.getpid()), []
    thread = threading.Thread(target=lambda: of_thread.append(process_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert of_thread == [of_main]
    assert of_main is not None
    assert of_main.pid == os.getpid()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_one_that_a_signal_ended_was_killed(sleeper: subprocess.Popen[bytes], number: int) -> None:
    process = process_of(sleeper.pid)
    assert process is not None
    assert not was_killed(process)
    sleeper.send_signal(number)
    _wait_for_end(sleeper.pid)
    assert was_killed(process)


@pytest.mark.parametrize("status", [0, 1, 137])
def test_one_that_ended_itself_was_not(status: int) -> None:
    ended = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.stdin.read(); sys.exit({status})"], stdin=-1
    )
    process = process_of(ended.pid)
    assert process is not None
    assert ended.stdin is not None
    ended.stdin.close()
    _wait_for_end(ended.pid)
    assert not was_killed(process)
    ended.wait()


def test_one_that_is_gone_or_another_was_not_killed(sleeper: subprocess.Popen[bytes]) -> None:
    process = process_of(sleeper.pid)
    assert process is not None
    sleeper.kill()
    _wait_for_end(sleeper.pid)
    assert not was_killed(Process(process.pid, process.started + 1)), "its number is another's by now"
    sleeper.wait()
    assert not was_killed(process)


def test_a_program_is_known_by_its_path(sleeper: subprocess.Popen[bytes]) -> None:
    assert program_of(sleeper.pid) == os.path.realpath(sys.executable)


def test_a_program_that_was_replaced_keeps_its_name(tmp_path: Path) -> None:
    copy = tmp_path / "pbs_server"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", copy)
    process = subprocess.Popen([copy, "600"])
    try:
        deadline = time.monotonic() + _SOON_S
        while program_of(process.pid) != str(copy):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        copy.unlink()
        assert program_of(process.pid) == str(copy)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("tid", [0, -1, 1 << 30])
def test_of_no_process_nothing_is_known(tid: int) -> None:
    assert process_of(tid) is None
    assert program_of(tid) is None


def test_a_remover_is_named_by_path_or_by_its_last_component() -> None:
    assert is_one_of("/usr/sbin/pbs_server", ("pbs_server",))
    assert is_one_of("/usr/sbin/pbs_server", ("/usr/sbin/pbs_server",))
    assert not is_one_of("/home/eve/pbs_server", ("/usr/sbin/pbs_server",))
    assert not is_one_of("/usr/sbin/pbs_server2", ("pbs_server",))
    assert not is_one_of(None, ("pbs_server",))


def test_descriptors_open_for_writing_are_counted(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    opened = [os.open(path, os.O_CREAT | os.O_WRONLY) for path in (file, file, other)]
    opened += [os.open(file, os.O_RDWR), os.open(file, os.O_RDONLY)]
    here, ino = process_of(os.getpid()), file.stat().st_ino
    assert here is not None
    try:
        assert open_for_writing(here, ino) == 3
        assert open_for_writing(Process(here.pid, here.started + 1), ino) == 0
    finally:
        for fd in opened:
            os.close(fd)
    assert open_for_writing(here, ino) == 0


def test_a_process_that_is_gone_has_nothing_open() -> None:
    assert open_for_writing(Process(2**22 + 1, 0), 1) == 0
