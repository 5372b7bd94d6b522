"""Makes recorded calls again, each as the recorded user, on directories that stand for the hosts' checkpoint directory.

Every recorded process becomes a forked child that keeps its working directory and descriptors from call to call and ends
after its last one. What a recording leaves open is deduced: ``<t>``, the time in an image's name, becomes a number of its
own for each image; the later ones of several writes share what is missing to the recorded size of images. Sizes of
directories and byte counts of getdents differ between file systems: the entries are compared instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tests.e2e.trace import ROOT
from tests.support.agents import Agent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.e2e.trace import Call

FIRST_IMAGE = 1_700_000_000
_DIRENT = struct.Struct("=QqHB")
_UNKNOWN_TIME = "<t>"


class Differs(AssertionError):
    """A call did something else than the recorded one."""


# --- calls that Python has no function of the same shape for ------------------------------------------------------------


def _stat(path: str, follows: bool) -> os.stat_result:
    return os.stat(path, follow_symlinks=follows)


def getdents(fd: int) -> list[str]:
    """The names that one getdents64 tells, without ``.`` and ``..``."""
    buffer = ctypes.create_string_buffer(32768)
    size = ctypes.CDLL(None, use_errno=True).getdents64(fd, buffer, len(buffer))
    if size < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    names = []
    offset = 0
    while offset < size:
        *_, length, _ = _DIRENT.unpack_from(buffer.raw, offset)
        names.append(os.fsdecode(buffer.raw[offset + _DIRENT.size : offset + length].split(b"\0")[0]))
        offset += length
    return [name for name in names if name not in {".", ".."}]


def _write(fd: int, data: bytes) -> int:
    return os.write(fd, data)


def _content(number: int, size: int) -> bytes:
    """What an image holds: told apart by its number."""
    return (number.to_bytes(8, "big") * (size // 8 + 1))[:size]


def dirent_bytes(names: Sequence[str]) -> int:
    """What getdents64 counts for a directory with these *names*, on a file system that tells ``.`` and ``..``."""
    return sum((_DIRENT.size + len(name) + 1 + 7) // 8 * 8 for name in (".", "..", *names))


# --- the replay ---------------------------------------------------------------------------------------------------------


@dataclass
class _Process:
    """One recorded process as one user, and what it has open under the recorded numbers."""

    agent: Agent
    cwd: str = ROOT
    fds: dict[int, int] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)
    """By set: the entries that it has been told of and has not removed yet."""


class Replay:
    """Recorded calls on *mounts*, each host's checkpoint directory. To be used in a ``with``."""

    def __init__(self, mounts: Mapping[str, str], image_size: int) -> None:
        self._mounts = dict(mounts)
        self._image_size = image_size
        self._processes: dict[tuple[str, int, int], _Process] = {}
        self._next_image = FIRST_IMAGE
        self._newest: dict[str, str] = {}
        self.sets: dict[str, set[str]] = {}
        """What must be there: the entries of each set."""
        self.writers: dict[str, str] = {}
        """The host that wrote each image, by path relative to the mount."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._processes):
            self._processes.pop(key).agent.close()

    def make(self, call: Call) -> None:
        """Make *call* and compare what happens. Raises Differs."""
        process = self._process_of(call)
        try:
            getattr(self, f"_{call.name}")(call, process)
            number = 0
        except OSError as exc:
            number = exc.errno or -1
        if number != call.error:
            got, recorded = (errno.errorcode.get(n, "success") for n in (number, call.error))
            raise Differs(f"{got} instead of {recorded}: {call}")

    def ends(self, call: Call) -> None:
        """*call* was its process's last."""
        self._processes.pop((call.host, call.pid, call.uid)).agent.close()

    # Where a recorded path is

    def _process_of(self, call: Call) -> _Process:
        key = (call.host, call.pid, call.uid)
        if key not in self._processes:
            self._processes[key] = _Process(Agent(call.uid, call.gid))
        return self._processes[key]

    def _named(self, process: _Process, path: str) -> str:
        """*path* with the image's own number: of the entry whose turn it is in a listing, else of the newest image."""
        if _UNKNOWN_TIME not in path:
            return path
        directory = posixpath.dirname(self._absolute(process, path))
        entries = process.listed.get(directory)
        if entries:
            return posixpath.join(posixpath.dirname(path), entries[0])
        return path.replace(_UNKNOWN_TIME, self._newest[directory])

    def _absolute(self, process: _Process, path: str) -> str:
        if path.split("/")[0] == ROOT:
            return posixpath.normpath(path)
        return posixpath.normpath(posixpath.join(process.cwd, path))

    def _real(self, call: Call, path: str) -> str:
        """*path* on this machine; a relative one stays relative, since the agent has the same working directory."""
        return self._mounts[call.host] + path.removeprefix(ROOT) if path.startswith(ROOT) else path

    def _model(self, absolute: str) -> tuple[set[str], str]:
        """The expected entries of the set that *absolute* is in, and its name there."""
        directory, name = posixpath.split(absolute)
        return self.sets[posixpath.basename(directory)], name

    # One method per recorded call

    def _newfstatat(self, call: Call, process: _Process) -> None:
        if call.fd is not None:
            st = process.agent.do(os.fstat, process.fds[call.fd])
        else:
            path = self._real(call, self._named(process, call.paths[0]))
            st = process.agent.do(_stat, path, call.follows)
        _compare(call, st)

    def _mkdir(self, call: Call, process: _Process) -> None:
        process.agent.do(os.mkdir, self._real(call, call.paths[0]), call.mode)
        self.sets[posixpath.basename(call.paths[0])] = set()

    def _rmdir(self, call: Call, process: _Process) -> None:
        process.agent.do(os.rmdir, self._real(call, call.paths[0]))
        left = self.sets.pop(posixpath.basename(call.paths[0]))
        if left:
            raise Differs(f"{sorted(left)} went with the directory: {call}")

    def _chown(self, call: Call, process: _Process) -> None:
        assert call.owner is not None
        path = self._real(call, self._named(process, call.paths[0]))
        before = process.agent.do(_stat, path, False)
        process.agent.do(os.chown, path, *call.owner)
        after = process.agent.do(_stat, path, False)
        if (after.st_uid, after.st_gid) != call.owner:
            raise Differs(f"owner {after.st_uid}:{after.st_gid} after {call}")
        if stat.S_ISREG(before.st_mode) and after.st_mtime_ns != before.st_mtime_ns:
            raise Differs(f"mtime {before.st_mtime_ns} became {after.st_mtime_ns} by {call}")

    def _chdir(self, call: Call, process: _Process) -> None:
        process.agent.do(os.chdir, self._real(call, call.paths[0]))
        process.cwd = call.paths[0]

    def _openat(self, call: Call, process: _Process) -> None:
        path = call.paths[0]
        directory = posixpath.dirname(self._absolute(process, path))
        if call.flags & os.O_CREAT:
            self._newest[directory] = str(self._next_image)
            self._next_image += 1
        named = self._named(process, path)
        self._close(process, call.value)
        process.fds[call.value] = process.agent.do(os.open, self._real(call, named), call.flags, call.mode)
        process.paths[call.value] = self._absolute(process, named)
        if call.flags & os.O_CREAT:
            entries, name = self._model(process.paths[call.value])
            entries.add(name)

    def _write(self, call: Call, process: _Process) -> None:
        assert call.fd is not None
        data = _content(self._number_of(process, call.fd), self._image_size)
        for begin, end in _pieces(call.value, self._image_size, call.times):
            written = process.agent.do(_write, process.fds[call.fd], data[begin:end])
            if written != end - begin:
                raise Differs(f"{written} of {end - begin} bytes: {call}")

    def _read(self, call: Call, process: _Process) -> None:
        assert call.fd is not None
        # The last of the recorded reads told the end.
        pieces = [*_pieces(call.value, self._image_size, call.times - 1), (0, call.value)]
        parts = [process.agent.do(os.read, process.fds[call.fd], end - begin) for begin, end in pieces]
        if parts[-1] or b"".join(parts) != _content(self._number_of(process, call.fd), self._image_size):
            raise Differs(f"other bytes than were written: {call}")

    def _fsync(self, call: Call, process: _Process) -> None:
        assert call.fd is not None
        process.agent.do(os.fsync, process.fds[call.fd])

    def _rename(self, call: Call, process: _Process) -> None:
        old, new = (self._named(process, path) for path in call.paths)
        process.agent.do(os.rename, self._real(call, old), self._real(call, new))
        absolute = self._absolute(process, new)
        entries, name = self._model(absolute)
        entries.remove(posixpath.basename(old))
        entries.add(name)
        for fd, path in process.paths.items():
            if path == self._absolute(process, old):
                process.paths[fd] = absolute
        self.writers[absolute.removeprefix(f"{ROOT}/")] = call.host

    def _unlink(self, call: Call, process: _Process) -> None:
        named = self._named(process, call.paths[0])
        process.agent.do(os.unlink, self._real(call, named))
        absolute = self._absolute(process, named)
        entries, name = self._model(absolute)
        entries.remove(name)
        listed = process.listed.get(posixpath.dirname(absolute), [])
        if name in listed:
            listed.remove(name)
        self.writers.pop(absolute.removeprefix(f"{ROOT}/"), None)

    def _getdents64(self, call: Call, process: _Process) -> None:
        assert call.fd is not None
        names = process.agent.do(getdents, process.fds[call.fd])
        directory = process.paths[call.fd]
        if call.value == 0:
            if names:
                raise Differs(f"{names} after the end: {call}")
            self._close(process, call.fd)  # closedir, which was not recorded
            return
        expected = self.sets[posixpath.basename(directory)]
        if dirent_bytes(sorted(expected)) != call.value:
            raise Differs(f"the replay is out of step, it has {sorted(expected)}: {call}")
        if sorted(names) != sorted(expected):
            raise Differs(f"{sorted(names)} instead of {sorted(expected)}: {call}")
        process.listed[directory] = names

    def _close(self, process: _Process, fd: int) -> None:
        process.paths.pop(fd, None)
        if fd in process.fds:
            process.agent.do(os.close, process.fds.pop(fd))

    def _number_of(self, process: _Process, fd: int) -> int:
        return int(next(part for part in reversed(process.paths[fd].split(".")) if part.isdigit()))


def _pieces(first: int, size: int, times: int) -> list[tuple[int, int]]:
    """Begin and end of *times* pieces of *size* bytes: one of *first* bytes, the rest alike."""
    if times < 2:
        return [(0, first)]
    each, rest = divmod(size - first, times - 1)
    if rest:
        raise Differs(f"{size} bytes are not {first} and {times - 1} equal pieces")
    ends = [first + each * n for n in range(times)]
    return list(zip([0, *ends], ends, strict=False))


def _compare(call: Call, st: os.stat_result) -> None:
    told = call.told
    assert told is not None, f"{call} succeeded, but nothing was recorded"
    if (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode)) != (told.type, told.permissions):
        raise Differs(
            f"{stat.filemode(st.st_mode)} instead of {stat.filemode(told.type | told.permissions)}: {call}"
        )
    if stat.S_ISREG(told.type) and (st.st_size, st.st_nlink) != (told.size, 1):
        raise Differs(f"size {st.st_size}, {st.st_nlink} links: {call}")
