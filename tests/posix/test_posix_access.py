"""Permission bits decide: every class of caller, every bit, every way of using a file or a directory."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.posix.places import Place, make, open_close, owned, write_file
from tests.support.users import ALICE, BOB, NOBODY, ROOT, as_user, errno_as, errno_of_call

GROUP = 3001
READ, WRITE, SEARCH = 4, 2, 1


@dataclass(frozen=True)
class Who:
    """A caller, and the shift of the permission bits that must decide for him; root has none."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    shift: int | None


CALLERS = {
    "owner": Who(ALICE, ALICE, (), 6),
    "owner-in-group": Who(ALICE, GROUP, (), 6),
    "group": Who(BOB, GROUP, (), 3),
    "supplementary": Who(BOB, BOB, (GROUP,), 3),
    "other": Who(NOBODY, NOBODY, (), 0),
    "root": Who(ROOT, ROOT, (), None),
}
BITS = range(8)


def _mode(who: Who, bits: int) -> int:
    """*bits* where they count for *who*, and the opposite everywhere else, so that a wrong class is noticed."""
    shift = 6 if who.shift is None else who.shift
    opposite = (~bits & 7) * 0o111
    if who.shift is None:
        return bits * 0o111
    return (opposite & ~(7 << shift)) | bits << shift


def _allowed(who: Who, bits: int, needed: int) -> bool:
    return who.shift is None or bits & needed == needed


Use = tuple[int, Callable[[str], object]]

FILE_USES: dict[str, Use] = {
    "read": (READ, lambda path: open_close(path, os.O_RDONLY)),
    "write": (WRITE, lambda path: open_close(path, os.O_WRONLY)),
    "append": (WRITE, lambda path: open_close(path, os.O_WRONLY | os.O_APPEND)),
    "both": (READ | WRITE, lambda path: open_close(path, os.O_RDWR)),
    "truncate": (WRITE, lambda path: os.truncate(path, 0)),
    "open-truncate": (WRITE, lambda path: open_close(path, os.O_WRONLY | os.O_TRUNC)),
}

DIRECTORY_USES: dict[str, Use] = {
    "list": (READ, os.listdir),
    "stat-inside": (SEARCH, lambda path: os.lstat(f"{path}/inside")),
    "open-inside": (SEARCH, lambda path: open_close(f"{path}/inside", os.O_RDONLY)),
    "chdir": (SEARCH, os.chdir),
    "create": (WRITE | SEARCH, lambda path: open_close(f"{path}/created", os.O_CREAT | os.O_WRONLY)),
    "mkdir": (WRITE | SEARCH, lambda path: os.mkdir(f"{path}/subdirectory")),
    "mkfifo": (WRITE | SEARCH, lambda path: os.mkfifo(f"{path}/fifo")),
    "symlink": (WRITE | SEARCH, lambda path: os.symlink("to", f"{path}/symlink")),
    "link": (WRITE | SEARCH, lambda path: os.link(f"{path}/inside", f"{path}/linked")),
    "rename": (WRITE | SEARCH, lambda path: os.rename(f"{path}/inside", f"{path}/renamed")),
    "unlink": (WRITE | SEARCH, lambda path: os.unlink(f"{path}/doomed")),
    "rmdir": (WRITE | SEARCH, lambda path: os.rmdir(f"{path}/empty")),
}


def _outcome(who: Who, uses: dict[str, Use], path: str) -> dict[str, int]:
    """The errno of each use, all made by one child."""
    return as_user(
        who.uid,
        lambda: {name: errno_of_call(act, path) for name, (_, act) in uses.items()},
        gid=who.gid,
        groups=who.groups,
    )


def _expected(who: Who, uses: dict[str, Use], bits: int) -> dict[str, int]:
    return {name: 0 if _allowed(who, bits, needed) else errno.EACCES for name, (needed, _) in uses.items()}


def _filled(path: str, who: Who) -> None:
    """What the uses need inside. It is the caller's own, so that protected_hardlinks has no say."""
    for name in ("inside", "doomed"):
        owned(write_file(f"{path}/{name}", b""), 0o666, who.uid, who.gid)
    make("dir", f"{path}/empty", 0o777, who.uid, who.gid)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("caller", CALLERS)
