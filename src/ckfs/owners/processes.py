"""What the kernel says of a calling process: which program it runs, and whether a signal ended it.

All is read from /proc, which never waits for the store. Thread ids are used again: whatever is read of one counts only
if it is the same thread before and after, by its start time. What cannot be read (a process of another pid namespace,
or one that is gone) is None: nobody is taken for a program, or for dead, that ckfs did not see.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_DELETED = b" (deleted)"
_EXITING = 0x4
"""PF_EXITING of the kernel's task flags."""
_SIGNAL_BITS = 0x7F
_NOBODY_LOGGED_IN = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Process:
    """A process, by the id of its thread group and the time it started at (in ticks since boot)."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class _Stat:
    """Fields of /proc/PID/stat."""

    is_zombie: bool
    flags: int
    started: int
    exit_code: int


def process_of(tid: int) -> Process | None:
    """The process that the thread *tid* belongs to."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            pid = next(int(line.split()[1]) for line in status if line.startswith(b"Tgid:"))
        return Process(pid, _stat(pid).started)
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def is_running(process: Process) -> bool:
    """Whether *process*, of this pid namespace, is still there, and more than a zombie. True if that cannot be told."""
    try:
        now = _stat(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, IndexError):
        return True
    return now.started == process.started and not now.is_zombie


def was_killed(process: Process) -> bool:
    """Whether a signal is ending *process*, or has ended it and its parent has yet to notice."""
    try:
        now = _stat(process.pid)
    except (OSError, ValueError, IndexError):
        return False
    return now.started == process.started and bool(now.flags & _EXITING and now.exit_code & _SIGNAL_BITS)


def open_for_writing(process: Process, ino: int) -> int:
    """How many descriptors of *process* are of a file of inode number *ino*, and open for writing. Numbers are all that is
    looked at: files of that number on other file systems count too. 0 for what cannot be read."""
    try:
        with os.scandir(f"/proc/{process.pid}/fdinfo") as descriptors:
            count = sum(_is_writing(entry.path, ino) for entry in descriptors)
        return count if _stat(process.pid).started == process.started else 0
    except (OSError, ValueError, IndexError):
        return 0


def _is_writing(fdinfo: str, ino: int) -> bool:
    try:
        with open(fdinfo, "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read(256).splitlines() if b":" in line)
        return int(fields[b"ino"]) == ino and bool(int(fields[b"flags"], 8) & os.O_ACCMODE)
    except (OSError, ValueError, KeyError):  # closed meanwhile, or a kernel before 5.14
        return False


def program_of(tid: int) -> str | None:
    """The absolute path of the program that the thread *tid* runs; one that a package update replaced keeps its name."""
    try:
        before = _stat(tid).started
        path = os.readlink(b"/proc/%d/exe" % tid)
        if _stat(tid).started != before:
            return None
    except (OSError, ValueError, IndexError):
        return None
    return os.fsdecode(path.removesuffix(_DELETED))


def login_uid_of(tid: int) -> int | None:
    """Who logged in for what *tid* runs, through su and sudo, where the kernel keeps that (audit)."""
    try:
        with open(f"/proc/{tid}/loginuid", "rb") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        return None
    return uid if uid != _NOBODY_LOGGED_IN else None


def is_one_of(program: str | None, names: tuple[str, ...]) -> bool:
    """Whether *program* is named in *names*: by its absolute path, or by its last component alone."""
    return program is not None and any(
        program == name or ("/" not in name and os.path.basename(program) == name) for name in names
    )


def _stat(tid: int) -> _Stat:
    with open(f"/proc/{tid}/stat", "rb") as file:
        # The program's name stands in parentheses, and may hold any character.
        fields = file.read().rpartition(b")")[2].split()
    return _Stat(
        is_zombie=fields[0] in (b"Z", b"X"),
        flags=int(fields[6]),
        started=int(fields[19]),
        exit_code=int(fields[49]),
    )
