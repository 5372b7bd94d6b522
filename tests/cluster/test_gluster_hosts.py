"""Hosts of a GlusterFS cluster that squashes root: what an admin makes and what ckfs does, and what callers see, root included."""

from __future__ import annotations

import errno
import itertools
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gluster_cluster import SERVICE, Cluster
from tests.support.machines import wait_until
from tests.support.mounting import run_ckfs
from tests.support.sets import create, looks_of, make_set, overwrite, read
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as

pytestmark = [pytest.mark.root, pytest.mark.cluster]

ACCOUNT = pwd.getpwnam(SERVICE).pw_uid
LONG_S = 120.0
SERVER, NODE, OTHER_NODE = "server", "node1", "node2"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def store(gluster: Cluster) -> str:
    return gluster.make_store("--quota", "none")


@pytest.fixture(scope="module")
def mounts(gluster: Cluster, store: str, module_workdir: Path) -> Iterator[dict[str, str]]:
    with gluster.mounted_on(store, module_workdir, (SERVER, NODE, OTHER_NODE), server=SERVER) as mounted:
        yield mounted


@pytest.fixture
def unprotected(gluster: Cluster, workdir: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Another store, in which batch sets are only what nobody owns yet, and two hosts' mounts of it."""
    store = gluster.make_store("--quota", "none")
    policy = gluster.kept / store / "policy.toml"
    policy.write_text(policy.read_text().replace("keep = 2", "keep = 0"))
    with gluster.mounted_on(store, workdir, (NODE, OTHER_NODE)) as mounted:
        yield store, mounted


@pytest.fixture
def name() -> str:
    """A batch set's, that no other test has."""
    return f"{next(_numbers)}.server.CK"


def owners_kept(gluster: Cluster, store: str, below: str) -> dict[str, int]:
    """Whose the files below that directory of the store are, as the storage servers' admin sees it."""
    top = gluster.kept / store / below
    return {str(path.relative_to(top)): path.lstat().st_uid for path in top.rglob("*")}


def owner_of(path: str) -> str:
    return os.getxattr(path, "user.ckfs.owner").decode()


def has_followed(gluster: Cluster, store: str, name: str, uid: int) -> None:
    """All files of the set are *uid*'s, and nobody else has any."""

    def followed() -> bool:
        try:
            kept = owners_kept(gluster, store, "users")
        except FileNotFoundError:  # what was copied is just being removed
            return False
        return {path.split("/")[0] for path in kept if f"/{name}" in path} == {str(uid)} and not any(
            "~old" in path for path in kept
        )

    wait_until(followed, f"the files of {name} have followed to {uid}", LONG_S)
    kept = owners_kept(gluster, store, f"users/{uid}")
    assert {owner for path, owner in kept.items() if path.startswith(name)} == {uid}


# Making a store


def test_an_admin_makes_the_directory_and_ckfs_the_rest(gluster: Cluster, store: str) -> None:
    made = owners_kept(gluster, store, "")
    assert {"ckfs.toml", "policy.toml", "names", "users", "staging", "trash", "mounts"} <= made.keys()
    assert {
        made[name] for name in ("ckfs.toml", "policy.toml", "names", "users", "staging", "trash", "mounts")
    } == {ACCOUNT}


def test_what_root_may_not_make_is_refused_in_one_line(gluster: Cluster, store: str, workdir: Path) -> None:
    volume = gluster.hosts[0].volume
    missing = run_ckfs("init", volume / "missing", "--service-user", SERVICE)
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (5, "", 1)
    assert "storage server" in missing.stderr
    gluster.make_directory("roots", ROOT, ROOT)
    of_root = run_ckfs("init", volume / "roots")
    assert (of_root.returncode, of_root.stdout, of_root.stderr.count("\n")) == (5, "", 1)
    (workdir / "mount").mkdir()
    unnamed = run_ckfs("mount", volume / store, workdir / "mount", "-f")
    assert (unnamed.returncode, unnamed.stderr.count("\n")) == (5, 1)
    assert "service_user=" in unnamed.stderr


# Users, and root


def work_of_a_user(top: str) -> None:
    os.mkdir(top, 0o750)
    create(f"{top}/new", b"first")
    overwrite(f"{top}/new", b"FIRST")
    os.setxattr(f"{top}/new", "user.note", b"value")
    os.rename(f"{top}/new", f"{top}/image")
    create(f"{top}/other")
    os.unlink(f"{top}/other")
    os.mkdir(f"{top}/inner")
    os.rmdir(f"{top}/inner")


def test_users_work_as_on_any_store(gluster: Cluster, store: str, mounts: dict[str, str]) -> None:
    as_user(ALICE, work_of_a_user, f"{mounts[NODE]}/hers")
    for mount in mounts.values():
        top = f"{mount}/hers"
        assert as_user(ALICE, os.listdir, top) == ["image"]
        assert as_user(ALICE, read, f"{top}/image") == b"FIRST"
        assert as_user(ALICE, os.getxattr, f"{top}/image", "user.note") == b"value"
        assert errno_as(BOB, os.listdir, top) == errno.EACCES
    assert owners_kept(gluster, store, f"users/{ALICE}")["hers/image"] == ALICE


def test_root_does_in_a_users_set_what_root_may(mounts: dict[str, str]) -> None:
    top, elsewhere = f"{mounts[NODE]}/closed", f"{mounts[OTHER_NODE]}/closed"
    as_user(ALICE, os.mkdir, top, 0o700)
    as_user(ALICE, create, f"{top}/image", b"image", 0o600)
    assert read(f"{elsewhere}/image") == b"image"
    overwrite(f"{elsewhere}/image", b"IMAGE")
    os.chmod(f"{elsewhere}/image", 0o640)
    create(f"{elsewhere}/roots", b"root's")
    assert as_user(ALICE, read, f"{top}/image") == b"IMAGE"
    assert sorted(as_user(ALICE, os.listdir, top)) == ["image", "roots"]
    assert os.stat(f"{top}/roots").st_uid == ROOT
    os.unlink(f"{elsewhere}/roots")
    assert as_user(ALICE, os.listdir, top) == ["image"]


def use_without_a_name(path: str, remove: str) -> tuple[bytes, int, int, int]:
    """Content, links, owner and mode of an open file that is removed by the path *remove*."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        os.write(fd, b"before")
        os.unlink(remove)
        os.pwrite(fd, b"after-", 6)
        os.ftruncate(fd, 11)
        os.fsync(fd)
        status = os.fstat(fd)
        return os.pread(fd, 100, 0), status.st_nlink, status.st_uid, stat.S_IMODE(status.st_mode)
    finally:
        os.close(fd)


@pytest.mark.parametrize("remover", [NODE, OTHER_NODE])
def test_an_open_file_that_loses_its_name_stays_in_use(mounts: dict[str, str], remover: str) -> None:
    """GlusterFS keeps its data for those who have it open, but no attributes."""
    top = f"unnamed-{remover}"
    as_user(ALICE, os.mkdir, f"{mounts[NODE]}/{top}")
    paths = [f"{mounts[host]}/{top}/.image.tmp" for host in (NODE, remover)]
    assert as_user(ALICE, use_without_a_name, *paths) == (b"beforeafter", 0, ALICE, 0o640)
    assert as_user(ALICE, os.listdir, f"{mounts[OTHER_NODE]}/{top}") == []


# Whose a set is


def test_an_unclaimed_set_is_the_service_accounts_until_it_is_given(
    gluster: Cluster, unprotected: tuple[str, dict[str, str]], name: str
) -> None:
    store, mounts = unprotected
    here, there = f"{mounts[NODE]}/{name}", f"{mounts[OTHER_NODE]}/{name}"
    make_set(here)
    assert owner_of(there) == "-"
    assert owners_kept(gluster, store, f"users/{ACCOUNT}")[f"{name}/image"] == ACCOUNT
    before = looks_of(here)
    os.chown(there, ALICE, ALICE)
    for path in (here, there):
        assert (owner_of(path), os.stat(path).st_uid) == (str(ALICE), ALICE)
        assert looks_of(path) == before
    has_followed(gluster, store, name, ALICE)
    for path in (here, there):
        assert looks_of(path) == before
    as_user(ALICE, create, f"{here}/hers")


def test_a_set_goes_from_user_to_user_and_back_on_any_host(
    gluster: Cluster, store: str, mounts: dict[str, str]
) -> None:
    top = f"{mounts[NODE]}/given"
    as_user(ALICE, os.mkdir, top)
    as_user(ALICE, create, f"{top}/image", b"image", 0o600)
    looks = looks_of(top)
    for host, uid in ((OTHER_NODE, BOB), (NODE, ALICE), (SERVER, BOB)):
        os.chown(f"{mounts[host]}/given", uid, uid)
        has_followed(gluster, store, "given", uid)
        assert (owner_of(top), looks_of(top)) == (str(uid), looks)


# Protection


def test_the_newest_images_of_a_batch_set_outlive_owner_and_moms_and_only_the_server_removes_them(
    mounts: dict[str, str], name: str
) -> None:
    images = [f"ckpt.{name}.{number}" for number in range(3)]
    here, there, server = (f"{mounts[host]}/{name}" for host in (NODE, OTHER_NODE, SERVER))
    os.mkdir(here)
    os.chown(here, ALICE, ALICE)
    for image in images:
        as_user(ALICE, create, f"{here}/{image}", image.encode())
    for top in (here, there):
        for image in images[1:]:
            assert errno_as(ROOT, os.unlink, f"{top}/{image}") == errno.EACCES
            assert errno_as(ALICE, os.unlink, f"{top}/{image}") == errno.EACCES
            assert errno_as(ALICE, os.truncate, f"{top}/{image}", 0) == errno.EACCES
        assert errno_as(ROOT, os.rmdir, top) == errno.ENOTEMPTY
    os.unlink(f"{there}/{images[0]}")  # superseded
    for image in images[1:]:
        os.unlink(f"{server}/{image}")
    os.rmdir(server)
    assert not os.path.lexists(here)
    restored = run_ckfs("trash", "restore", "--store", mounts[SERVER], "--set", name)
    assert restored.returncode == 0, restored.stderr
    for top in (here, there):
        assert {image: read(f"{top}/{image}").decode() for image in os.listdir(top)} == dict(
            zip(images, images, strict=True)
        )


# Commands without a mount


def test_a_bare_store_is_listed_and_checked(
    gluster: Cluster, store: str, mounts: dict[str, str], name: str
) -> None:
    """ckfs looks at each set as the account that keeps it."""
    os.mkdir(f"{mounts[NODE]}/{name}")
    create(f"{mounts[NODE]}/{name}/image", b"image")
    listed = run_ckfs("ls", gluster.hosts[2].volume / store)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"{name}/image" in {line.split()[-1] for line in listed.stdout.splitlines()}


def test_nothing_of_the_cluster_is_seen_in_the_network_of_the_tests(gluster: Cluster) -> None:
    links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout
    assert not [host.name for host in gluster.hosts if f"to-{host.name}" in links]
