"""Several processes that want the same names at the same moment: exactly one may get each.

What takes a lease, an owner, or a term in ckfs is one of these steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

NAMES = 40
"""How many names the contenders go through, in the same order."""
CONTENDERS = 4
"""Of each mount."""
ATTRIBUTE = "user.ckfs.selftest"


@dataclass(frozen=True, slots=True)
class Act:
    """*take* gets the path that is wanted, and one of the contender's own, which *prepare* has made or which is free; it raises *lost* if another was faster.
    *common* makes what all of them want, in advance."""

    take: Callable[[str, str], object]
    lost: type[OSError] = FileExistsError
    prepare: Callable[[str], object] | None = None
    common: Callable[[str], object] | None = None


def _create(path: str, _: str = "") -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644))


ACTS: dict[str, Act] = {
    "create": Act(_create),
    "mkdir": Act(lambda path, _: os.mkdir(path)),
    "symlink": Act(lambda path, own: os.symlink(os.path.basename(own), path)),
    "link": Act(lambda path, own: os.link(own, path, follow_symlinks=False), prepare=_create),
    "rename": Act(os.rename, lost=FileNotFoundError, common=_create),
    "attribute": Act(
        lambda path, own: os.setxattr(
            path, ATTRIBUTE, os.path.basename(own).encode(), os.XATTR_CREATE, follow_symlinks=False
        ),
        common=_create,
    ),
}


def wanted(room: str, number: int) -> str:
    return os.path.join(room, f"wanted-{number}")


@dataclass(frozen=True, slots=True)
class Won:
    """By one contender: the numbers of the names, and what went wrong besides losing."""

    numbers: tuple[int, ...]
    trouble: str = ""


@dataclass(slots=True)
class Contest:
    """The contenders of one mount, in processes of their own, which wait for :meth:`go`. *room* is the directory of the names, *own*
    another one, of which names that begin with *tag* are theirs."""

    act: str
    room: str
    own: str
    tag: str
    _barrier: int = -1
    _answers: list[int] = field(default_factory=list)
    _pids: list[int] = field(default_factory=list)

    def get_ready(self) -> None:
        waiting, self._barrier = os.pipe()
        for number in range(CONTENDERS):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(self._barrier)
                self._contend(number, waiting, writing)
            os.close(writing)
            self._answers.append(reading)
            self._pids.append(pid)
        os.close(waiting)
        for reading in self._answers:
            os.read(reading, 1)  # each says that it is ready

    def _contend(self, number: int, waiting: int, writing: int) -> None:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            act = ACTS[self.act]
            owns = [os.path.join(self.own, f"{self.tag}-{number}-{i}") for i in range(NAMES)]
            if act.prepare is not None:
                for own in owns:
                    act.prepare(own)
            os.write(writing, b".")
            os.read(waiting, 1)  # nothing comes but its end, for all at once
            os.write(writing, json.dumps(_taken(act, self.room, owns)).encode())
            status = 0
        except OSError as error:
            os.write(writing, b"." + json.dumps([[], error.strerror or str(error)]).encode())
        finally:
            os._exit(status)

    def go(self) -> None:
        os.close(self._barrier)

    def won(self) -> list[Won]:
        answers = [_read_all(reading).lstrip(b".") for reading in self._answers]
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        return [_decoded(answer) for answer in answers]


def _taken(act: Act, room: str, owns: list[str]) -> tuple[list[int], str]:
    numbers = []
    for number, own in enumerate(owns):
        try:
            act.take(wanted(room, number), own)
            numbers.append(number)
        except act.lost:
            continue
        except OSError as error:
            return numbers, error.strerror or str(error)
    return numbers, ""


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _decoded(answer: bytes) -> Won:
    try:
        numbers, trouble = json.loads(answer)
    except ValueError:
        return Won((), "one ended without an answer")
    return Won(tuple(map(int, numbers)), str(trouble))
