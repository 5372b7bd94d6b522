"""What is timed: each gives the seconds that it took, in a process of its own, with the place that it works in as its working directory.

Names that end in ``.tmp`` are temporary (policy): images under them never become complete. What is written is written out to the disk
after the time was taken, so that the next one does not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from ckfs.store import syscalls

_MIB = 1 << 20
_FEW = 20
"""A file of which less than this part is in memory is cold."""
STREAM = "stream.tmp"
_IMAGE = "image"


def write_stream(size: int, call: int) -> float:
    took_s = write_file(STREAM, size, call)
    _write_out(STREAM)
    return took_s


def read_stream(size: int, call: int) -> float:
    return read_file(STREAM, size, call)


def write_images(count: int, size: int) -> float:
    """As checkpointers make them: under a temporary name, synced, renamed to the final one, closed."""
    took_s = 0.0
    for number in range(count):
        took_s += write_image(f"{_IMAGE}-{number}", size, size)
    return took_s


def write_at_once(writers: int, size: int, call: int) -> float:
    took_s = write_files_at_once([f"{number}.tmp" for number in range(writers)], size, call)
    for number in range(writers):
        _write_out(f"{number}.tmp")
    return took_s


def hold_and_restart(size: int, call: int) -> float:
    return write_image(_IMAGE, size, call) + read_file(_IMAGE, size, call)


# Files


def write_file(path: str, size: int, call: int, *, sync: bool = False, final: str | None = None) -> float:
    """A new file, from open to close: synced before that, if so asked, and renamed to *final*, if there is one."""
    data = memoryview(os.urandom(max(call, min(_MIB, size))))
    pieces = [data[at : at + call] for at in range(0, len(data) - call + 1, call)]
    begin = time.monotonic()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        for number in range(size // call):
            piece = pieces[number % len(pieces)]
            while (written := os.write(fd, piece)) != len(piece):
                piece = piece[written:]  # where the room ends: the next call says which
        if sync:
            os.fsync(fd)
        if final is not None:
            os.rename(path, final)
    finally:
        os.close(fd)
    return time.monotonic() - begin


def write_image(path: str, size: int, call: int) -> float:
    """Written and synced under a temporary name, and renamed to *path* before it is closed."""
    return write_file(f"{path}.tmp", size, call, sync=True, final=path)


def read_file(path: str, size: int | None, call: int) -> float:
    """All of a file, from open to close. OSError if that is not *size* bytes."""
    buffer, total = bytearray(call), 0
    begin = time.monotonic()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        while got := os.readv(fd, [buffer]):
            total += got
    finally:
        os.close(fd)
    took_s = time.monotonic() - begin
    if size is not None and total != size:
        raise OSError(errno.EIO, f"of {size} bytes {total} were read")
    return took_s


def write_files_at_once(paths: list[str], size: int, call: int) -> float:
    """A process for each of *paths*, from the first one's start to the last one's end. The error of one is raised here."""
    begin = time.monotonic()
    children = [_writer(path, size, call) for path in paths]
    failed = [status for status in (os.waitpid(child, 0)[1] for child in children) if status]
    took_s = time.monotonic() - begin
    if failed:
        number = os.waitstatus_to_exitcode(failed[0])
        raise OSError(*((number, os.strerror(number)) if number > 0 else (errno.EIO, "a writer was killed")))
    return took_s


def _writer(path: str, size: int, call: int) -> int:
    child = os.fork()
    if child:
        return child
    status = errno.EIO
    try:
        write_file(path, size, call)
        status = 0
    except OSError as error:
        status = error.errno or errno.EIO
    finally:
        os._exit(status)


def _write_out(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Pages of a file that the kernel keeps


def forget_pages(fd: int) -> bool:
    """Write the file out and drop its pages. False if many are still there. Where that cannot be told, they are gone."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        return syscalls.pages_in_memory(fd) * os.sysconf("SC_PAGESIZE") * _FEW < os.fstat(fd).st_size
    return True
