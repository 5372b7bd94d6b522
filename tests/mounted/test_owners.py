"""Whose is it? The rules of docs/design.md, section 2, one after the other, on a mount."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, EEXIST, ENOENT, EPERM, EXDEV
from functools import partial
from pathlib import Path

import pytest

from tests.support.agents import race
from tests.support.jobfiles import Job, binary
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, BOB, NOBODY, ROOT, as_user, errno_as, errno_of_call, raises_errno

pytestmark = pytest.mark.root

JOBS_GID = 2100
"""The group that job files name; not a user's own, so that a test sees which of them counted."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Place:
    """A mount, its store, and the PBS_HOME that its resolver reads."""

    mount: Mount
    store: Path
    pbs_home: Path

    def path(self, *names: str) -> str:
        return os.path.join(self.mount.path, *names)

    def make_job(self, number: int, uid: int, daemon: str = "mom") -> str:
        """A job file, as pbs_mom or pbs_server writes it. Returns the name of the job's set."""
        job = f"{number}.server"
        file = self.pbs_home / f"{daemon}_priv" / "jobs" / f"{job}.JB"
        file.write_bytes(binary(Job(job, job, uid=uid, gid=JOBS_GID)))
        return f"{job}.CK"

    def stored(self, uid: int, name: str) -> dict[str, os.stat_result]:
        """What lies in the store at *uid*'s place *name*: the place itself as ``.``, and all below it."""
        top = self.store / "users" / str(uid) / name
        if not os.path.lexists(top):
            return {}
        return {
            os.path.relpath(path, top): os.lstat(path)
            for path in [top, *(top.rglob("*") if top.is_dir() else [])]
        }


_numbers = itertools.count(100)


@pytest.fixture
def number() -> int:
    """A job's number, and a part of names, that no other test has."""
    return next(_numbers)


@pytest.fixture(scope="module")
def place(root_and_fuse: None, module_workdir: Path) -> Iterator[Place]:
    private = module_workdir / "private"
    private.mkdir(mode=0o700)
    store, pbs_home = make_store(private), module_workdir / "torque"
    for jobs in ("mom_priv/jobs", "server_priv/jobs"):
        (pbs_home / jobs).mkdir(parents=True)
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace('"/var/spool/torque"', f'"{pbs_home}"'))
    with mounted(store, module_workdir / "mount") as mount:
        yield Place(mount, store, pbs_home)


def owner_of(path: str) -> str:
    return os.getxattr(path, "user.ckfs.uid", follow_symlinks=False).decode()


def create(path: str, mode: int = 0o644, *, exclusive: bool = False, content: bytes = b"") -> None:
    flags = os.O_CREAT | os.O_WRONLY | (os.O_EXCL if exclusive else 0)
    fd = os.open(path, flags, mode)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def make_socket(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as unbound:  # whose address holds no more than 107 bytes
            unbound.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)


def rename(old: str, new: str, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)


def make_own(path: str) -> None:
    """A set of the caller's: a directory with a file and a directory in it, and beside it a set that is a file."""
    os.mkdir(path)
    create(f"{path}/file")
    os.mkdir(f"{path}/directory")
    create(f"{path}.file")


def unclaimed(place: Place, number: int, mode: int = 0o1777) -> str:
    """A batch set as pbs_server makes it, of a job that nobody knows."""
    path = place.path(f"{number}.server.CK")
    os.mkdir(path)
    os.chmod(path, mode)
    return path


# Who may make batch sets

Way = Callable[[str, str], None]
"""Makes the top-level name that comes first, if need be of what the caller has at the second."""

