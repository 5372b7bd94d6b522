"""Attacks by users who may log in to a node: on others' images, on names, on the daemon.

Every test is one way that somebody would try. Mallory is whoever must not get away with it, Alice the victim.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from tests.support.agents import Agent, race
from tests.support.mounting import Mount, command, environment, mounted, run_ckfs
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, errno_of_call, raises_errno

pytestmark = pytest.mark.root

MALLORY = BOB
SECRET = b"what was in the memory of the job"
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["module_mount_on_plain", "module_mount_on_nfs"], ids=["plain", "nfs"])
def module_mount(request: pytest.FixtureRequest) -> Mount:
    """On a plain directory, and on what behaves like NFS whose server squashes root."""
    return cast("Mount", request.getfixturevalue(cast("str", request.param)))


NO_EXCHANGE = "like NFS, this store cannot exchange names"
NOT_ON_NFS = {
    "exchanged": NO_EXCHANGE,
    "test_who_stands_in_a_directory_makes_nothing": NO_EXCHANGE,
    "test_no_name_forges_a_line": "the log has lines of sets that followed to their owners, too",
    "test_roots_answer_leads_to_the_file": "root, who is nobody there, cannot go where the answer leads",
    "test_the_former_owner_creates_nothing": "until a set is copied its files are where the former owner's mount knew them",
}
"""Parts of names of tests that are left out there (conftest.py), with what the store cannot do."""


@pytest.fixture
def set_name() -> str:
    """The name of a set that no other test has."""
    return f"set-{next(_numbers)}"


def _checked(result: int, name: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def rename(old: str, new: str, flags: int) -> None:
    _checked(
        _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)), old
    )


def link_descriptor(fd: int, new: str) -> None:
    """As linkat(2)'s manual page has it: a new name for an open file."""
    old = b"/proc/self/fd/%d" % fd
    _checked(_libc.linkat(AT_FDCWD, old, AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW), new)


def create(path: str, mode: int = 0o600, content: bytes = b"") -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def _victims_set(path: str, mode: int) -> None:
    os.mkdir(path)
    os.chmod(path, mode)
    create(f"{path}/secret", content=SECRET)
    os.setxattr(f"{path}/secret", "user.secret", SECRET)


def victims_set(mount: Mount, name: str, mode: int = 0o777) -> str:
    """A set of Alice's in which everybody may make, rename and remove names, and an image that is hers alone."""
    path = str(mount.path / name)
    as_user(ALICE, _victims_set, path, mode)
    return path


def outcome(call: Callable[[], object]) -> object:
    """What *call* gave, or the errno that it failed with."""
    try:
        return call()
    except OSError as error:
        return error.errno


# Reading what the mode forbids


def test_no_ordinary_way_leads_to_an_image_that_is_its_owners_alone(
    module_mount: Mount, set_name: str
) -> None:
    path = victims_set(module_mount, set_name)
    image, own = f"{path}/secret", str(module_mount.path / f"own-{set_name}")
    as_user(MALLORY, os.mkdir, own)
    ways: dict[str, Callable[[], object]] = {
        "open": lambda: os.open(image, os.O_RDONLY),
        "open for writing": lambda: os.open(image, os.O_WRONLY),
        "O_PATH and back": lambda: os.open(f"/proc/self/fd/{os.open(image, os.O_PATH)}", os.O_RDONLY),
        "truncate": lambda: os.truncate(image, 0),
        "getxattr": lambda: os.getxattr(image, "user.secret"),
        "getxattr of ckfs's": lambda: os.getxattr(image, "user.ckfs.state"),
        "setxattr": lambda: os.setxattr(image, "user.secret", b""),
        "chmod": lambda: os.chmod(image, 0o666),
        "chown": lambda: os.chown(image, MALLORY, -1),
        "utime": lambda: os.utime(image),
        "link into an own set": lambda: os.link(image, f"{own}/stolen"),
        "link to the top": lambda: os.link(image, f"{own}-stolen"),
        "rename into an own set": lambda: os.rename(image, f"{own}/stolen"),
        "rename to the top": lambda: os.rename(image, f"{own}-stolen"),
        "execute": lambda: os.execv(image, [image]),
    }
    refused = {errno.EACCES, errno.EPERM, errno.EXDEV}
    assert {name for name, way in ways.items() if errno_as(MALLORY, way) not in refused} == set()
    assert as_user(ALICE, Path(image).read_bytes) == SECRET