def test_file_bits(place: Place, caller: str, bits: int) -> None:
    who = CALLERS[caller]
    path = place.file(mode=_mode(who, bits), uid=ALICE, gid=GROUP)
    assert _outcome(who, FILE_USES, path) == _expected(who, FILE_USES, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("caller", CALLERS)
def test_directory_bits(room: str, caller: str, bits: int) -> None:
    who = CALLERS[caller]
    path = make("dir", f"{room}/d")
    _filled(path, who)
    owned(path, _mode(who, bits), ALICE, GROUP)
    assert _outcome(who, DIRECTORY_USES, path) == _expected(who, DIRECTORY_USES, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("caller", CALLERS)
def test_the_set_of_a_user_obeys_the_same_bits(place: Place, caller: str, bits: int) -> None:
    """Here the directory itself is at the top: at the mount's root it is a set of that user."""
    who = CALLERS[caller]
    path = place.dir(uid=ALICE, gid=GROUP)
    _filled(path, who)
    os.chmod(path, _mode(who, bits))
    assert _outcome(who, DIRECTORY_USES, path) == _expected(who, DIRECTORY_USES, bits)


WANTED = (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK, os.R_OK | os.X_OK, os.W_OK | os.X_OK)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("caller", CALLERS)
def test_access_answers_what_open_would(place: Place, caller: str, bits: int) -> None:
    who = CALLERS[caller]
    mode = _mode(who, bits)
    path = place.file(mode=mode, uid=ALICE, gid=GROUP)
    got = as_user(
        who.uid, lambda: [os.access(path, wanted) for wanted in WANTED], gid=who.gid, groups=who.groups
    )
    if who.shift is None:
        # Root may read and write anything, and execute what anybody may.
        assert got == [not wanted & os.X_OK or bool(mode & 0o111) for wanted in WANTED]
    else:
        assert got == [bits & wanted == wanted for wanted in WANTED]


@pytest.mark.parametrize("bits", [0, READ, SEARCH, READ | SEARCH, 7])
@pytest.mark.parametrize("caller", CALLERS)
def test_executing_a_program(place: Place, caller: str, bits: int) -> None:
    who = CALLERS[caller]
    program = shutil.which("true")
    assert program is not None
    path = place.path()
    shutil.copy(program, path)
    owned(path, _mode(who, bits), ALICE, GROUP)

    def run() -> int:
        child = os.posix_spawn(path, [path], {})
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    if bits & SEARCH:
        assert as_user(who.uid, run, gid=who.gid, groups=who.groups) == 0
    else:
        assert errno_as(who.uid, run, gid=who.gid, groups=who.groups) == errno.EACCES


def test_permissions_are_checked_at_open_only(place: Place) -> None:
    """An open descriptor goes on working after the mode forbids a new one."""
    path = place.file(data=b"before", mode=0o600, uid=ALICE)

    def keep_using() -> tuple[bytes, int]:
        fd = os.open(path, os.O_RDWR)
        os.chmod(path, 0)
        os.write(fd, b"after.")
        os.lseek(fd, 0, os.SEEK_SET)
        data = os.read(fd, 100)
        os.close(fd)
        return data, os.lstat(path).st_mode & 0o777

    assert as_user(ALICE, keep_using) == (b"after.", 0)
    assert errno_as(ALICE, open_close, path, os.O_RDONLY) == errno.EACCES


def test_losing_the_right_to_search_leaves_an_open_directory_unsearchable(room: str) -> None:
    """Search permission is checked at every step of a path, also from an open directory."""
    path = make("dir", f"{room}/d", 0o700, ALICE)
    make("file", f"{path}/inside", 0o600, ALICE)

    def look_inside() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chmod(path, 0o600)
            os.stat("inside", dir_fd=fd)
        finally:
            os.close(fd)

    assert errno_as(ALICE, look_inside) == errno.EACCES


@pytest.mark.parametrize("depth", [1, 3])
def test_every_directory_on_the_way_must_be_searchable(room: str, depth: int) -> None:
    parts = [f"{room}/a", f"{room}/a/b", f"{room}/a/b/c", f"{room}/a/b/c/d"]
    for part in parts:
        make("dir", part, 0o777)
    target = make("file", f"{parts[-1]}/f", 0o666)
    assert errno_as(ALICE, open_close, target, os.O_RDWR) == 0
    os.chmod(parts[depth - 1], 0o776)
    assert errno_as(ALICE, open_close, target, os.O_RDWR) == errno.EACCES
    assert errno_as(ROOT, open_close, target, os.O_RDWR) == 0
