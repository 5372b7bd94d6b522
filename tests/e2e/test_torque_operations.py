"""TORQUE's operations on three mounts of one store: users' images survive them. On a plain shared directory they do not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ckfs.store.syscalls import RENAME_EXCHANGE
from tests.e2e.torque import (
    HOSTS,
    NODE_A,
    NODE_B,
    SERVER,
    Checkpointer,
    Failure,
    Requeued,
    SetUp,
    Torque,
    write_image,
)
from tests.support.gluster_cluster import Cluster
from tests.support.jobfiles import Job, binary
from tests.support.ledgers import in_new_database, rewrite_policy
from tests.support.loops import btrfs
from tests.support.mounting import make_store, mounted, run_ckfs
from tests.support.postgres import Server
from tests.support.quotas import set_quota
from tests.support.users import ALICE, ROOT, as_user, errno_as

pytestmark = pytest.mark.root

SHARED = (SetUp.REMOTE, SetUp.USECP)
KEPT = 2
"""How many checkpoints the default policy keeps."""
STORE_BYTES = 16 << 20
_AT_FDCWD = -100
TOO_LARGE = 2 * STORE_BYTES
ALLOWED = {
    ("mkdir", errno.EEXIST),
    ("unlink", errno.EACCES),
    ("rmdir", errno.ENOTEMPTY),
    ("stat", errno.ENOENT),
    ("lstat", errno.ENOENT),
}
"""How calls of TORQUE's may fail (docs/torque.md): EPERM, EBUSY and EINTR from rmdir stop a mom for ten seconds."""

PARTIAL = r"image .* is partial: (its writer was killed|a write failed)"
_numbers = itertools.count()


@contextlib.contextmanager
def _tmpfs(directory: Path, mode: int) -> Iterator[Path]:
    """A file system that is soon full."""
    directory.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES},mode={mode:o}", "none", directory], check=True
    )
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@pytest.fixture(scope="module")
def pbs_home(module_workdir: Path) -> Path:
    for daemon in ("mom_priv", "server_priv"):
        (module_workdir / "torque" / daemon / "jobs").mkdir(parents=True)
    return module_workdir / "torque"


@contextlib.contextmanager
def _btrfs_with_quota(directory: Path) -> Iterator[Path]:
    """A directory on a larger file system that has a quota."""
    with btrfs(directory) as top:
        limited = top / "limited"
        subprocess.run(["btrfs", "quota", "enable", top], check=True, capture_output=True)
        subprocess.run(["btrfs", "subvolume", "create", limited], check=True, capture_output=True)
        _limit(limited, STORE_BYTES)
        limited.chmod(0o700)
        yield limited


def _limit(subvolume: Path, size_bytes: int) -> None:
    subprocess.run(["btrfs", "qgroup", "limit", str(size_bytes), subvolume], check=True)


@contextlib.contextmanager
def _three(private: Path, where: Path, pbs_home: Path) -> Iterator[dict[str, str]]:
    store = make_store(private)
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace('"/var/spool/torque"', f'"{pbs_home}"'))
    where.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        mounts = {}
        for host in HOSTS:
            role = "server" if host == SERVER else "node"
            mount = stack.enter_context(mounted(store, where / host, role=role, node=host, may_log=[PARTIAL]))
            mounts[host] = str(mount.path)
        yield mounts


@pytest.fixture(scope="module", params=["tmpfs", pytest.param("gluster", marks=pytest.mark.cluster)])
def three_mounts(
    request: pytest.FixtureRequest, root_and_fuse: None, module_workdir: Path, pbs_home: Path
) -> Iterator[dict[str, str]]:
    if request.param == "gluster":
        cluster, database = map(request.getfixturevalue, ("gluster", "postgres"))
        with _three_hosts(cluster, database, module_workdir, pbs_home) as mounts:
            yield mounts
        return
    with (
        _tmpfs(module_workdir / "private", 0o700) as private,
        _three(private, module_workdir, pbs_home) as mounts,
    ):
        yield mounts


