"""Whether what a thread makes as a user is that user's, and nobody else's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ckfs.model import Owner
from ckfs.policy.advice import Topic
from ckfs.selftest.outcome import Check, Outcome, fail, ok, warn
from ckfs.selftest.place import Place
from ckfs.store.identity import acting_as

_THREADS = 8
_FILES_EACH = 20
_OPEN_TO_ALL = 0o1777


def create(path: str, mode: int = 0o600, access: int = os.O_RDWR) -> int:
    """A new file, open."""
    return os.open(path, access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def _owner(place: Place) -> list[Outcome]:
    check = "identity.owner"
    user = place.users[0]
    room = place.new_room(_OPEN_TO_ALL)
    makes: dict[str, Callable[[str], object]] = {
        "file": lambda path: os.close(create(path)),
        "directory": lambda path: os.mkdir(path, 0o700),
        "symbolic link": lambda path: os.symlink("nowhere", path),
    }
    with acting_as(user):
        for what, make in makes.items():
            path = os.path.join(room, what)
            make(path)
            status = os.lstat(path)
            if status.st_uid != user.uid:
                says = f"a {what} that uid {user.uid} makes belongs to uid {status.st_uid}"
                return [fail(check, says, place.mend(Topic.IDENTITY))]
            if status.st_gid != user.gid:
                says = f"a {what} that gid {user.gid} makes belongs to gid {status.st_gid}"
                return [warn(check, says, place.mend(Topic.IDENTITY))]
    return [ok(check, "what a thread makes as a user belongs to that user")]


def _threads(place: Place) -> list[Outcome]:
    """Each thread's calls are made as whom that thread is, though others of the process are somebody else at the same moment."""
    check = "identity.threads"
    room = place.new_room(_OPEN_TO_ALL)
    wrong: list[str] = []
    together = threading.Barrier(_THREADS)

    def work(number: int) -> None:
        user = place.users[number % len(place.users)]
        try:
            with acting_as(user):
                together.wait()
                for file in range(_FILES_EACH):
                    fd = create(os.path.join(room, f"{number}-{file}"))
                    uid = os.fstat(fd).st_uid
                    os.close(fd)
                    if uid != user.uid:
                        wrong.append(f"what a thread made as uid {user.uid} belongs to uid {uid}")
        except (OSError, threading.BrokenBarrierError) as error:
            together.abort()
            wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        return [fail(check, wrong[0], place.mend(Topic.IDENTITY))]
    return [ok(check, f"also while {_THREADS} threads are different users at the same moment")]


def _closed(place: Place) -> list[Outcome]:
    check = "identity.closed"
    one, other = place.users
    room = place.new_room(_OPEN_TO_ALL)
    directory, file = os.path.join(room, "closed"), os.path.join(room, "file")
    with acting_as(one):
        os.mkdir(directory, 0o700)
        os.close(create(os.path.join(directory, "inside")))
        os.close(create(file, 0o600))
    attempts: dict[str, Callable[[], object]] = {
        "lists another's closed directory": lambda: os.listdir(directory),
        "looks into another's closed directory": lambda: os.stat(os.path.join(directory, "inside")),
        "opens another's closed file": lambda: os.close(os.open(file, os.O_RDONLY)),
        "removes another's file": lambda: os.unlink(file),
    }
    with acting_as(other):
        for what, attempt in attempts.items():
            if not _is_refused(attempt):
                return [fail(check, f"uid {other.uid} {what}", place.mend(Topic.IDENTITY))]
    return [ok(check, "a user is kept out of what is another's and closed")]


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except PermissionError:
        return True
    return False


def _handle(place: Place) -> list[Outcome]:
    """ckfs opens a file as its owner, and then reads and writes it from any thread."""
    check = "identity.handle"
    user = place.users[0]
    path = os.path.join(place.new_room(_OPEN_TO_ALL), "file")
    with acting_as(user):
        fd = create(path, 0o400)
    try:
        for step, act in _handle_steps(fd, user):
            try:
                act()
            except OSError as error:
                says = f"{step}: {error.strerror}"
                return [fail(check, says, place.mend(Topic.IDENTITY))]
        if os.pread(fd, 5, 0) != b"image":
            return [fail(check, "what was written through an open file is not there")]
    finally:
        os.close(fd)
    return [
        ok(check, "a file that a user opened is read and written by other threads, also if its mode is 0400")
    ]


def _handle_steps(fd: int, user: Owner) -> list[tuple[str, Callable[[], object]]]:
    def as_user() -> None:
        with acting_as(user):
            os.fchmod(fd, 0o600)
            os.utime(fd, ns=(1_000_000_000, 2_000_000_000))

    return [
        ("writing to an open file of a user as root", lambda: os.pwrite(fd, b"image", 0)),
        ("syncing an open file of a user as root", lambda: os.fsync(fd)),
        ("changing mode and times of an open file as its owner", as_user),
    ]


CHECKS = (
    Check(("identity.owner",), _owner),
    Check(("identity.threads",), _threads),
    Check(("identity.closed",), _closed),
    Check(("identity.handle",), _handle),
)
