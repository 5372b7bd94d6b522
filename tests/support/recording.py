"""``python -m tests.support.recording FILE``: records what a real kernel asks of a mount, and what it takes for an answer.

The bytes in tests/unit/fuse_recording.json were made so; tests/unit/test_fuse_recording.py holds the codec to them. Run it as root
again when the codec learns a new message, on the newest kernel at hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckfs.daemon import options
from ckfs.daemon.serve import serve
from ckfs.store.syscalls import RENAME_NOREPLACE, rename
from ckfs.transport import kernel
from ckfs.transport.wire import decoding, replies
from ckfs.transport.wire.abi import Opcode
from ckfs.transport.wire.requests import Request
from tests.support.mounting import make_store

ENCODERS = (
    "attributes",
    "copied",
    "created",
    "entry",
    "init",
    "lock",
    "opened",
    "sought",
    "statfs",
    "statx",
    "written",
    "xattr_size",
)
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_WAIT_S = 0.2


class Recorder:
    """Keeps one request of each kind and of each set of fields that are filled in, and one answer of each kind."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, Any]] = {}
        self.replies: dict[str, dict[str, Any]] = {}

    def decode(self, opcode: int, body: memoryview, extensions_length: int = 0) -> Request:
        found = decoding.decode(opcode, body, extensions_length)
        fields = plain(found)
        filled = ", ".join(name for name, value in zip(found._fields, fields, strict=True) if value)
        key = f"{Opcode(opcode).name}: {filled}"
        self.requests.setdefault(
            key,
            {"opcode": opcode, "body": bytes(body).hex(), "kind": type(found).__name__, "fields": fields},
        )
        return found

    def encoder(self, name: str) -> Callable[..., bytes]:
        encode: Callable[..., bytes] = getattr(replies, name)

        def recorded(*args: object, **kwargs: object) -> bytes:
            body = encode(*args, **kwargs)
            given = {"args": plain(args), "kwargs": {key: plain(value) for key, value in kwargs.items()}}
            self.replies.setdefault(name, {**given, "body": body.hex()})
            return body

        return recorded


def plain(value: object) -> Any:
    """*value* as JSON has it."""
    if isinstance(value, bytes | memoryview):
        return {"hex": bytes(value).hex()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


def main(path: str) -> None:
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        store, mountpoint = make_store(Path(scratch)), Path(scratch) / "mount"
        mountpoint.mkdir()
        patch.setattr(kernel, "decode", recorder.decode)
        for name in ENCODERS:
            patch.setattr(replies, name, recorder.encoder(name))
        begin, end = os.pipe()
        if not os.fork():
            os.close(end)
            _work_when_told(begin, mountpoint)
        serve(
            str(store),
            str(mountpoint),
            options.parse([f"state={scratch}/state"]),
            lambda: os.close(end),
        )
    recorded = {
        "kernel": platform.release().split("-")[0],
        "requests": [recorder.requests[key] for key in sorted(recorder.requests)],
        "replies": dict(sorted(recorder.replies.items())),
    }
    Path(path).write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


def _work_when_told(begin: int, mountpoint: Path) -> None:
    """In a process of its own, which ends the mount when it is done."""
    status = 1
    try:
        os.read(begin, 1)
        directory = mountpoint / "set"
        directory.mkdir()
        _names(directory)
        _contents(directory)
        _attributes(directory)
        _locks(directory)
        _DROP_CACHES.write_text("2")
        time.sleep(_WAIT_S)
        status = 0
    finally:
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(status)


def _names(directory: Path) -> None:
    (directory / "file").touch()
    (directory / "link").symlink_to("file")
    os.readlink(directory / "link")
    os.link(directory / "file", directory / "second")
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "device", 0o600 | 0o020000, os.makedev(1, 3))
    (directory / "below").mkdir()
    os.rename(directory / "second", directory / "third")
    fd = os.open(directory, os.O_RDONLY)
    rename(fd, b"third", fd, b"fourth", RENAME_NOREPLACE)
    os.listdir(fd)
    os.fsync(fd)
    os.close(fd)
    os.unlink(directory / "fourth")
    os.rmdir(directory / "below")
    os.statvfs(directory)
    with contextlib.suppress(OSError):
        os.open(directory, os.O_TMPFILE | os.O_RDWR)


def _contents(directory: Path) -> None:
    fd = os.open(directory / "data", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    os.write(fd, b"abc" * 1000)
    os.fsync(fd)
    os.fdatasync(fd)
    os.pread(fd, 10, 5)
    os.ftruncate(fd, 10_000)
    os.posix_fallocate(fd, 0, 20_000)
    with contextlib.suppress(OSError):
        os.lseek(fd, 0, os.SEEK_HOLE)
    other = os.open(directory / "copy", os.O_WRONLY | os.O_CREAT, 0o600)
    os.copy_file_range(fd, other, 5_000, 0, 0)
    ctypes.CDLL(None).syncfs(fd)
    os.close(other)
    os.close(fd)
    os.close(os.open(directory / "data", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open(directory / "data", os.O_WRONLY | os.O_APPEND))


def _attributes(directory: Path) -> None:
    path = directory / "data"
    os.chmod(path, 0o600)
    os.chown(path, 1000, 1000)
    os.truncate(path, 5)
    os.utime(path)
    os.utime(path, ns=(-1_500_000_000, 2_000_000_001))
    os.setxattr(path, "user.a", b"value")
    os.setxattr(path, "user.a", b"other", os.XATTR_REPLACE)
    os.getxattr(path, "user.a")
    ctypes.CDLL(None).getxattr(os.fsencode(path), b"user.a", None, 0)
    os.listxattr(path)
    os.removexattr(path, "user.a")
    os.system(f"stat -c %w {path} >/dev/null")  # coreutils ask for the time of birth


def _locks(directory: Path) -> None:
    with (directory / "data").open("r+b") as first, (directory / "data").open("r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _interrupted(lambda: fcntl.flock(second, fcntl.LOCK_EX))
        fcntl.lockf(first, fcntl.LOCK_EX, 10, 5)
        asked = fcntl.fcntl(second, fcntl.F_GETLK, bytes(32))
        assert asked
        fcntl.lockf(first, fcntl.LOCK_UN)
    time.sleep(_WAIT_S)  # the last RELEASE comes by itself


def _interrupted(wait: Callable[[], None]) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError(errno.EINTR, "a signal came")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _WAIT_S)
    with contextlib.suppress(InterruptedError):
        wait()


if __name__ == "__main__":
    main(sys.argv[1])