@contextlib.contextmanager
def _three_hosts(gluster: Cluster, database: Server, where: Path, pbs_home: Path) -> Iterator[dict[str, str]]:
    """Hosts of a cluster whose store squashes root; the ledger of its quotas, in PostgreSQL, lets the user have as much as the
    small file system has room for."""
    store = gluster.make_store()
    kept = gluster.kept / store
    rewrite_policy(kept, in_new_database(database))
    rewrite_policy(kept, lambda text: text.replace('"/var/spool/torque"', f'"{pbs_home}"'))
    with gluster.mounted_on(store, where, HOSTS, server=SERVER, may_log=[PARTIAL]) as mounts:
        set_quota(Path(mounts[SERVER]), ALICE, "--hard", "16M")
        yield mounts


@pytest.fixture
def three_with_quota(
    root_and_fuse: None, workdir: Path, pbs_home: Path
) -> Iterator[tuple[dict[str, str], Path]]:
    """The mounts, and what the quota is of."""
    with _btrfs_with_quota(workdir) as private, _three(private, workdir, pbs_home) as mounts:
        yield mounts, private


@pytest.fixture(scope="module")
def plain_directory(root_and_fuse: None, module_workdir: Path) -> Iterator[dict[str, str]]:
    with _tmpfs(module_workdir / "plain", 0o711) as directory:
        (directory / "checkpoint").mkdir()
        (directory / "checkpoint").chmod(0o1777)
        yield dict.fromkeys(HOSTS, str(directory / "checkpoint"))


def a_job(mounts: dict[str, str], set_up: SetUp) -> Torque:
    return Torque(mounts, set_up, f"{next(_numbers)}.tqsrv")


@pytest.fixture
def job(three_mounts: dict[str, str], set_up: SetUp) -> Torque:
    return a_job(three_mounts, set_up)


@pytest.fixture
def control(plain_directory: dict[str, str], set_up: SetUp) -> Torque:
    return a_job(plain_directory, set_up)


def images_at(job: Torque, host: str, name: str | None = None) -> dict[str, bytes]:
    directory = f"{job.mounts[host]}/{name or job.set_name}"
    if not os.path.lexists(directory):
        return {}
    return {
        entry: Path(directory, entry).read_bytes()
        for entry in os.listdir(directory)
        if not entry.startswith(".")
    }


def check_kept(
    job: Torque, expected: dict[str, bytes] | None = None, also: Iterable[tuple[str, int]] = ()
) -> None:
    """On every host the images are there, byte for byte, whole and nobody's to remove; and TORQUE was answered as it can bear."""
    expected = dict(list(job.images.items())[-KEPT:]) if expected is None else expected
    assert expected
    for host in HOSTS:
        seen = as_user(ROOT, images_at, job, host)
        assert {name: seen.get(name) for name in expected} == expected, f"on {host}"
        for name in expected:
            path = f"{job.ck(host)}/{name}"
            assert as_user(ROOT, os.getxattr, path, "user.ckfs.state") == b"complete"
            assert as_user(job.user, os.getxattr, path, "user.ckfs.protected") != b"no"
    check_answers(job, also)


def check_answers(job: Torque, also: Iterable[tuple[str, int]] = ()) -> None:
    """*also*: how else they may fail."""
    allowed = ALLOWED.union(also)
    bad = [str(refusal) for refusal in job.refused if (refusal.call, refusal.error) not in allowed]
    assert not bad
    assert not [r for r in job.refused if r.who == "server" and r.call != "mkdir"]


def check_gone(job: Torque, also: Iterable[tuple[str, int]] = ()) -> None:
    for host in HOSTS:
        assert not [name for name in as_user(ROOT, os.listdir, job.mounts[host]) if name == job.set_name]
    check_answers(job, also)


# With ckfs


@pytest.mark.parametrize("set_up", SetUp)
def test_a_hold_keeps_every_image(job: Torque) -> None:
    job.checkpoint(NODE_A)
    job.hold(NODE_A)
    check_kept(job)


@pytest.mark.parametrize("set_up", SHARED)
def test_a_held_job_runs_on_the_other_node(job: Torque) -> None:
    job.hold(NODE_A)
    assert job.restart(NODE_B) == job.images[job.newest]
    job.hold(NODE_B)
    assert job.restart(NODE_A) == job.images[job.newest]
    check_kept(job)
    job.ends(NODE_A)
    check_gone(job)