MAKING: dict[str, Way] = {
    "mkdir": lambda new, _: os.mkdir(new),
    "O_CREAT": lambda new, _: create(new),
    "O_CREAT|O_EXCL": lambda new, _: create(new, exclusive=True),
    "symlink": lambda new, _: os.symlink("anywhere", new),
    "mknod of a file": lambda new, _: os.mknod(new, stat.S_IFREG | 0o600),
    "mkfifo": lambda new, _: os.mkfifo(new),
    "bind": lambda new, _: make_socket(new),
}
MOVING: dict[str, Way] = {
    "link of an own set": lambda new, own: os.link(f"{own}.file", new),
    "rename of an own set": lambda new, own: os.rename(own, new),
    "rename of an own file": lambda new, own: os.rename(f"{own}.file", new),
    "rename of a file out of an own set": lambda new, own: os.rename(f"{own}/file", new),
    "rename of a directory out of an own set": lambda new, own: os.rename(f"{own}/directory", new),
    "RENAME_NOREPLACE of an own set": lambda new, own: rename(own, new, RENAME_NOREPLACE),
    "RENAME_NOREPLACE out of an own set": lambda new, own: rename(f"{own}/file", new, RENAME_NOREPLACE),
}
WAYS = MAKING | MOVING


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", [".server.CK", ".server.CK.old", ".CK", "-\udcff\n.CK"])
def test_a_user_makes_no_batch_set_of_a_job_that_nobody_knows(
    place: Place, number: int, way: str, suffix: str
) -> None:
    new, own = place.path(f"{number}{suffix}"), place.path(f"own-{number}")
    as_user(BOB, make_own, own)
    before = place.stored(BOB, f"own-{number}").keys()
    with raises_errno(EACCES):
        as_user(BOB, WAYS[way], new, own)
    assert not os.path.lexists(new)
    assert place.stored(BOB, f"own-{number}").keys() == before
    assert not place.stored(BOB, f"{number}{suffix}")
    assert not list((place.store / "staging").iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_a_user_makes_no_batch_set_of_somebody_elses_job(place: Place, number: int, way: str) -> None:
    new, own = place.path(place.make_job(number, ALICE)), place.path(f"own-{number}")
    as_user(BOB, make_own, own)
    with raises_errno(EACCES):
        as_user(BOB, WAYS[way], new, own)
    assert not os.path.lexists(new)


@pytest.mark.parametrize("way", WAYS)
def test_the_jobs_owner_makes_his_batch_set(place: Place, number: int, way: str) -> None:
    new, own = place.path(place.make_job(number, ALICE)), place.path(f"own-{number}")
    as_user(ALICE, make_own, own)
    as_user(ALICE, WAYS[way], new, own)
    assert (owner_of(new) if not way.startswith(("symlink", "mkfifo", "bind")) else str(ALICE)) == str(ALICE)
    assert place.stored(ALICE, f"{number}.server.CK")["."].st_uid == ALICE


@pytest.mark.parametrize("way", MAKING)
def test_root_makes_any_batch_set(place: Place, number: int, way: str) -> None:
    new = place.path(f"{number}.server.CK")
    MAKING[way](new, "")
    assert os.path.lexists(new)
    assert os.lstat(new).st_uid == ROOT


def test_exchanging_names_makes_no_batch_set_either(place: Place, number: int) -> None:
    batch, own = unclaimed(place, number), place.path(f"own-{number}")
    os.chown(batch, BOB, BOB)  # his own by now: only the name is not his to give
    as_user(BOB, make_own, own)
    for one, other in ((own, batch), (batch, own)):
        with raises_errno(EACCES):
            as_user(BOB, rename, one, other, RENAME_EXCHANGE)
    assert os.listdir(batch) == []


def test_the_owner_of_one_batch_set_makes_no_other_of_it(place: Place, number: int) -> None:
    batch = unclaimed(place, number)
    os.chown(batch, BOB, BOB)
    for other in (f"{number}.server.CK.old", f"{number}1.server.CK"):
        with raises_errno(EACCES):
            as_user(BOB, os.rename, batch, place.path(other))
    os.rename(batch, place.path(f"{number}.server.CK.old"))  # as OpenPBS does
    assert owner_of(place.path(f"{number}.server.CK.old")) == str(BOB)


@pytest.mark.parametrize("name", ["{}.server.ck", "{}.server.CK.new", "CK", "{}.CK\n", "{}.old"])
def test_other_names_are_everybodys(place: Place, number: int, name: str) -> None:
    path = place.path(name.format(number))
    as_user(BOB, os.mkdir, path)
    assert owner_of(path) == str(BOB)


# Charged and presented

THINGS: dict[str, Callable[[str], None]] = {
    "file": partial(create, mode=0o6666),
    "directory": lambda path: os.mkdir(path, 0o777),
    "symlink": lambda path: os.symlink("/etc/passwd", path),
    "fifo": lambda path: os.mkfifo(path, 0o666),
    "socket": make_socket,
}
PLAIN_MODES = {
    "file": stat.S_IFREG | 0o6640,
    "directory": stat.S_IFDIR | 0o750,
    "symlink": stat.S_IFLNK | 0o777,
    "fifo": stat.S_IFIFO | 0o640,
    "socket": stat.S_IFSOCK | 0o750,
}


def shared_set(place: Place, name: str, mode: int = 0o777) -> str:
    """A set of Alice's, not a batch set, in which everybody may create."""
    path = place.path(name)
    as_user(ALICE, os.mkdir, path)
    as_user(ALICE, os.chmod, path, mode)
    return path


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("creator", [ROOT, ALICE, BOB, NOBODY])
def test_in_a_set_all_is_stored_as_its_owners_and_presented_as_the_creators(
    place: Place, number: int, thing: str, creator: int
) -> None:
    path = os.path.join(shared_set(place, f"shared-{number}"), thing)
    as_user(creator, THINGS[thing], path, gid=creator + 5, umask=0o027)
    seen = os.lstat(path)
    assert (seen.st_uid, seen.st_gid, seen.st_mode) == (creator, creator + 5, PLAIN_MODES[thing])
    kept = place.stored(ALICE, f"shared-{number}")[thing]
    assert (kept.st_uid, kept.st_gid) == (ALICE, ALICE)
    is_directory = thing == "directory"
    assert kept.st_mode == (stat.S_IFDIR | 0o700 if is_directory else stat.S_IFREG | 0o600)


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("uid", [ALICE, NOBODY])
def test_a_set_is_stored_as_its_makers(place: Place, number: int, thing: str, uid: int) -> None:
    name = f"set-{number}"
    as_user(uid, THINGS[thing], place.path(name), umask=0o027)
    seen, kept = os.lstat(place.path(name)), place.stored(uid, name)["."]
    assert (seen.st_uid, seen.st_gid, seen.st_mode) == (uid, uid, PLAIN_MODES[thing])
    assert (kept.st_uid, kept.st_gid, kept.st_mode & 0o7077) == (uid, uid, 0)
    assert (place.store / "users" / str(uid)).stat().st_mode == stat.S_IFDIR | 0o700


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_umask_takes_from_what_is_presented_alone(place: Place, number: int, umask: int) -> None:
    name = f"set-{number}"
    as_user(ALICE, os.mkdir, place.path(name), 0o777, umask=umask)
    assert stat.S_IMODE(os.stat(place.path(name)).st_mode) == 0o777 & ~umask
    create(place.path(name, "file"))  # root may always; the store's directory must let its owner in
    assert {stat.S_IMODE(kept.st_mode) for kept in place.stored(ALICE, name).values()} == {0o700, 0o600}


def test_a_set_group_id_directory_hands_its_group_down_and_charges_its_owner(
    place: Place, number: int
) -> None:
    shared = shared_set(place, f"shared-{number}", 0o2777)
    as_user(BOB, os.mkdir, f"{shared}/inner", 0o700)
    as_user(BOB, create, f"{shared}/inner/file", 0o600)
    assert [os.stat(f"{shared}/{name}").st_gid for name in ("inner", "inner/file")] == [ALICE, ALICE]
    assert os.stat(f"{shared}/inner").st_mode & stat.S_ISGID
    assert {kept.st_uid for kept in place.stored(ALICE, f"shared-{number}").values()} == {ALICE}


def test_the_owner_of_a_set_reads_nothing_that_another_made_for_himself(place: Place, number: int) -> None:
    shared = shared_set(place, f"shared-{number}")
    as_user(BOB, create, f"{shared}/secret", 0o600)
    assert errno_as(ALICE, os.open, f"{shared}/secret", os.O_RDONLY) == EACCES
    assert errno_as(ALICE, os.chmod, f"{shared}/secret", 0o666) == EPERM
    assert errno_as(BOB, os.open, f"{shared}/secret", os.O_RDWR) == 0


def test_a_guest_has_no_way_to_his_file_once_the_owner_shuts_the_set(place: Place, number: int) -> None:
    shared = shared_set(place, f"shared-{number}")
    as_user(BOB, create, f"{shared}/file", 0o600)
    as_user(ALICE, os.chmod, shared, 0o700)
    ways: list[Callable[[], object]] = [
        lambda: os.open(f"{shared}/file", os.O_RDONLY),
        lambda: os.stat(f"{shared}/file"),
        lambda: os.link(f"{shared}/file", place.path(f"mine-{number}")),
        lambda: os.rename(f"{shared}/file", place.path(f"mine-{number}")),
        lambda: os.listdir(shared),
        lambda: os.getxattr(shared, "user.ckfs.owner"),
    ]
    assert [errno_as(BOB, way) for way in ways] == [EACCES] * len(ways)


def test_root_keeps_sets_of_its_own(place: Place, number: int) -> None:
    path = place.path(f"roots-{number}")
    os.mkdir(path, 0o755)
    assert owner_of(path) == "0"
    assert place.stored(ROOT, f"roots-{number}")["."].st_uid == ROOT
    assert errno_as(ALICE, os.mkdir, f"{path}/inner") == EACCES


# In batch sets only the owner and root create

INSIDE: dict[str, Callable[[str], None]] = {
    "mkdir": os.mkdir,
    "O_CREAT": create,
    "symlink": lambda path: os.symlink("x", path),
    "mknod of a file": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "mkfifo": os.mkfifo,
    "bind": make_socket,
    "link": lambda path: os.link(f"{os.path.dirname(path)}/there", path),
    "rename": lambda path: os.rename(f"{os.path.dirname(path)}/there", path),
}


def batch_set_of_alice(place: Place, number: int, mode: int) -> str:
    """With a file of hers that is open to all, which itself gives no right to the names."""
    path = unclaimed(place, number, mode)
    os.chown(path, ALICE, ALICE)
    as_user(ALICE, create, f"{path}/there", 0o666, umask=0)
    return path


@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("how", INSIDE)
def test_in_a_batch_set_only_its_owner_and_root_create(
    place: Place, number: int, how: str, mode: int
) -> None:
    path = batch_set_of_alice(place, number, mode)
    # In a sticky directory the kernel says EPERM to the rename before ckfs is asked.
    assert errno_as(BOB, INSIDE[how], f"{path}/bobs") in (EACCES, EPERM)
    assert os.listdir(path) == ["there"]
    if how in ("link", "rename"):  # a complete image keeps its one name, from its owner too
        assert errno_as(ALICE, INSIDE[how], f"{path}/alices") == EACCES
        return
    as_user(ALICE, INSIDE[how], f"{path}/alices")
    assert "alices" in os.listdir(path)
    INSIDE[how](f"{path}/roots")
    assert {kept.st_uid for kept in place.stored(ALICE, os.path.basename(path)).values()} == {ALICE}


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
@pytest.mark.parametrize("into", ["the source", "the target"])
def test_nothing_of_another_set_of_the_owners_is_put_into_a_batch_set_by_others(
    place: Place, number: int, flags: int, into: str
) -> None:
    batch, shared = batch_set_of_alice(place, number, 0o777), shared_set(place, f"shared-{number}")
    as_user(BOB, create, f"{shared}/evil")
    old, new = f"{shared}/evil", f"{batch}/there"
    if flags == RENAME_NOREPLACE:
        new = f"{batch}/free"
    if into == "the source":
        if flags != RENAME_EXCHANGE:
            pytest.skip("only an exchange puts something where the source was")
        old, new = new, old
    assert errno_as(BOB, rename, old, new, flags) == EACCES
    assert os.stat(f"{batch}/there").st_uid == ALICE


# Unclaimed sets


def test_a_batch_set_that_root_makes_for_an_unknown_job_is_unclaimed(place: Place, number: int) -> None:
    path = unclaimed(place, number)
    assert os.getxattr(path, "user.ckfs.owner") == b"-"
    assert owner_of(path) == "-"
    assert place.stored(ROOT, f"{number}.server.CK")["."].st_mode == stat.S_IFDIR | 0o700
    assert f"set {number}.server.CK made unclaimed by root" in place.mount.log()


@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("how", [how for how in INSIDE if how not in ("link", "rename")])
def test_an_unclaimed_set_takes_files_of_root_alone(place: Place, number: int, how: str, mode: int) -> None:
    path = unclaimed(place, number, mode)
    assert errno_as(BOB, INSIDE[how], f"{path}/bobs") == EACCES
    INSIDE[how](f"{path}/roots")
    assert os.listdir(path) == ["roots"]
    assert place.stored(ROOT, f"{number}.server.CK")["roots"].st_uid == ROOT


WRITING: dict[str, Callable[[str], object]] = {
    "open for writing": lambda path: os.open(f"{path}/file", os.O_WRONLY),
    "truncate": lambda path: os.truncate(f"{path}/file", 0),
    "O_TRUNC": lambda path: os.open(f"{path}/file", os.O_WRONLY | os.O_TRUNC),
    "setxattr": lambda path: os.setxattr(f"{path}/file", "user.x", b"x"),
    "setxattr of the top": lambda path: os.setxattr(path, "user.x", b"x"),
    "unlink": lambda path: os.unlink(f"{path}/file"),
    "rename": lambda path: os.rename(f"{path}/file", f"{path}/renamed"),
    "link": lambda path: os.link(f"{path}/file", f"{path}/linked"),
}


@pytest.mark.parametrize("how", WRITING)
def test_an_unclaimed_set_is_writable_by_root_alone_whatever_its_modes_say(
    place: Place, number: int, how: str
) -> None:
    path = unclaimed(place, number, 0o777)
    create(f"{path}/file", content=b"of root")
    os.chmod(f"{path}/file", 0o666)
    assert errno_as(BOB, WRITING[how], path) in (EACCES, EPERM)
    assert Path(path, "file").read_bytes() == b"of root"


def test_roots_chown_gives_an_unclaimed_set_with_all_that_is_in_it(place: Place, number: int) -> None:
    name, path = f"{number}.server.CK", unclaimed(place, number)
    create(f"{path}/image", 0o600, content=b"image")
    os.chown(path, ALICE, ALICE)
    assert (owner_of(path), os.stat(path).st_uid) == (str(ALICE), ALICE)
    assert not place.stored(ROOT, name)
    kept = place.stored(ALICE, name)
    assert kept.keys() == {".", "image"}
    assert {(status.st_uid, status.st_gid) for status in kept.values()} == {(ALICE, ALICE)}
    assert os.stat(f"{path}/image").st_uid == ROOT, "chown of the top is not recursive"
    as_user(ALICE, create, f"{path}/hers")
    assert errno_as(BOB, create, f"{path}/his") == EACCES
    assert f"set {name} given to uid {ALICE}" in place.mount.log()


def test_a_chown_to_root_leaves_an_unclaimed_set_unclaimed(place: Place, number: int) -> None:
    path = unclaimed(place, number)
    os.chown(path, ROOT, ROOT)
    assert owner_of(path) == "-"


# Resolvers


@pytest.mark.parametrize("daemon", ["mom", "server"])
def test_a_batch_set_that_root_makes_is_the_known_owners_at_once(
    place: Place, number: int, daemon: str
) -> None:
    name = place.make_job(number, ALICE, daemon)
    path = place.path(name)
    os.mkdir(path, 0o755)
    assert owner_of(path) == str(ALICE)
    kept = place.stored(ALICE, name)["."]
    assert (kept.st_uid, kept.st_gid) == (ALICE, JOBS_GID)
    assert os.stat(path).st_uid == ROOT, "what is presented stays the creator's, until TORQUE's own chown"
    os.chown(path, ALICE, JOBS_GID)
    as_user(ALICE, create, f"{path}/image", gid=JOBS_GID)


@pytest.mark.parametrize("how", [how for how in INSIDE if how not in ("link", "rename")])
def test_the_jobs_owner_claims_an_unclaimed_set_by_creating_in_it(
    place: Place, number: int, how: str
) -> None:
    path = unclaimed(place, number)
    create(f"{path}/roots", 0o600)
    assert errno_as(ALICE, INSIDE[how], f"{path}/early") == EACCES
    name = place.make_job(number, ALICE)
    assert owner_of(path) == "-", "nobody has asked yet"
    assert errno_as(BOB, INSIDE[how], f"{path}/bobs") == EACCES
    assert owner_of(path) == "-", "a stranger's attempt claims nothing"
    as_user(ALICE, INSIDE[how], f"{path}/hers")
    assert owner_of(path) == str(ALICE)
    kept = place.stored(ALICE, name)
    assert kept.keys() == {".", "roots", "hers"}
    assert {(status.st_uid, status.st_gid) for status in kept.values()} == {(ALICE, JOBS_GID)}


def test_a_claim_is_made_below_the_top_too(place: Place, number: int) -> None:
    path = unclaimed(place, number)
    os.mkdir(f"{path}/inner")
    os.chmod(f"{path}/inner", 0o1777)
    place.make_job(number, ALICE)
    as_user(ALICE, create, f"{path}/inner/file")
    assert owner_of(path) == str(ALICE)


def test_a_claimed_set_is_nobody_elses_though_his_job_gets_the_number(place: Place, number: int) -> None:
    path = unclaimed(place, number)
    place.make_job(number, ALICE)
    as_user(ALICE, create, f"{path}/hers")
    place.make_job(number, BOB)
    assert errno_as(BOB, create, f"{path}/his") == EACCES
    assert owner_of(path) == str(ALICE)


def test_many_processes_of_the_jobs_owner_may_claim_at_once(place: Place, workdir: Path) -> None:
    first = next(_numbers)
    rounds = 25
    numbers = [first, *(next(_numbers) for _ in range(rounds - 1))]
    with mounted(place.store, workdir / "other", node="other") as other:
        for number in numbers:
            unclaimed(place, number)
            place.make_job(number, ALICE)

        def creator(root: Path, who: int) -> Callable[[], int]:
            turns = iter(numbers)

            def run() -> int:
                try:
                    create(str(root / f"{next(turns)}.server.CK" / str(who)))
                except OSError as error:
                    return error.errno or -1
                return 0

            return run

        roots = [place.mount.path, place.mount.path, other.path, other.path]
        results = race([(ALICE, creator(root, who)) for who, root in enumerate(roots)], rounds)
    assert [result for result in results if any(result)] == []
    for number in numbers:
        assert {status.st_uid for status in place.stored(ALICE, f"{number}.server.CK").values()} == {ALICE}


# Giving


def tree(path: str) -> None:
    create(f"{path}/image", 0o400, content=b"image")
    os.mkdir(f"{path}/inner", 0o711)
    create(f"{path}/inner/file", 0o644)
    os.symlink("image", f"{path}/symlink")
    if not path.endswith(".CK"):
        os.link(f"{path}/image", f"{path}/inner/link")
    os.mkfifo(f"{path}/inner/fifo")


def times_of(path: str) -> dict[str, int]:
    return {
        os.path.join(directory, name): os.lstat(os.path.join(directory, name)).st_mtime_ns
        for directory, directories, files in os.walk(path)
        for name in [".", *directories, *files]
    }


GIVING: dict[str, Callable[[str, int], object]] = {
    "chown": lambda path, uid: os.chown(path, uid, uid),
    "chown of the uid alone": lambda path, uid: os.chown(path, uid, -1),
    "user.ckfs.owner": lambda path, uid: os.setxattr(path, "user.ckfs.owner", str(uid).encode()),
    "ckfs give": lambda path, uid: run_ckfs("give", path, str(uid)).check_returncode(),
}


@pytest.mark.parametrize("how", GIVING)
@pytest.mark.parametrize("name", ["given-{}", "{}.server.CK"])
def test_a_set_with_content_goes_to_its_new_owner_as_a_whole(
    place: Place, number: int, how: str, name: str
) -> None:
    name = name.format(number)
    path = place.path(name)
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    as_user(ALICE, tree, path)
    for entry in os.listdir(path):
        os.utime(f"{path}/{entry}", ns=(1, 10**18 + 1), follow_symlinks=False)
    seen = {entry: os.lstat(f"{path}/{entry}") for entry in os.listdir(path)}
    before, kept_before = times_of(path), place.stored(ALICE, name)
    GIVING[how](path, BOB)
    assert (owner_of(path), os.stat(path).st_uid) == (str(BOB), BOB)
    assert times_of(path) == before
    kept = place.stored(BOB, name)
    assert not place.stored(ALICE, name)
    assert {(status.st_uid, status.st_gid) for status in kept.values()} == {(BOB, BOB)}
    for entry, status in kept.items():
        was = kept_before[entry]
        assert (status.st_mtime_ns, status.st_mode, status.st_ino) == (
            was.st_mtime_ns,
            was.st_mode,
            was.st_ino,
        )
    for entry, status in seen.items():
        now = os.lstat(f"{path}/{entry}")
        assert (now.st_uid, now.st_mode, now.st_ino) == (status.st_uid, status.st_mode, status.st_ino)


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("how", ["chown", "ckfs give"])
def test_sets_of_every_kind_are_given(place: Place, number: int, thing: str, how: str) -> None:
    path = place.path(f"given-{number}")
    as_user(ALICE, THINGS[thing], path)
    if how == "chown":
        os.chown(path, BOB, BOB, follow_symlinks=False)
    else:
        done = run_ckfs("give", path, str(BOB))
        assert done.returncode == 0, done.stderr
    assert os.lstat(path).st_uid == BOB
    assert place.stored(BOB, f"given-{number}")["."].st_uid == BOB
    assert not place.stored(ALICE, f"given-{number}")


@pytest.mark.parametrize("uid", [ALICE, BOB])
def test_users_give_nothing(place: Place, number: int, uid: int) -> None:
    path = shared_set(place, f"shared-{number}")
    assert errno_as(uid, os.chown, path, BOB, -1) == EPERM
    assert errno_as(uid, os.setxattr, path, "user.ckfs.owner", b"2102") == EPERM
    assert errno_as(uid, os.removexattr, path, "user.ckfs.owner") == EPERM
    assert owner_of(path) == str(ALICE)


def test_the_owner_is_of_the_set_not_of_what_is_in_it(place: Place, number: int) -> None:
    path = shared_set(place, f"shared-{number}")
    as_user(ALICE, create, f"{path}/image")
    with raises_errno(EPERM):
        os.setxattr(f"{path}/image", "user.ckfs.owner", str(BOB).encode())
    os.chown(f"{path}/image", BOB, BOB)  # what pbs_mom does to the image
    assert (os.stat(f"{path}/image").st_uid, owner_of(f"{path}/image")) == (BOB, str(ALICE))
    assert place.stored(ALICE, f"shared-{number}")["image"].st_uid == ALICE


def test_a_set_given_to_root_is_roots(place: Place, number: int) -> None:
    path = place.path(f"{number}.server.CK")
    os.mkdir(path)
    os.chown(path, ALICE, ALICE)
    os.chown(path, ROOT, ROOT)
    assert owner_of(path) == "0"
    assert place.stored(ROOT, f"{number}.server.CK")["."].st_uid == ROOT


@pytest.mark.parametrize(
    "value", [b"", b"-", b"-1", b"4294967295", b"no such user", b"0x10", b"1\n", b"9" * 5000]
)
def test_an_owner_who_is_no_user_is_refused(place: Place, number: int, value: bytes) -> None:
    path = shared_set(place, f"shared-{number}")
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(path, "user.ckfs.owner", value)
    assert owner_of(path) == str(ALICE)


def test_a_set_is_found_and_read_throughout_while_it_changes_hands(
    place: Place, number: int, workdir: Path
) -> None:
    """pbs_mom requeues a job whose image is not found (docs/torque.md)."""
    rounds = 60
    path = place.path(f"given-{number}")
    os.mkdir(path, 0o755)
    create(f"{path}/image", content=b"image")

    def look(root: Path) -> Callable[[], list[str]]:
        image = root / f"given-{number}" / "image"

        def run() -> list[str]:
            failures = []
            for _ in range(10):
                try:
                    if image.read_bytes() != b"image":
                        failures.append("other content")
                except OSError as error:
                    failures.append(f"{error.strerror}")
            return failures

        return run

    owners = itertools.cycle([ALICE, BOB])

    def give() -> list[str]:
        os.chown(path, next(owners), -1)
        return []

    with mounted(place.store, workdir / "other", node="other") as other:
        results = race([(ROOT, give), (ROOT, look(place.mount.path)), (ROOT, look(other.path))], rounds)
    assert [result for result in results if any(result)] == []


@pytest.mark.parametrize("mounts", [1, 2])
def test_a_set_that_is_renamed_while_it_is_given_away_keeps_one_name(
    place: Place, number: int, workdir: Path, mounts: int
) -> None:
    names = [f"moved-{number}", f"moved-{number}-too"]
    os.mkdir(place.path(names[0]), 0o755)
    create(place.path(names[0], "image"), content=b"image")
    inode = os.stat(place.path(names[0])).st_ino
    owners = itertools.cycle([ALICE, BOB])

    def give() -> set[int]:
        owner = next(owners)
        return {errno_of_call(os.chown, place.path(name), owner, -1) for name in names}

    with mounted(place.store, workdir / "other", node="other") as other:
        root = (place.mount.path, other.path)[mounts - 1]

        def move() -> set[int]:
            one, two = (str(root / name) for name in names)
            return {errno_of_call(os.rename, one, two), errno_of_call(os.rename, two, one)}

        results = race([(ROOT, give), (ROOT, move)], 40)
        assert set().union(*itertools.chain(*results)) <= {0, ENOENT}
        for path in (place.mount.path, other.path):
            left = [name for name in names if os.path.exists(path / name)]
            assert len(left) == 1
            assert (path / left[0] / "image").read_bytes() == b"image"
    entries = [os.readlink(link) for link in (place.store / "names").iterdir()]
    assert [entry.split(":")[1] for entry in entries].count(f"{inode:x}") == 1


@pytest.mark.parametrize("has_written", [False, True])
def test_an_open_file_is_written_on_while_its_set_changes_hands(
    place: Place, number: int, *, has_written: bool
) -> None:
    path = shared_set(place, f"shared-{number}")
    fd = os.open(f"{path}/image", os.O_CREAT | os.O_WRONLY, 0o600)
    with contextlib.ExitStack() as closing:
        if not has_written:
            os.close(fd)
            fd = os.open(f"{path}/image", os.O_WRONLY)
        closing.callback(os.close, fd)
        if has_written:
            os.write(fd, b"before ")
        os.chown(path, BOB, BOB)
        os.write(fd, b"after")
        os.fsync(fd)
    assert Path(path, "image").read_bytes() == (b"before after" if has_written else b"after")
    assert os.getxattr(f"{path}/image", "user.ckfs.state") == b"complete"


# Between sets


@pytest.mark.parametrize("uid", [ROOT, BOB])
@pytest.mark.parametrize("call", [os.rename, os.link])
@pytest.mark.parametrize("direction", ["in", "out"])
def test_nothing_moves_between_sets_of_different_owners(
    place: Place, number: int, uid: int, call: Callable[[str, str], None], direction: str
) -> None:
    shared, own = shared_set(place, f"shared-{number}"), place.path(f"own-{number}")
    as_user(BOB, os.mkdir, own)
    old, new = (own, shared) if direction == "in" else (shared, own)
    as_user(BOB, create, f"{old}/file")
    assert errno_as(uid, call, f"{old}/file", f"{new}/file") == EXDEV
    assert (os.listdir(old), os.listdir(new)) == (["file"], [])


@pytest.mark.parametrize("call", [os.rename, os.link])
def test_a_guests_file_becomes_no_set_of_his(
    place: Place, number: int, call: Callable[[str, str], None]
) -> None:
    shared = shared_set(place, f"shared-{number}")
    as_user(BOB, create, f"{shared}/file")
    assert errno_as(BOB, call, f"{shared}/file", place.path(f"bobs-{number}")) == EXDEV
    assert not os.path.lexists(place.path(f"bobs-{number}"))


def test_a_set_does_not_move_into_anothers(place: Place, number: int) -> None:
    shared, own = shared_set(place, f"shared-{number}"), place.path(f"own-{number}")
    as_user(BOB, create, own)
    for uid in (BOB, ROOT):
        assert errno_as(uid, os.rename, own, f"{shared}/own") == EXDEV


def test_the_sets_of_one_owner_exchange_files(place: Place, number: int) -> None:
    one, other, third = (place.path(f"{name}-{number}") for name in ("one", "other", "third"))
    for path, gid in ((one, ALICE), (other, ALICE), (third, JOBS_GID)):
        as_user(ALICE, os.mkdir, path, gid=gid)
    as_user(ALICE, create, f"{one}/file")
    as_user(ALICE, os.rename, f"{one}/file", f"{other}/file")
    assert as_user(ALICE, os.listdir, other) == ["file"]
    # An owner is a uid and a gid, since both are what the store charges (docs/SEMANTICS.md).
    assert errno_as(ALICE, os.rename, f"{other}/file", f"{third}/file") == EXDEV
    as_user(ALICE, os.rename, other, f"{one}/inner")
    assert os.listdir(f"{one}/inner") == ["file"]


def test_a_file_with_other_links_stays_in_its_set(place: Place, number: int) -> None:
    """So each set can change hands."""
    one, other = (place.path(f"{name}-{number}") for name in ("one", "other"))
    for path in (one, other):
        as_user(ALICE, os.mkdir, path)
    as_user(ALICE, create, f"{one}/file")
    as_user(ALICE, os.link, f"{one}/file", f"{one}/link")
    as_user(ALICE, create, f"{other}/single")
    assert errno_as(ALICE, os.rename, f"{one}/link", f"{other}/link") == EXDEV
    assert errno_as(ALICE, os.rename, f"{one}/link", f"{other}/single") == EXDEV
    assert errno_as(ALICE, rename, f"{other}/single", f"{one}/link", RENAME_EXCHANGE) == EXDEV
    as_user(ALICE, os.unlink, f"{one}/file")
    as_user(ALICE, os.rename, f"{one}/link", f"{other}/link")
    assert sorted(os.listdir(other)) == ["link", "single"]


@pytest.mark.parametrize("uid", [ROOT, ALICE])
def test_a_file_has_links_in_one_set_only(place: Place, number: int, uid: int) -> None:
    """Or a set could not change hands as a whole: a part of it would stay the former owner's, or go with another's."""
    one, other = place.path(f"one-{number}"), place.path(f"other-{number}")
    for path in (one, other):
        as_user(ALICE, os.mkdir, path)
    as_user(ALICE, create, f"{one}/file")
    for new in (f"{other}/link", f"{one}-link", place.path(f"{number}.server.CK")):
        assert errno_as(uid, os.link, f"{one}/file", new) in (EXDEV, EACCES)
        assert not os.path.lexists(new)
    as_user(ALICE, os.link, f"{one}/file", f"{one}/link")
    os.chown(one, BOB, BOB)
    assert {kept.st_uid for kept in place.stored(BOB, f"one-{number}").values()} == {BOB}


def test_a_taken_name_is_a_taken_name_whoever_asks(place: Place, number: int) -> None:
    path = shared_set(place, f"shared-{number}")
    for uid in (ALICE, BOB, ROOT):
        for make in (os.mkdir, lambda path: create(path, exclusive=True), os.mkfifo):
            assert errno_as(uid, make, path) == EEXIST


# The command


def test_giving_is_roots(place: Place, number: int) -> None:
    path = shared_set(place, f"shared-{number}")
    done = as_user(ALICE, lambda: _unprivileged_give(path))
    assert "only root" in done
    assert owner_of(path) == str(ALICE)


def _unprivileged_give(path: str) -> str:
    from ckfs.cli.give import give
    from ckfs.errors import NotPermitted

    with pytest.raises(NotPermitted) as refused:
        give(path, str(BOB))
    return str(refused.value)


def test_only_whole_sets_are_given(place: Place, number: int) -> None:
    path = shared_set(place, f"shared-{number}")
    os.mkdir(f"{path}/inner")
    done = run_ckfs("give", f"{path}/inner", str(BOB))
    assert (done.returncode, owner_of(path)) == (2, str(ALICE))
    assert run_ckfs("give", place.path(f"none-{number}"), str(BOB)).returncode == 2
    assert run_ckfs("give", path, "no-such-user").returncode == 2
