"""Questions that two mounts answer each other at once, to find out how late each sees what the other does: three files in ``mounts/``.

::

    mounts/<B>.asked      a symbolic link that nobody follows: the mount A asks B, which looks for that at each beat
    mounts/<A>.asks       what A says: its client of the file system, whom it asks, and a dot for each question so far
    mounts/<B>.answers    what B says: the same, with a dot for each answer so far

Questions and answers are numbered from 1. All questions, and answers with an odd number, are written at the end of the file in place;
an answer with an even number is a new file that takes the name of the last: clients of network file systems may keep the contents of files, their sizes, or to which
file a name leads, each for a time of its own. A question changes no name, since clients ask the server anew for what is in a directory
that they have changed. Only the service account can write there.

All calls are synchronous, for worker threads; they raise OSError as the store does.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ckfs.model import Owner
from ckfs.names import MountId
from ckfs.store.mounts import ANSWERS, ASKED, ASKS, is_id
from ckfs.store.mountsdirectory import MountsDirectory

_NEW = b"~"
_MOST_BYTES = 1024
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Voice(enum.Enum):
    """Which of its two files a mount says something in."""

    ASKS = ASKS
    ANSWERS = ANSWERS


@dataclass(frozen=True, slots=True)
class Said:
    """*client* is whose caches the other looks through: two mounts above one client see the same whatever they do."""

    client: bytes
    to: MountId
    number: int


class Exchanges:
    """In the store whose root is *root_fd*, kept by *service*. *boot* tells running kernels apart."""

    def __init__(self, root_fd: int, service: Owner, boot: bytes, *, read_only: bool = False) -> None:
        self._directory = MountsDirectory(root_fd, service, read_only)
        self._boot = boot
        self.changes = 0
        """Is another number whenever this object has changed names in the directory, or is about to."""

    def client(self) -> bytes:
        """Of this mount: on one running kernel each mounted file system has a number of its own."""
        return b"%s:%x" % (self._boot, os.fstat(self._directory.root_fd).st_dev)

    # Who asks

    def ask(self, own: MountId, other: MountId) -> bool:
        """Let *other* know that *own* wants answers; False if another mount is asking it, or it has ended."""
        with self._directory.changing() as directory, self._changing_names():
            try:
                os.stat(other, dir_fd=directory, follow_symlinks=False)
                os.symlink(own, other + ASKED, dir_fd=directory)
            except (FileExistsError, FileNotFoundError):
                return False
            return True

    def asker(self, own: MountId) -> MountId | None:
        """Who asks *own*."""
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            found = os.readlink(own + ASKED, dir_fd=directory)
            return MountId(found) if is_id(found) else None
        return None

    def end_asking(self, own: MountId, other: MountId) -> None:
        """*own* wants no more answers of *other*."""
        if self.asker(other) == own:
            self._remove(other + ASKED)
        self.fall_silent(own, Voice.ASKS)

    def dismiss(self, own: MountId) -> None:
        """*own* answers no more, whoever asks."""
        self._remove(own + ASKED)
        self.fall_silent(own, Voice.ANSWERS)

    # What is said

    def begin(self, own: MountId, voice: Voice, to: MountId) -> None:
        """Nothing yet, to *to*."""
        with self._directory.changing() as directory, self._changing_names():
            _put(directory, own + voice.value, Said(self.client(), to, 0))

    def say(self, own: MountId, voice: Voice, to: MountId, number: int) -> None:
        """The question or answer of that *number*, which comes after the last."""
        said = Said(self.client(), to, number)
        with self._directory.changing() as directory:
            if voice is Voice.ANSWERS and number % 2 == 0:
                with self._changing_names():
                    _put(directory, own + voice.value, said)
                return
            fd = os.open(own + voice.value, os.O_WRONLY | _FLAGS, dir_fd=directory)
            try:
                os.pwrite(fd, b".", len(_encoded(said)) - 1)
            finally:
                os.close(fd)

    def heard(self, other: MountId, voice: Voice, *, after: Said | None = None) -> Said | None:
        """What *other* says, as far as both its size and its content tell; None if it says nothing. As long as the size is that of
        what it said *after* nothing is opened, since some clients ask the server for attributes whenever they open."""
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            size = os.stat(other + voice.value, dir_fd=directory, follow_symlinks=False).st_size
            if after is not None and size == len(_encoded(after)):
                return after
            fd = os.open(other + voice.value, os.O_RDONLY | _FLAGS, dir_fd=directory)
            try:
                return _decoded(os.pread(fd, min(size, _MOST_BYTES), 0))
            finally:
                os.close(fd)
        return None

    def fall_silent(self, own: MountId, voice: Voice) -> None:
        self._remove(own + voice.value)

    # The directory

    def _remove(self, name: bytes) -> None:
        with self._directory.changing() as directory, self._changing_names():
            for each in (name, name + _NEW):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each, dir_fd=directory)

    @contextmanager
    def _changing_names(self) -> Iterator[None]:
        self.changes += 1
        try:
            yield
        finally:
            self.changes += 1


def _encoded(said: Said) -> bytes:
    return b"%s;%s;%s" % (said.client, said.to, b"." * said.number)


def _decoded(raw: bytes) -> Said | None:
    fields = raw.split(b";")
    if len(fields) != 3 or not is_id(fields[1]) or fields[2].strip(b"."):
        return None
    return Said(fields[0], MountId(fields[1]), len(fields[2]))


def _put(directory: int, name: bytes, said: Said) -> None:
    fd = os.open(name + _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o644, dir_fd=directory)
    try:
        os.pwrite(fd, _encoded(said), 0)
    finally:
        os.close(fd)
    os.rename(name + _NEW, name, src_dir_fd=directory, dst_dir_fd=directory)