@pytest.mark.parametrize("set_up", [SetUp.NEITHER])
def test_where_no_copy_works_a_held_job_stays_and_so_do_its_images(job: Torque) -> None:
    """TORQUE's clean-up after its failed copy runs as the user."""
    job.checkpoint(NODE_A)
    job.hold(NODE_A)
    for node in (NODE_B, NODE_A, NODE_B):
        with pytest.raises(Requeued):
            job.restart(node)
    assert [refusal for refusal in job.refused if (refusal.who, refusal.call) == ("user", "unlink")]
    check_kept(job)


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("set_up", SetUp)
@pytest.mark.parametrize("checkpointer", Checkpointer)
def test_earlier_images_outlive_a_failed_checkpoint(
    job: Torque, failure: Failure, checkpointer: Checkpointer
) -> None:
    job.checkpointer = checkpointer
    size = TOO_LARGE if failure is Failure.NO_ROOM else None
    job.checkpoint(NODE_A, failure, size)  # the first: there is nothing to keep yet
    assert as_user(ROOT, images_at, job, SERVER) == {}
    job.checkpoint(NODE_A)
    job.checkpoint(NODE_A, failure, size)
    check_kept(job)
    job.checkpoint(NODE_A)
    for _ in range(2):
        job.checkpoint(NODE_A, failure, size)
    assert len(job.images) == KEPT
    check_kept(job)
    assert sorted(as_user(ROOT, os.listdir, job.ck(SERVER))) == sorted(job.images)
    if set_up_shares(job):
        job.hold(NODE_A)
        assert job.restart(NODE_B) == job.images[job.newest]
    job.ends(NODE_B)
    check_gone(job)


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_what_a_failed_checkpoint_took_is_there_for_the_next(job: Torque) -> None:
    for _ in range(2):
        job.checkpoint(NODE_A, Failure.NO_ROOM, TOO_LARGE)
        job.checkpoint(NODE_A)
    check_kept(job)
    job.ends(NODE_A)
    check_gone(job)


@pytest.mark.parametrize("set_up", SetUp)
def test_earlier_images_outlive_a_checkpoint_that_the_quota_ends(
    three_with_quota: tuple[dict[str, str], Path], set_up: SetUp
) -> None:
    """btrfs refuses removals, too, while a quota is used up: what the script leaves stays until there is room."""
    mounts, limited = three_with_quota
    job = a_job(mounts, set_up)
    for _ in range(2):
        job.checkpoint(NODE_A)
    assert errno_as(job.user, _write_too_much, f"{job.ck(NODE_B)}/.too-much.tmp") == errno.EDQUOT
    for _ in range(2):
        job.checkpoint(NODE_A, Failure.NO_ROOM, TOO_LARGE)
        check_kept(job, also={("unlink", errno.EDQUOT)})
    _limit(limited, 2 * STORE_BYTES)
    job.checkpoint(NODE_A)
    assert len(job.images) == KEPT + 1
    check_kept(job, also={("unlink", errno.EDQUOT)})
    job.ends(NODE_B)
    check_gone(job, also={("unlink", errno.EDQUOT)})