@pytest.mark.parametrize("how", ["link", "rename", "rename of its directory"])
def test_another_name_makes_an_image_no_more_readable(module_mount: Mount, set_name: str, how: str) -> None:
    path = victims_set(module_mount, set_name)
    as_user(MALLORY, os.mkdir, f"{path}/mallorys", 0o777)
    match how:
        case "link":
            # Linux itself may forbid links to what one cannot write (fs.protected_hardlinks).
            assert errno_as(MALLORY, os.link, f"{path}/secret", f"{path}/mallorys/s") in (0, errno.EPERM)
        case "rename":
            as_user(MALLORY, os.rename, f"{path}/secret", f"{path}/mallorys/s")
        case _:
            as_user(MALLORY, os.rename, f"{path}/secret", f"{path}/mallorys/s")
            as_user(MALLORY, os.rename, f"{path}/mallorys", f"{path}/renamed")
            as_user(MALLORY, os.rename, f"{path}/renamed", f"{path}/mallorys")
    opened = errno_as(MALLORY, os.open, f"{path}/mallorys/s", os.O_RDONLY)
    assert opened in (errno.EACCES, errno.ENOENT)


Misled = Callable[[str, str], None]
"""Lets the name of the first lead to the image of the second, after somebody has got hold of what the first was."""


def _removed(bait: str, image: str) -> None:
    os.unlink(bait)
    os.rename(image, bait)


def _replaced(bait: str, image: str) -> None:
    os.rename(image, bait)


def _renamed(bait: str, image: str) -> None:
    os.rename(bait, f"{bait}.away")
    os.rename(image, bait)


def _exchanged(bait: str, image: str) -> None:
    rename(bait, image, RENAME_EXCHANGE)


MISLED: dict[str, Misled] = {
    "removed": _removed,
    "replaced": _replaced,
    "renamed": _renamed,
    "exchanged": _exchanged,
}


@pytest.fixture(scope="module")
def two(root_and_fuse: None, module_mount: Mount, module_workdir: Path) -> Iterator[tuple[Mount, Mount]]:
    """Two mounts of one store, shared by the tests of this module."""
    other_path = module_workdir / f"other-{module_mount.path.name}"
    with mounted(module_mount.store, other_path, node="other", options=module_mount.options) as other:
        yield module_mount, other


@pytest.fixture(params=["one mount", "two mounts"])
def sides(request: pytest.FixtureRequest, two: tuple[Mount, Mount]) -> tuple[Mount, Mount]:
    """Where something is held, and where names change behind it: the same mount, or another."""
    return two[0], two[0 if request.param == "one mount" else 1]


@pytest.mark.parametrize("misled", MISLED)
def test_what_was_a_symlink_never_reads_as_another_file(
    sides: tuple[Mount, Mount], set_name: str, misled: str
) -> None:
    held, elsewhere = (victims_set(sides[0], set_name), str(sides[1].path / set_name))

    def attack() -> object:
        os.symlink("bait", f"{held}/bait")
        fd = os.open(f"{held}/bait", os.O_PATH | os.O_NOFOLLOW)
        MISLED[misled](f"{elsewhere}/bait", f"{elsewhere}/secret")
        return outcome(lambda: os.readlink("", dir_fd=fd))

    assert as_user(MALLORY, attack) in ("bait", errno.ESTALE, errno.ENOENT)


@pytest.mark.parametrize("misled", MISLED)
@pytest.mark.parametrize("call", ["list", "get", "set", "remove", "state"])
def test_the_attributes_of_a_file_are_never_anothers(
    sides: tuple[Mount, Mount], set_name: str, misled: str, call: str
) -> None:
    held, elsewhere = (victims_set(sides[0], set_name), str(sides[1].path / set_name))

    def attack() -> object:
        create(f"{held}/bait", 0o600, b"bait")
        fd = os.open(f"{held}/bait", os.O_PATH)
        MISLED[misled](f"{elsewhere}/bait", f"{elsewhere}/secret")
        path = f"/proc/self/fd/{fd}"
        match call:
            case "list":
                return outcome(lambda: os.listxattr(path))
            case "get":
                return outcome(lambda: os.getxattr(path, "user.secret"))
            case "set":
                return outcome(lambda: os.setxattr(path, "user.secret", b"forged"))
            case "remove":
                return outcome(lambda: os.removexattr(path, "user.secret"))
            case _:
                return outcome(lambda: os.getxattr(path, "user.ckfs.state"))

    answer = as_user(MALLORY, attack)
    assert answer in ([], None, b"complete", errno.ESTALE, errno.ENODATA, errno.ENOENT)
    image = next(Path(held, name) for name in ("bait", "secret") if _is_victims(Path(held, name)))
    assert os.getxattr(image, "user.secret") == SECRET
    assert as_user(ALICE, os.getxattr, image, "user.secret") == SECRET