def _write_too_much(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(TOO_LARGE >> 16):
            os.write(fd, os.urandom(1 << 16))
    finally:
        os.close(fd)


def set_up_shares(job: Torque) -> bool:
    return job.set_up in SHARED


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("set_up", SetUp)
def test_periodic_checkpoints_pile_up_and_a_mom_takes_only_those_that_newer_ones_outlived(
    job: Torque,
) -> None:
    for number in range(1, 6):
        job.checkpoint(NODE_A)
        assert len(as_user(ROOT, images_at, job, NODE_B)) == number
    check_kept(job, dict(list(job.images.items())[-KEPT:]))
    job.checkpoint(NODE_A, Failure.SCRIPT)
    check_kept(job)
    assert as_user(ROOT, images_at, job, SERVER) == dict(list(job.images.items())[-KEPT:])


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("at", [NODE_A, NODE_B, None], ids=["where it began", "elsewhere", "held: qdel"])
@pytest.mark.parametrize("set_up", SetUp)
def test_the_server_removes_everything_at_the_end(job: Torque, at: str | None) -> None:
    for _ in range(3):
        job.checkpoint(NODE_A)
    job.hold(NODE_A)
    if set_up_shares(job) and at is not None:
        job.restart(at)
    job.ends(at)
    check_gone(job)


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("at", [NODE_A, None], ids=["complete", "held: qdel"])
@pytest.mark.parametrize("set_up", SetUp)
def test_what_the_server_removed_can_be_restored(job: Torque, at: str | None) -> None:
    """All of it, byte for byte, on every host, and as safe as before. (Two of three were left to the server.)"""
    for _ in range(2):
        job.checkpoint(NODE_A)
    job.hold(NODE_A)
    if set_up_shares(job) and at is not None:
        job.restart(at)
    images = dict(job.images)
    job.ends(at)
    check_gone(job)
    done = run_ckfs("trash", "restore", "--store", job.mounts[SERVER], "--set", job.set_name)
    assert done.returncode == 0, done.stderr
    for host in HOSTS:
        assert as_user(ROOT, images_at, job, host) == images
        assert as_user(job.user, images_at, job, host) == images
    check_kept(job, dict(list(images.items())[-KEPT:]))
    job.images = images
    assert job.restart(NODE_B, staged=False) == images[job.newest]
    job.ends(NODE_B)
    check_gone(job)


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("set_up", SetUp)
def test_what_was_removed_stays_restorable_when_its_job_is_gone_and_another_has_run(job: Torque) -> None:
    job.checkpoint(NODE_A)
    images = dict(job.images)
    job.ends(NODE_A)
    other = Torque(job.mounts, job.set_up, f"{next(_numbers)}.tqsrv")
    other.checkpoint(NODE_A)
    other.ends(NODE_A)
    name = f"kept-of-{job.job}"
    done = run_ckfs("trash", "restore", "--store", job.mounts[SERVER], "--set", job.set_name, "--to", name)
    assert done.returncode == 0, done.stderr
    assert as_user(job.user, images_at, job, NODE_B, name) == images


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("set_up", SetUp)
def test_a_job_that_is_deleted_in_mid_dump_leaves_nothing(job: Torque) -> None:
    job.checkpoint(NODE_A)
    job.checkpoint(NODE_A, Failure.KILLED)
    job.ends(NODE_A)
    check_gone(job)


@pytest.mark.long_on_cluster
@pytest.mark.parametrize("set_up", SetUp)
def test_a_job_that_is_run_again_elsewhere_finds_its_image_without_any_copy(job: Torque) -> None:
    job.checkpoint(NODE_A)
    assert job.restart(NODE_B, staged=False) == job.images[job.newest]
    job.checkpoint(NODE_B)
    check_kept(job)


@pytest.mark.parametrize("set_up", [SetUp.USECP])
def test_images_that_cp_brings_are_kept_too(job: Torque, pbs_home: Path, workdir: Path) -> None:
    """The nodes have directories of their own; cp of the user's copies to the server's, where the server has made the set."""
    file = pbs_home / "mom_priv" / "jobs" / f"{job.job}.JB"
    file.write_bytes(binary(Job(job.job, job.job, uid=ALICE, gid=ALICE)))
    private = workdir / "checkpoint"
    private.mkdir()
    private.chmod(0o1777)
    for _ in range(2):
        assert job.hold_with_private_copy(NODE_A, str(private)) == 0
    check_kept(job)
    assert job.restart_from_private_copy(NODE_B, str(private)) == job.images[job.newest]
    job.checkpoint(NODE_A, Failure.SCRIPT)
    check_kept(job)
    job.ends(None)
    check_gone(job)


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_two_images_of_one_second_are_both_kept_or_the_second_is_refused(job: Torque) -> None:
    """The second has the name of the first."""
    job.checkpoint(NODE_A)
    with pytest.raises(PermissionError):
        as_user(job.user, lambda: write_image(job.ck(NODE_A), job.newest, b"another", None))
    check_kept(job)


# OpenPBS's way


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_openpbs_turns_sets_and_as_many_checkpoints_are_kept_over_both(job: Torque) -> None:
    job.checkpoint(NODE_A)
    (first,) = job.images
    for node in (NODE_A, NODE_B, NODE_A):
        before = job.newest
        job.turn(node)
        old = f"{job.set_name}.old"
        assert list(as_user(ROOT, images_at, job, SERVER, old)) == [before]
        job.checkpoint(node)
        for host in HOSTS:
            assert as_user(ROOT, images_at, job, host) == {job.newest: job.images[job.newest]}
            assert as_user(ROOT, images_at, job, host, old) == {before: job.images[before]}
            for path in (f"{job.ck(host)}/{job.newest}", f"{job.ck(host)}.old/{before}"):
                assert as_user(ROOT, os.getxattr, path, "user.ckfs.protected") != b"no"
                assert errno_as(job.user, os.unlink, path) == errno.EACCES
    assert first not in as_user(ROOT, images_at, job, SERVER, f"{job.set_name}.old")
    check_answers(job)


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_openpbs_goes_back_to_the_old_set_when_the_new_checkpoint_fails(job: Torque) -> None:
    job.checkpoint(NODE_A)
    job.turn(NODE_A)
    job.checkpoint(NODE_A, Failure.KILLED)
    as_user(ROOT, os.rename, f"{job.ck(NODE_A)}.old", job.ck(NODE_A))
    check_kept(job)


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_the_older_set_is_kept_until_the_newer_one_has_a_checkpoint(job: Torque) -> None:
    job.checkpoint(NODE_A)
    image = job.newest
    job.turn(NODE_A)
    job.checkpoint(NODE_A, Failure.KILLED)
    for uid in (ROOT, job.user):
        assert errno_as(uid, os.unlink, f"{job.ck(NODE_A)}.old/{image}") == errno.EACCES
    job.checkpoint(NODE_A)
    assert errno_as(job.user, os.unlink, f"{job.ck(NODE_A)}.old/{image}") == errno.EACCES
    assert errno_as(ROOT, os.unlink, f"{job.ck(NODE_A)}.old/{image}") == 0


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_the_newer_images_are_not_removed_by_calling_them_the_old_set(job: Torque) -> None:
    job.checkpoint(NODE_A)
    job.turn(NODE_A)
    job.checkpoint(NODE_A)
    newest = job.newest
    error = errno_as(ROOT, _exchange, job.ck(NODE_A), f"{job.ck(NODE_A)}.old")
    assert error in (0, errno.EINVAL)  # which GlusterFS answers
    where = job.ck(NODE_A) if error else f"{job.ck(NODE_A)}.old"
    assert errno_as(ROOT, os.unlink, f"{where}/{newest}") == errno.EACCES


def _exchange(one: str, other: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_uint(RENAME_EXCHANGE)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", one, None, other)


# The control: the same operations on a plain shared directory lose what TORQUE loses there


@pytest.mark.parametrize("set_up", [SetUp.USECP, SetUp.NEITHER])
def test_without_ckfs_a_hold_loses_every_image(control: Torque) -> None:
    control.checkpoint(NODE_A)
    control.hold(NODE_A)
    assert images_at(control, SERVER) == {}
    with pytest.raises((Requeued, FileNotFoundError)):
        control.restart(NODE_B)


@pytest.mark.parametrize("set_up", [SetUp.REMOTE])
def test_without_ckfs_a_hold_and_a_migration_need_the_directories_to_be_called_remote(
    control: Torque,
) -> None:
    control.checkpoint(NODE_A)
    control.hold(NODE_A)
    assert images_at(control, SERVER) == control.images
    assert control.restart(NODE_B) == control.images[control.newest]
    control.ends(NODE_B)
    assert not os.path.lexists(control.ck(SERVER))


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("set_up", SetUp)
def test_without_ckfs_a_failed_checkpoint_loses_every_earlier_image(
    control: Torque, failure: Failure
) -> None:
    control.checkpoint(NODE_A)
    control.checkpoint(NODE_A, failure, TOO_LARGE if failure is Failure.NO_ROOM else None)
    assert images_at(control, SERVER) == {}