def _is_victims(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_uid == ALICE
    return False


@pytest.mark.parametrize("misled", MISLED)
def test_a_link_to_an_open_file_never_links_another(
    sides: tuple[Mount, Mount], set_name: str, misled: str
) -> None:
    held, elsewhere = (victims_set(sides[0], set_name), str(sides[1].path / set_name))

    def attack() -> object:
        create(f"{held}/kept", 0o600, b"bait")
        os.link(f"{held}/kept", f"{held}/bait")
        fd = os.open(f"{held}/bait", os.O_PATH)
        MISLED[misled](f"{elsewhere}/bait", f"{elsewhere}/secret")
        return outcome(lambda: link_descriptor(fd, f"{held}/stolen"))

    answer = as_user(MALLORY, attack)
    assert answer in (None, errno.ESTALE, errno.ENOENT, errno.EPERM)
    assert not _is_victims(Path(held, "stolen"))


@pytest.mark.parametrize("misled", MISLED)
@pytest.mark.parametrize("call", ["open", "truncate", "chmod", "utime"])
def test_a_held_file_is_opened_and_changed_as_itself_or_not_at_all(
    sides: tuple[Mount, Mount], set_name: str, misled: str, call: str
) -> None:
    held, elsewhere = (victims_set(sides[0], set_name), str(sides[1].path / set_name))
    before = os.stat(f"{held}/secret")

    def attack() -> object:
        create(f"{held}/bait", 0o600, b"bait")
        fd = os.open(f"{held}/bait", os.O_PATH)
        MISLED[misled](f"{elsewhere}/bait", f"{elsewhere}/secret")
        path = f"/proc/self/fd/{fd}"
        match call:
            case "open":
                return outcome(Path(path).read_bytes)
            case "truncate":
                return outcome(lambda: os.truncate(path, 0))
            case "chmod":
                return outcome(lambda: os.chmod(path, 0o666))
            case _:
                return outcome(lambda: os.utime(path, (1, 1)))

    assert as_user(MALLORY, attack) in (None, b"bait", errno.ESTALE, errno.ENOENT)
    image = next(Path(held, name) for name in ("bait", "secret") if _is_victims(Path(held, name)))
    after = image.stat()
    assert (after.st_size, after.st_mode, after.st_mtime_ns) == (
        before.st_size,
        before.st_mode,
        before.st_mtime_ns,
    )


# Directories that are swapped behind somebody's back


def test_who_stands_in_a_directory_makes_nothing_in_the_one_that_took_its_place(
    two: tuple[Mount, Mount], set_name: str
) -> None:
    here, there = (str(mount.path / set_name) for mount in two)
    as_user(ALICE, _victims_set, here, 0o777)
    as_user(ALICE, os.mkdir, f"{here}/one", 0o700)
    as_user(ALICE, os.mkdir, f"{here}/other", 0o700)
    with Agent(ALICE) as standing:
        standing.do(os.chdir, f"{here}/one")
        as_user(MALLORY, rename, f"{there}/one", f"{there}/other", RENAME_EXCHANGE)
        for make in (os.mkdir, os.mkfifo, create):
            outcome(partial(standing.do, make, "new"))
            outcome(partial(standing.do, os.unlink, "new"))
            outcome(partial(standing.do, make, make.__name__))
        # What was "one" is now "other", and nothing may have come to be in the place of the name.
        assert os.listdir(f"{there}/one") == []


@pytest.mark.parametrize("who", [ALICE, ROOT])
def test_who_stands_in_a_set_reaches_nothing_in_the_one_that_took_its_name(
    two: tuple[Mount, Mount], set_name: str, who: int
) -> None:
    here, there = (str(mount.path / set_name) for mount in two)
    as_user(MALLORY, _victims_set, here, 0o777)
    with Agent(who) as standing:
        standing.do(os.chdir, here)
        as_user(MALLORY, shutil.rmtree, there)
        as_user(ALICE, _victims_set, there, 0o700)
        for call in (
            partial(os.unlink, "secret"),
            partial(os.rename, "secret", "away"),
            partial(create, "new"),
            partial(os.open, "secret", os.O_RDONLY),
        ):
            with raises_errno(errno.ESTALE, errno.ENOENT):
                standing.do(call)
    assert as_user(ALICE, os.listdir, there) == ["secret"]


def test_the_former_owner_creates_nothing_in_a_batch_set_through_a_mount_that_knew_him(
    two: tuple[Mount, Mount],
) -> None:
    name = f"{next(_numbers)}.server.CK"
    here, there = (str(mount.path / name) for mount in two)
    os.mkdir(here)
    os.chmod(here, 0o1777)
    os.chown(here, MALLORY, MALLORY)
    with Agent(MALLORY) as standing:
        standing.do(os.chdir, there)
        standing.do(os.listdir, ".")
        os.chown(here, ALICE, ALICE)
        with raises_errno(errno.EACCES, errno.ESTALE):
            standing.do(create, "evil")
    assert os.listdir(here) == []


def _swap_for_ever(path: str, outside: str) -> None:
    """Exchange the directory *path* and a symlink to *outside*, until killed."""
    os.symlink(outside, f"{path}.link")
    while True:
        with contextlib.suppress(OSError):
            rename(path, f"{path}.link", RENAME_EXCHANGE)


@pytest.mark.parametrize("walker", ["give", "chown -R", "rm -r", "ckfs ls"])
def test_a_symlink_in_a_directorys_place_leads_roots_walk_nowhere(
    mount: Mount, workdir: Path, set_name: str, walker: str
) -> None:
    outside = workdir / "outside"
    outside.mkdir()
    for index in range(20):
        (outside / f"f{index}").write_bytes(b"")
    path = str(mount.path / set_name)
    as_user(MALLORY, os.mkdir, path, 0o777)
    as_user(MALLORY, os.mkdir, f"{path}/d", 0o777)
    for index in range(20):
        as_user(MALLORY, create, f"{path}/d/f{index}")
    with subprocess_as(MALLORY, partial(_swap_for_ever, f"{path}/d", str(outside))):
        for turn in range(10):
            uid = (ALICE, MALLORY)[turn % 2]
            match walker:
                case "give":
                    os.chown(path, uid, uid)
                case "chown -R":
                    subprocess.run(["chown", "-R", f"{uid}:{uid}", path], capture_output=True, check=False)
                case "ckfs ls":
                    listing = run_ckfs("ls", mount.path)
                    assert (listing.returncode, listing.stderr) == (0, "")
                case _:
                    subprocess.run(["rm", "-rf", f"{path}/d"], capture_output=True, check=False)
                    outcome(partial(os.mkdir, f"{path}/d", 0o777))
    assert {(entry.stat().st_uid, entry.stat().st_size) for entry in outside.iterdir()} == {(ROOT, 0)}
    assert len(list(outside.iterdir())) == 20
    physical = [path for path in (mount.store / "users").rglob("*") if path.is_symlink()]
    assert physical == [], "a symlink of a user's is a placeholder in the store, which nothing follows"


@contextlib.contextmanager
def subprocess_as(uid: int, call: Callable[[], None]) -> Iterator[None]:
    """*call* in a child that is killed at the end."""
    with Agent(uid) as agent:
        agent.begin(call)
        try:
            yield
        finally:
            os.kill(agent._pid, 9)


# Names


def test_who_has_made_a_directory_at_the_top_has_it(two: tuple[Mount, Mount]) -> None:
    """mkdir(2) that succeeds is how programs know that a directory is theirs to write images into."""
    rounds = 250
    first = next(_numbers)
    here, there = (mount.path for mount in two)
    movers, makers = itertools.count(), itertools.count()

    def mallory() -> int:
        turn = next(movers)
        own = here / f"own-{first}-{turn}"
        own.mkdir(mode=0o777)
        return errno_of_call(os.rename, own, here / f"top-{first}-{turn}")

    def alice() -> int:
        turn = next(makers)
        for _ in range(turn % 7):
            os.path.lexists(there / "nothing")  # so that the two meet at another point each time
        return errno_of_call(os.mkdir, there / f"top-{first}-{turn}", 0o700)

    results = race([(MALLORY, mallory), (ALICE, alice)], rounds)
    made = [turn for turn, (_, answer) in enumerate(results) if answer == 0]
    assert [turn for turn in made if (here / f"top-{first}-{turn}").stat().st_uid != ALICE] == []
    assert [turn for turn, answers in enumerate(results) if answers == [0, 0]] == []


@pytest.mark.parametrize("way", ["link", "rename of a file", "RENAME_NOREPLACE", "out of a set"])
def test_who_has_made_a_file_at_the_top_exclusively_has_it(two: tuple[Mount, Mount], way: str) -> None:
    rounds = 80
    first = next(_numbers)
    here, there = (mount.path for mount in two)
    as_user(MALLORY, os.mkdir, here / f"own-{first}")
    movers, makers = itertools.count(), itertools.count()

    def mallory() -> int:
        turn = next(movers)
        own, top = str(here / f"own-{first}-{turn}"), str(here / f"top-{first}-{turn}")
        if way == "out of a set":
            own = str(here / f"own-{first}" / str(turn))
        create(own)
        match way:
            case "link":
                return errno_of_call(os.link, own, top)
            case "RENAME_NOREPLACE":
                return errno_of_call(rename, own, top, RENAME_NOREPLACE)
            case _:
                return errno_of_call(os.rename, own, top)

    def alice() -> int:
        turn = next(makers)
        for _ in range(turn % 7):
            os.path.lexists(there / "nothing")
        return errno_of_call(create, str(there / f"top-{first}-{turn}"))

    results = race([(MALLORY, mallory), (ALICE, alice)], rounds)
    made = [turn for turn, (_, answer) in enumerate(results) if answer == 0]
    assert [turn for turn in made if (here / f"top-{first}-{turn}").stat().st_uid != ALICE] == []


NAMES = {
    "255 bytes": b"n" * 255,
    "255 bytes of no encoding": b"\xff" * 255,
    "newline": b"a\n2026-01-01 00:00:00,000 INFO forged",
    "escape": b"\x1b[2J\x1b]0;forged\x07",
    "carriage return": b"a\rforged",
    "separator of lines": "a\u2028forged\u0085".encode(),
    "right to left": "a\u202egrof".encode(),
    "the store's own form": b"1:5f3a:0.0:0.0:x",
    "format": b"%s%n%d{0}",
    "dash": b"-rf",
    "backslash": b"a\\x0a",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_set_of_any_name_is_a_set_like_any_other(module_mount: Mount, kind: str) -> None:
    path = os.path.join(os.fsencode(module_mount.path), NAMES[kind])
    other = os.path.join(os.fsencode(module_mount.path), NAMES[kind][::-1][:254] + b"2")
    as_user(ALICE, os.mkdir, path)
    as_user(ALICE, create, os.path.join(os.fsdecode(path), "image"))
    assert os.getxattr(path, "user.ckfs.set") == NAMES[kind]
    os.chown(path, BOB, BOB)
    as_user(BOB, os.rename, path, other)
    assert os.getxattr(other, "user.ckfs.owner") == b"2102"
    assert os.listdir(other) == [b"image"]
    os.unlink(os.path.join(other, b"image"))
    as_user(BOB, os.rmdir, other)


@pytest.mark.parametrize("kind", NAMES)
def test_no_name_forges_a_line_of_the_log_or_of_a_listing(module_mount: Mount, kind: str) -> None:
    name = NAMES[kind][-251:] + b".CK"
    path = os.path.join(os.fsencode(module_mount.path), name)
    before = module_mount.log().count("\n")
    os.mkdir(path)
    os.chown(path, ALICE, ALICE)
    written = module_mount.log().split("\n")[before:]
    assert len(written) == 3, "one line for each of the two, and the end"
    assert all(line.isprintable() and " INFO set " in line for line in written[:2])
    listing = run_ckfs("ls", os.fsdecode(path))
    assert listing.returncode == 0
    assert all(line.isprintable() for line in listing.stdout.split("\n"))
    as_user(ALICE, os.rmdir, path)


# What ckfs keeps with its files

OWN = [
    b"user.ckfs",
    b"user.ckfs.",
    b"user.ckfs.uid",
    b"user.ckfs.owner",
    b"user.ckfs.anything",
    b"user.ckfs.ckfs",
]
KNOWN = {b"user.ckfs.uid", b"user.ckfs.owner"}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("uid", [ALICE, ROOT])
@pytest.mark.parametrize("entry", ["", "/secret"])
def test_ckfs_own_attributes_are_neither_set_nor_removed_nor_listed(
    module_mount: Mount, set_name: str, name: bytes, uid: int, entry: str
) -> None:
    path = victims_set(module_mount, set_name) + entry
    known, before = name in KNOWN, outcome(lambda: os.getxattr(path, name))
    assert (before == errno.ENODATA) != known
    value = b"1;i=1;u=0;g=0;m=104777;r=0;s=c;n="
    gives = uid == ROOT and name == b"user.ckfs.owner" and not entry
    assert errno_as(uid, os.setxattr, path, name, value) == (errno.EINVAL if gives else errno.EPERM)
    assert errno_as(uid, os.removexattr, path, name) == errno.EPERM
    assert as_user(uid, os.listxattr, path) == ([] if not entry else ["user.secret"])
    assert outcome(lambda: os.getxattr(path, name)) == before


def test_what_only_looks_like_ckfs_own_is_the_users(module_mount: Mount, set_name: str) -> None:
    path = victims_set(module_mount, set_name)
    for name in ("user.ckfsx", "user.CKFS", "user.ckfs-x", "user.ckf"):
        as_user(ALICE, os.setxattr, path, name, b"x")
    assert sorted(as_user(ALICE, os.listxattr, path)) == [
        "user.CKFS",
        "user.ckf",
        "user.ckfs-x",
        "user.ckfsx",
    ]


def test_a_copy_takes_the_users_attributes_along_and_none_of_ckfs(
    module_mount: Mount, workdir: Path, set_name: str
) -> None:
    path, copy = victims_set(module_mount, set_name), workdir / "copy"
    subprocess.run(["cp", "-a", path, copy], check=True)
    assert os.listxattr(copy) == []
    assert os.listxattr(copy / "secret") == ["user.secret"]
    back = f"{path}-back"
    subprocess.run(["cp", "-a", copy, back], check=True)
    assert os.stat(f"{back}/secret").st_ino != os.stat(f"{path}/secret").st_ino


@pytest.mark.parametrize("name", ["trusted.ckfs.path", "trusted.x", "security.x", "system.x"])
def test_users_are_not_told_where_in_the_store_their_files_lie(
    module_mount: Mount, set_name: str, name: str
) -> None:
    path = victims_set(module_mount, set_name)
    assert errno_as(ALICE, os.getxattr, f"{path}/secret", name) in (errno.ENODATA, errno.EOPNOTSUPP)
    assert as_user(ALICE, os.listxattr, f"{path}/secret") == ["user.secret"]
    with raises_errno(errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr(f"{path}/secret", name, b"/etc/shadow")


def test_roots_answer_leads_to_the_file(module_mount: Mount, set_name: str) -> None:
    path = victims_set(module_mount, set_name)
    assert Path(os.fsdecode(os.getxattr(f"{path}/secret", "trusted.ckfs.path"))).read_bytes() == SECRET


def test_attributes_too_large_for_the_store_leave_the_file_usable(module_mount: Mount, set_name: str) -> None:
    path = victims_set(module_mount, set_name)

    def stuff() -> int:
        for size in (65536, 30000, 4000, 2000, 900, 400, 200, 100, 50, 20, 10, 5, 1):
            for index in itertools.count():
                if errno_of_call(os.setxattr, f"{path}/secret", f"user.{size}-{index}", b"x" * size):
                    break
                if index > 200:
                    return 0
        return 0

    as_user(ALICE, stuff)
    assert as_user(ALICE, Path(f"{path}/secret").read_bytes) == SECRET
    as_user(ALICE, os.chmod, f"{path}/secret", 0o400)
    os.chown(path, BOB, BOB)
    assert os.getxattr(path, "user.ckfs.uid") == b"2102"
    assert os.stat(f"{path}/secret").st_size == len(SECRET)


# Being more than one is


def in_user_namespace(uid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command by *uid*, who has made himself root of a user namespace of his own."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", *arguments],
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


def test_root_of_a_user_namespace_is_a_user(module_mount: Mount, set_name: str) -> None:
    if in_user_namespace(MALLORY, "true").returncode != 0:
        pytest.skip("users may not make user namespaces here")
    path, own = victims_set(module_mount, set_name), str(module_mount.path / f"own-{set_name}")
    assert in_user_namespace(MALLORY, "mkdir", own).returncode == 0
    assert os.stat(own).st_uid == MALLORY
    refused = [
        ("mkdir", str(module_mount.path / f"{next(_numbers)}.server.CK")),
        ("cat", f"{path}/secret"),
        ("chown", "1:1", own),
        ("setfattr", "-n", "user.ckfs.owner", "-v", "2101", own),
        ("getfattr", "-n", "trusted.ckfs.path", own),
        ("mknod", f"{own}/device", "b", "8", "0"),
        ("mkdir", str(module_mount.path / f"{next(_numbers)}.CK")),
    ]
    assert [
        arguments for arguments in refused if in_user_namespace(MALLORY, *arguments).returncode == 0
    ] == []


def test_set_id_programs_and_devices_are_dead_on_a_mount(module_mount: Mount, set_name: str) -> None:
    path = victims_set(module_mount, set_name)
    os.mknod(f"{path}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert errno_as(MALLORY, os.open, f"{path}/null", os.O_RDWR) == errno.EACCES
    shutil.copy("/usr/bin/id", f"{path}/id")
    os.chmod(f"{path}/id", 0o6755)
    shown = subprocess.run([f"{path}/id", "-u"], user=MALLORY, group=MALLORY, capture_output=True, check=True)
    assert shown.stdout == b"%d\n" % MALLORY


def test_parent_directories_lead_out_of_the_mount_as_everywhere(module_mount: Mount, set_name: str) -> None:
    path = victims_set(module_mount, set_name)
    assert os.path.samefile(f"{path}/..", module_mount.path)
    assert os.path.samefile(f"{path}/../..", module_mount.path.parent)
    for name in (".", ".."):
        assert errno_as(ALICE, os.mkdir, f"{path}/{name}") == errno.EEXIST
        assert errno_as(ALICE, os.rename, f"{path}/secret", f"{path}/{name}") != 0
    assert as_user(ALICE, os.listdir, path) == ["secret"]


# Commands


def ls_as(uid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("ls", "--json", *arguments),
        env=environment(),
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o755, 0o777])
def test_ls_shows_a_user_his_own_beside_the_closed_sets_of_others(mount: Mount, mode: int) -> None:
    victims_set(mount, "alices", mode)
    as_user(MALLORY, os.mkdir, mount.path / "own")
    listing = ls_as(MALLORY, str(mount.path))
    assert (listing.returncode, listing.stderr) == (0, "")
    assert {row["set"] for row in json.loads(listing.stdout)} == {"own"}


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_ls_of_anothers_set_tells_no_more_than_the_modes_do(mount: Mount, mode: int) -> None:
    path = victims_set(mount, "alices", mode)
    listing = ls_as(MALLORY, path)
    assert "Traceback" not in listing.stderr
    assert (listing.returncode == 0) == (mode == 0o755)
    assert str(len(SECRET)) not in listing.stdout or mode == 0o755


def test_ls_goes_past_what_its_own_user_cannot_read(mount: Mount) -> None:
    path = victims_set(mount, "alices", 0o755)
    as_user(ALICE, os.mkdir, f"{path}/closed", 0o000)
    as_user(ALICE, os.chmod, f"{path}/secret", 0o000)
    listing = ls_as(ALICE, str(mount.path))
    assert (listing.returncode, listing.stderr) == (0, "")


# Wearing the daemon out


@contextlib.contextmanager
def hoarding(uid: int, path: str, most: int) -> Iterator[tuple[int, int]]:
    """As many open files as *uid* gets, up to *most*, and what the next one was refused with."""
    with Agent(uid) as agent:
        yield agent.do(_hoard, path, most)


_hoard_of: list[int] = []


def _hoard(path: str, most: int) -> tuple[int, int]:
    os.mkdir(path)
    for index in range(most):
        try:
            _hoard_of.append(os.open(f"{path}/{index}", os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            return index, error.errno or 0
    return most, 0


def test_a_user_who_opens_too_many_files_is_refused_alone(mount: Mount) -> None:
    own, hoard = str(mount.path / "own"), str(mount.path / "hoard")
    as_user(ALICE, os.mkdir, own)
    as_user(ALICE, create, f"{own}/image", 0o600, SECRET)
    # What a host that sets no higher limit gives a daemon; here less, to be quicker.
    resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (256, 256))
    with hoarding(MALLORY, hoard, 400) as (opened, refusal):
        assert 0 < opened < 256
        assert refusal in (errno.EMFILE, errno.ENFILE)
        others: dict[str, Callable[[], object]] = {
            "stat": lambda: os.stat(f"{own}/image"),
            "list": lambda: os.listdir(own),
            "read": Path(own, "image").read_bytes,
            "create": lambda: create(f"{own}/new"),
            "take": lambda: os.mkdir(f"{own}-2"),
            "rename": lambda: os.rename(f"{own}/new", f"{own}/newer"),
            "unlink": lambda: os.unlink(f"{own}/newer"),
            "statfs": lambda: os.statvfs(mount.path),
        }
        assert {name: number for name, way in others.items() if (number := errno_as(ALICE, way))} == {}
    assert as_user(ALICE, Path(own, "image").read_bytes) == SECRET


def test_two_thousand_open_files_and_a_thousand_sets_are_nothing_special(mount: Mount) -> None:
    def make_sets() -> None:
        for index in range(1000):
            os.mkdir(mount.path / f"s{index}")

    as_user(MALLORY, make_sets)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with hoarding(MALLORY, str(mount.path / "hoard"), 2000) as (opened, refusal):
        assert (opened, refusal) == (2000, 0)
        as_user(ALICE, os.mkdir, mount.path / "own")
        assert len(os.listdir(mount.path)) == 1002


DEPTH = 1080
"""Deeper than Python lets a function call itself."""
_STEP = 60


def _make_deep(path: str) -> None:
    """From the bottom up, since each call on the store walks from its top."""
    os.mkdir(path)
    for _ in range(DEPTH // _STEP):
        os.mkdir(f"{path}.above")
        fd = os.open(f"{path}.above", os.O_RDONLY)
        for _ in range(_STEP - 1):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.rename(path, "d", dst_dir_fd=fd)
        os.close(fd)
        os.rename(f"{path}.above", path)


@pytest.fixture
def deep(mount: Mount) -> Iterator[str]:
    path = str(mount.path / "deep")
    as_user(MALLORY, _make_deep, path)
    yield path
    # In the store, where it is quick; pytest's own clean-up would call itself too deep.
    subprocess.run(["rm", "-rf", mount.store / "users"], check=True)


def test_a_very_deep_tree_answers_what_state_it_is_in(mount: Mount, deep: str) -> None:
    answer = outcome(lambda: as_user(MALLORY, os.getxattr, deep, "user.ckfs.state"))
    assert answer in (errno.ENODATA, errno.EOVERFLOW)
    assert "Traceback" not in mount.log()


def test_a_very_deep_tree_is_given_like_any_other(mount: Mount, deep: str) -> None:
    os.chown(deep, ALICE, ALICE)
    assert os.getxattr(deep, "user.ckfs.uid") == b"2101"
    stored = mount.store / "users" / str(ALICE) / "deep"
    assert (stored.lstat().st_uid, (stored / "d" / "d").lstat().st_uid) == (ALICE, ALICE)
    assert "Traceback" not in mount.log()


def test_a_very_deep_tree_is_listed(mount: Mount, deep: str) -> None:
    listing = run_ckfs("ls", mount.path)
    assert (listing.returncode, listing.stderr) == (0, "")


def test_odd_numbers_never_reach_the_log_as_a_failure(module_mount: Mount, set_name: str) -> None:
    path = victims_set(module_mount, set_name) + "/secret"

    def attack() -> None:
        fd = os.open(path, os.O_RDWR)
        for number in (-1, -(10**9), -(2**40), -(2**60), 2**31, 2**33, 2**40, 2**55):
            outcome(partial(os.utime, path, (number, number)))
            os.stat(path)
        for number in (2**31, 2**40, 2**44, 2**62, 2**63 - 1):
            outcome(partial(os.ftruncate, fd, number))
            outcome(partial(os.pread, fd, 10, number - 20))
            os.fstat(fd)
        os.ftruncate(fd, len(SECRET))
        outcome(lambda: os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR))
        outcome(lambda: os.posix_fallocate(fd, 0, 10))
        outcome(lambda: os.lseek(fd, 0, os.SEEK_DATA))
        outcome(lambda: rename(path, f"{path}2", 4))
        outcome(lambda: os.stat(f"{path}/{'n' * 1000}"))
        outcome(lambda: os.mkdir(f"{path}/../{'n' * 256}"))

    as_user(ALICE, attack)
    os.chmod(path, 0o600)
    assert as_user(ALICE, os.stat, path).st_size == len(SECRET)
    assert "Traceback" not in module_mount.log()
