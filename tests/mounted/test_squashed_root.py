"""A store on which root is nobody, as NFS has it with root_squash: what an admin makes, and what ckfs does there.

Root can change no owner on such a store. A set that root gives to a user is his at once; its files are copied to him, and
until they are they are read and written where they were.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, SetName, Uid
from ckfs.store.handover import Copying, name_owner
from ckfs.store.layout import open_store
from tests.support.agents import Agent
from tests.support.faultfs import FaultStore
from tests.support.images import append, save
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.nfs import nfs_store
from tests.support.quotas import set_quota
from tests.support.sets import create, looks_of, make_set, overwrite, read
from tests.support.users import ALICE, BOB, NOBODY, ROOT, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SERVICE = "daemon"
"""An account that every Debian has; it stands for the one that an admin makes for ckfs."""
ACCOUNT = pwd.getpwnam(SERVICE)
KEPT_BY = f"service_user={SERVICE}"
WITHIN_S = 30.0
MIB = 1 << 20
SET = "1.server.CK"


@pytest.fixture
def squashed(workdir: Path) -> Iterator[FaultStore]:
    """A shared file system whose server squashes root, below a local directory that users cannot enter."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    with nfs_store(private) as nfs:
        yield nfs.clients[0]


@pytest.fixture
def store(squashed: FaultStore) -> Path:
    return store_on(squashed)


def store_on(client: FaultStore) -> Path:
    """What the admin makes on the storage server, a directory of the service account, made a store by ``ckfs init``."""
    made = client.backing / "store"
    made.mkdir(mode=0o755)
    os.chown(made, ACCOUNT.pw_uid, ACCOUNT.pw_gid)
    store = client.path / "store"
    done = run_ckfs("init", store, "--service-user", SERVICE)
    assert (done.returncode, done.stderr) == (0, "")
    policy = made / "policy.toml"
    # Here batch sets are what nobody owns yet; what protects their images is shown elsewhere.
    policy.write_text(policy.read_text().replace("keep = 2", "keep = 0"))
    return store


@dataclass(frozen=True)
class Cluster:
    """Two mounts of a squashed store. *server* runs as the batch server's host, *node* as a compute node."""

    faults: FaultStore
    store: Path
    server: Mount
    node: Mount

    def kept(self, uid: int) -> dict[str, os.stat_result]:
        return kept(self.faults, uid)


@pytest.fixture
def cluster(squashed: FaultStore, store: Path, workdir: Path) -> Iterator[Cluster]:
    with (
        mounted(store, workdir / "server", role="server", node="server", options=[KEPT_BY]) as server,
        mounted(store, workdir / "node", node="node", options=[KEPT_BY]) as node,
    ):
        yield Cluster(squashed, store, server, node)


@pytest.fixture
def two_hosts(workdir: Path) -> Iterator[Cluster]:
    """As ``cluster``, and each mount stands on a client of its own: what is open on one of them is not known to the other."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    with nfs_store(private, clients=2) as nfs:
        first, second = nfs.clients
        store = store_on(first)
        with (
            mounted(store, workdir / "server", role="server", node="server", options=[KEPT_BY]) as server,
            mounted(second.path / "store", workdir / "node", node="node", options=[KEPT_BY]) as node,
        ):
            yield Cluster(first, store, server, node)


@pytest.fixture(params=["cluster", "two_hosts"])
def either(request: pytest.FixtureRequest) -> Cluster:
    """Both mounts on one host, which keeps what is open on it for as long as it is; and each on its own."""
    return cast("Cluster", request.getfixturevalue(cast("str", request.param)))


def kept(faults: FaultStore, uid: int) -> dict[str, os.stat_result]:
    """What lies below ``users/<uid>`` on the storage server."""
    top = faults.backing / "store/users" / str(uid)
    return {str(path.relative_to(top)): path.lstat() for path in top.rglob("*")}


def staged(faults: FaultStore) -> list[str]:
    """Locks and half-made files; the entry of one who died in the middle stays, and harms nobody (docs/store.md)."""
    return [name for name in os.listdir(faults.backing / "store/staging") if not name.startswith("staging-")]


def owner_of(path: str) -> str:
    return os.getxattr(path, "user.ckfs.uid").decode()


def eventually(look: Callable[[], object], expected: object) -> None:
    """What a mount does in the background is seen within a while."""
    deadline = time.monotonic() + WITHIN_S
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"{seen!r} instead of {expected!r}"
        time.sleep(0.02)


def has_followed(faults: FaultStore, name: str, uid: int, *, before: int = ACCOUNT.pw_uid) -> None:
    """The set's files are *uid*'s, and nothing of them is left with whoever had them *before*."""
    eventually(lambda: tops(faults, name, before), [])
    assert len(tops(faults, name, uid)) == 1
    assert {(status.st_uid, status.st_gid) for status in kept(faults, uid).values()} == {(uid, uid)}
    eventually(lambda: staged(faults), [])


def tops(faults: FaultStore, name: str, uid: int) -> list[str]:
    """The places that the set *name* has at *uid*'s."""
    with contextlib.suppress(FileNotFoundError):
        return [
            place for place in os.listdir(faults.backing / f"store/users/{uid}") if place.startswith(name)
        ]
    return []


# Making a store


def test_an_admin_makes_the_directory_and_ckfs_the_rest(squashed: FaultStore, store: Path) -> None:
    made = {path.name: path.lstat() for path in (squashed.backing / "store").iterdir()}
    assert made.keys() == {"ckfs.toml", "policy.toml", "names", "users", "staging", "trash", "mounts"}
    assert {(status.st_uid, status.st_gid) for status in made.values()} == {(ACCOUNT.pw_uid, ACCOUNT.pw_gid)}
    again = run_ckfs("init", store, "--service-user", SERVICE)
    assert (again.returncode, "nothing changed" in again.stdout) == (0, True)


@pytest.mark.parametrize("owner", [ROOT, NOBODY, ALICE])
@pytest.mark.parametrize("service", [[], ["--service-user", SERVICE]])
def test_a_store_that_the_keeper_may_not_write_is_refused(
    squashed: FaultStore, owner: int, service: list[str]
) -> None:
    """Also where root, being nobody, could write: what he made would be whoever's who is squashed too."""
    made = squashed.backing / "store"
    made.mkdir()
    os.chown(made, owner, owner)
    done = run_ckfs("init", squashed.path / "store", *service)
    assert (done.returncode, done.stdout) == (5, "")
    assert "--service-user" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(made.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o1777])
@pytest.mark.parametrize("service", [[], ["--service-user", SERVICE]])
def test_a_missing_directory_is_for_the_admin_to_make(
    squashed: FaultStore, mode: int, service: list[str]
) -> None:
    squashed.backing.chmod(mode)
    done = run_ckfs("init", squashed.path / "store", *service)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert "storage server" in done.stderr
    assert list(squashed.backing.iterdir()) == []


def test_a_mount_names_the_service_account_or_is_refused(store: Path, workdir: Path) -> None:
    (workdir / "mount").mkdir()
    done = run_ckfs("mount", store, workdir / "mount", "-f")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "service_user=" in done.stderr


# Users


def work_of_a_user(top: str) -> None:
    os.mkdir(top, 0o750)
    create(f"{top}/new", b"first")
    fd = os.open(f"{top}/new", os.O_RDWR)
    os.pwrite(fd, b"FIRST", 0)
    os.fsync(fd)
    os.close(fd)
    os.setxattr(f"{top}/new", "user.note", b"value")
    os.rename(f"{top}/new", f"{top}/image")
    create(f"{top}/other")
    os.unlink(f"{top}/other")
    os.mkdir(f"{top}/inner")
    os.rmdir(f"{top}/inner")


def test_users_work_as_on_any_store(cluster: Cluster) -> None:
    as_user(ALICE, work_of_a_user, f"{cluster.server.path}/hers")
    for mount in (cluster.server, cluster.node):
        top = f"{mount.path}/hers"
        assert as_user(ALICE, os.listdir, top) == ["image"]
        assert as_user(ALICE, read, f"{top}/image") == b"FIRST"
        assert as_user(ALICE, os.getxattr, f"{top}/image", "user.note") == b"value"
        assert as_user(ALICE, os.listxattr, f"{top}/image") == ["user.note"]
        assert errno_as(BOB, os.listdir, top) == errno.EACCES
    assert {(at, status.st_uid) for at, status in cluster.kept(ALICE).items()} == {
        ("hers", ALICE),
        ("hers/image", ALICE),
    }


def test_what_is_appended_gets_what_fits_exactly(cluster: Cluster) -> None:
    """Who asks the store whether others write the file does so as its owner."""
    path, unit = f"{cluster.node.path}/set", os.statvfs(cluster.store).f_frsize
    as_user(ALICE, os.mkdir, path)
    as_user(ALICE, save, f"{path}/log", b"x")
    set_quota(cluster.node.path, ALICE, "--hard", str(3 * unit))
    as_user(ALICE, append, f"{path}/log", b"y" * (2 * unit - 1))
    assert errno_as(ALICE, os.mkdir, f"{path}/more") == errno.EDQUOT
    assert read(f"{path}/log") == b"x" + b"y" * (2 * unit - 1)


def test_root_does_in_a_users_set_what_root_may(cluster: Cluster) -> None:
    top = f"{cluster.server.path}/hers"
    as_user(ALICE, os.mkdir, top, 0o700)
    as_user(ALICE, create, f"{top}/image", b"image", 0o600)
    as_user(ALICE, create, f"{top}/other")
    other = f"{cluster.node.path}/hers"
    assert read(f"{other}/image") == b"image"
    overwrite(f"{other}/image", b"IMAGE")
    os.chmod(f"{other}/image", 0o640)
    create(f"{other}/roots", b"root's")
    os.unlink(f"{other}/other")
    assert as_user(ALICE, read, f"{top}/image") == b"IMAGE"
    assert stat.S_IMODE(os.stat(f"{top}/image").st_mode) == 0o640
    assert os.stat(f"{top}/roots").st_uid == ROOT
    assert {(at, status.st_uid) for at, status in cluster.kept(ALICE).items()} == {
        ("hers", ALICE),
        ("hers/image", ALICE),
        ("hers/roots", ALICE),
    }


# Giving


GIVING: dict[str, Callable[[str, int], object]] = {
    "chown": lambda path, uid: os.chown(path, uid, uid),
    "user.ckfs.owner": lambda path, uid: os.setxattr(path, "user.ckfs.owner", str(uid).encode()),
    "ckfs give": lambda path, uid: run_ckfs("give", path, str(uid)).check_returncode(),
}


@pytest.mark.parametrize("how", GIVING)
def test_an_unclaimed_set_is_kept_by_the_service_account_until_it_is_given(
    cluster: Cluster, how: str
) -> None:
    top, there = f"{cluster.server.path}/{SET}", f"{cluster.node.path}/{SET}"
    make_set(top)
    assert owner_of(there) == "-"
    kept_before = cluster.kept(ACCOUNT.pw_uid)
    assert {(status.st_uid, status.st_gid) for status in kept_before.values()} == {
        (ACCOUNT.pw_uid, ACCOUNT.pw_gid)
    }
    before = looks_of(top)
    GIVING[how](top, ALICE)
    for path in (top, there):
        assert (owner_of(path), os.stat(path).st_uid) == (str(ALICE), ALICE)
        assert looks_of(path) == before
    has_followed(cluster.faults, SET, ALICE)
    for path in (top, there):
        assert looks_of(path) == before
    place = tops(cluster.faults, SET, ALICE)[0]
    assert (
        cluster.kept(ALICE)[f"{place}/sparse"].st_blocks <= 2 * kept_before[f"{SET}/sparse"].st_blocks + 4096
    )
    assert cluster.kept(ALICE)[f"{place}/sparse"].st_blocks < 8 * MIB // 512 // 2
    as_user(ALICE, create, f"{there}/hers")


def test_a_set_goes_from_user_to_user_and_back(cluster: Cluster) -> None:
    top = f"{cluster.server.path}/given"
    as_user(ALICE, os.mkdir, top)
    as_user(ALICE, create, f"{top}/image", b"image", 0o600)
    looks = looks_of(top)
    for before, after in ((ALICE, BOB), (BOB, ALICE), (ALICE, BOB)):
        os.chown(f"{cluster.node.path}/given", after, after)
        has_followed(cluster.faults, "given", after, before=before)
        assert owner_of(top) == str(after)
        assert looks_of(top) == looks


def test_a_set_that_is_a_file_is_given_too(cluster: Cluster) -> None:
    path = f"{cluster.server.path}/{SET}"
    create(path, b"image", 0o400)
    os.chown(path, ALICE, ALICE)
    has_followed(cluster.faults, SET, ALICE)
    assert as_user(ALICE, read, f"{cluster.node.path}/{SET}") == b"image"


def test_a_set_given_back_to_root_is_kept_by_the_service_account(cluster: Cluster) -> None:
    path = f"{cluster.server.path}/{SET}"
    os.mkdir(path)
    create(f"{path}/image", b"image")
    os.chown(path, ALICE, ALICE)
    has_followed(cluster.faults, SET, ALICE)
    os.chown(path, ROOT, ROOT)
    eventually(lambda: tops(cluster.faults, SET, ALICE), [])
    assert (owner_of(path), read(f"{path}/image")) == ("0", b"image")
    assert {status.st_uid for status in cluster.kept(ACCOUNT.pw_uid).values()} == {ACCOUNT.pw_uid}


# While a set changes hands


def read_on(top: str, until: str, content: bytes) -> list[str]:
    """Read the image of the set *top*, by its name and by what was opened at first, until the file *until* is there."""
    wrong: list[str] = []
    opened = os.open(f"{top}/image", os.O_RDONLY)
    try:
        while not os.path.exists(until):
            try:
                seen = [read(f"{top}/image"), os.pread(opened, len(content) + 1, 0)]
                names = sorted(os.listdir(top))
            except OSError as error:
                wrong.append(f"{error}")
            else:
                wrong += [f"{len(data)} bytes" for data in seen if data != content]
                wrong += [] if names == ["image", "other"] else [f"{names}"]
    finally:
        os.close(opened)
    return wrong


@pytest.mark.parametrize("slow_s", [0.0, 0.3])
def test_a_set_is_read_throughout_on_every_mount(cluster: Cluster, workdir: Path, slow_s: float) -> None:
    """Also where the copy takes longer than anybody waits for it."""
    top, until = f"{cluster.server.path}/{SET}", workdir / "until"
    os.mkdir(top)
    content = os.urandom(3 * MIB)
    create(f"{top}/image", content)
    create(f"{top}/other")
    with Agent(ROOT) as here, Agent(ROOT) as there:
        here.begin(read_on, top, str(until), content)
        there.begin(read_on, f"{cluster.node.path}/{SET}", str(until), content)
        if slow_s:
            cluster.faults.slow("write", slow_s, "~copy")
        for before, after in ((ACCOUNT.pw_uid, ALICE), (ALICE, BOB), (BOB, ALICE)):
            os.chown(top, after, after)
            assert owner_of(f"{cluster.node.path}/{SET}") == str(after)
            has_followed(cluster.faults, SET, after, before=before)
        until.touch()
        assert here.result() == []
        assert there.result() == []


def held_in_mid_copy(cluster: Cluster, uid: int = ALICE, by: Mount | None = None) -> str:
    """A set with an image that has been given to *uid*, and the copy hangs in its second piece. Returns its path."""
    top = f"{(by or cluster.server).path}/{SET}"
    os.mkdir(top)
    create(f"{top}/image", b"i" * (3 * MIB))
    os.mkdir(f"{top}/inner")
    cluster.faults.hang("write", path="~copy/image")
    os.chown(top, uid, uid)
    cluster.faults.hanging("write")
    return top


CHANGES: dict[str, Callable[[str], object]] = {
    "chmod": lambda top: os.chmod(f"{top}/image", 0o640),
    "setxattr": lambda top: os.setxattr(f"{top}/inner", "user.note", b"value"),
    "mkdir": lambda top: os.mkdir(f"{top}/inner/directory"),
    "symlink": lambda top: os.symlink("target", f"{top}/inner/symlink"),
    "link": lambda top: os.link(f"{top}/image", f"{top}/inner/link"),
    "rename": lambda top: os.rename(f"{top}/image", f"{top}/inner/image"),
    "unlink": lambda top: os.unlink(f"{top}/image"),
    "write": lambda top: overwrite(f"{top}/image", b"changed"),
    "create": lambda top: create(f"{top}/inner/file", b"new"),
    "utimensat": lambda top: os.utime(f"{top}/image", ns=(1, 10**18)),
}


@pytest.mark.parametrize("at", ["server", "node"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_while_a_set_is_copied_is_not_lost(cluster: Cluster, change: str, at: str) -> None:
    top = held_in_mid_copy(cluster)
    mount = cluster.server if at == "server" else cluster.node
    CHANGES[change](f"{mount.path}/{SET}")
    changed = looks_of(top)
    cluster.faults.release()
    eventually(lambda: "changed while it was copied" in cluster.server.log(), True)
    assert looks_of(top) == changed
    assert looks_of(f"{cluster.node.path}/{SET}") == changed


def test_a_copy_that_came_too_late_is_made_again(cluster: Cluster) -> None:
    held_in_mid_copy(cluster)
    overwrite(f"{cluster.node.path}/{SET}/image", b"changed")
    cluster.faults.release()
    has_followed(cluster.faults, SET, ALICE)
    for mount in (cluster.server, cluster.node):
        assert read(f"{mount.path}/{SET}/image")[:8] == b"changedi"


def test_the_copy_waits_for_a_writer_on_its_mount(cluster: Cluster) -> None:
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    fd = os.open(f"{top}/image", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"before ")
        os.chown(top, ALICE, ALICE)
        assert (owner_of(f"{cluster.node.path}/{SET}"), os.stat(top).st_uid) == (str(ALICE), ALICE)
        as_user(ALICE, create, f"{cluster.node.path}/{SET}/hers")
        os.write(fd, b"after")
        os.fsync(fd)
        assert tops(cluster.faults, SET, ALICE) == []
    finally:
        os.close(fd)
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{cluster.node.path}/{SET}/image") == b"before after"
    assert "somebody has a file of it open for writing" in cluster.server.log()


def test_who_writes_in_a_set_that_is_given_away_closes_a_complete_image(cluster: Cluster) -> None:
    """Nobody has looked at the set since it was given: that alone does not make it a copied one."""
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    fd = os.open(f"{top}/image", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"before ")
        os.chown(top, ALICE, ALICE)
        os.write(fd, b"after")
    finally:
        os.close(fd)
    assert os.getxattr(f"{top}/image", "user.ckfs.state") == b"complete"
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{cluster.node.path}/{SET}/image") == b"before after"


def test_one_who_opens_it_for_writing_while_it_is_copied_is_waited_for(cluster: Cluster) -> None:
    top = held_in_mid_copy(cluster)
    fd = os.open(f"{top}/image", os.O_WRONLY)
    try:
        cluster.faults.release()
        eventually(lambda: tops(cluster.faults, SET, ALICE), [])
        os.pwrite(fd, b"late", 0)
    finally:
        os.close(fd)
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{cluster.node.path}/{SET}/image")[:5] == b"latei"


def test_the_copy_waits_for_a_writer_on_another_mount(cluster: Cluster) -> None:
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    fd = os.open(f"{cluster.node.path}/{SET}/image", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"before ")
        os.chown(top, ALICE, ALICE)
        assert owner_of(f"{cluster.node.path}/{SET}") == str(ALICE)
        eventually(lambda: "being written on node" in cluster.server.log(), True)
        os.write(fd, b"after")
    finally:
        os.close(fd)
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{top}/image") == b"before after"


def is_copied(faults: FaultStore, uid: int) -> None:
    """The copy is the set, and nothing is left of what was before but what is open on the host of whoever copied it."""
    entry = faults.backing / "store/names" / SET
    eventually(lambda: os.readlink(entry).split(":")[3], f"{uid}.{uid}")
    eventually(lambda: [at for at in kept(faults, ACCOUNT.pw_uid) if "/" in at and "/.nfs" not in at], [])


def test_what_is_open_for_reading_leads_to_the_copy_afterwards(either: Cluster) -> None:
    """On the host of whoever copies, NFS keeps what is removed until it is closed; elsewhere it is gone at once."""
    cluster = either
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    create(f"{top}/image", b"image")
    fds = [os.open(f"{mount.path}/{SET}/image", os.O_RDONLY) for mount in (cluster.server, cluster.node)]
    try:
        os.chown(top, ALICE, ALICE)
        is_copied(cluster.faults, ALICE)
        assert [os.pread(fd, 9, 0) for fd in fds] == [b"image", b"image"]
        for fd, path in zip(fds, (top, f"{cluster.node.path}/{SET}"), strict=True):
            os.stat(path)
            os.fchmod(fd, 0o604)
            os.utime(fd, ns=(1, 10**18))
            assert stat.S_IMODE(os.stat(f"{top}/image").st_mode) == 0o604
        overwrite(f"{top}/image", b"IMAGE")
        assert [os.pread(fd, 9, 0) for fd in fds] == [b"IMAGE", b"IMAGE"]
    finally:
        for fd in fds:
            os.close(fd)
    has_followed(cluster.faults, SET, ALICE)


def test_what_was_open_for_writing_elsewhere_writes_the_copy(either: Cluster) -> None:
    """Until it writes, nothing in the store tells of it."""
    cluster = either
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    create(f"{top}/image", b"image")
    fd = os.open(f"{cluster.node.path}/{SET}/image", os.O_WRONLY)
    try:
        os.chown(top, ALICE, ALICE)
        is_copied(cluster.faults, ALICE)
        os.fchmod(fd, 0o640)
        os.write(fd, b"IMA")
    finally:
        os.close(fd)
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{top}/image") == b"IMAge"
    assert stat.S_IMODE(os.stat(f"{top}/image").st_mode) == 0o640
    assert os.getxattr(f"{top}/image", "user.ckfs.state") == b"complete"


@contextlib.contextmanager
def copying(store: Path, uid: int) -> Iterator[Copying]:
    """A hand-over that waits for nobody, as that of a mount to which a writer seems to be dead."""
    service = Owner(Uid(ACCOUNT.pw_uid), Gid(ACCOUNT.pw_gid))
    with contextlib.closing(open_store(str(store), service)) as opened:
        name, owner = SetName(SET.encode()), Owner(Uid(uid), Gid(uid))
        entry, _ = name_owner(opened, name, opened.names.read(name).ino, owner)
        opened.names.prepare_user(owner)
        with contextlib.closing(Copying(opened, name, entry, owner)) as one:
            yield one


@pytest.mark.parametrize(
    ("attribute", "stays"), [("user.ckfs.digest", False), ("user.note", True)], ids=["a digest", "a note"]
)
def test_what_another_mount_keeps_with_an_old_file_stays_unless_it_is_a_digest(
    squashed: FaultStore, store: Path, workdir: Path, attribute: str, *, stays: bool
) -> None:
    """A mount makes digests behind everybody's back, also of an image that another mount has just copied to its new owner."""
    with mounted(store, workdir / "mount", options=[KEPT_BY]) as mount:
        os.mkdir(f"{mount.path}/{SET}")
        create(f"{mount.path}/{SET}/image", b"image")
    with copying(store, ALICE) as hand_over:
        hand_over.begin()
        while hand_over.step():
            pass
        hand_over.finish()
        (old,) = squashed.backing.glob(f"store/users/{ACCOUNT.pw_uid}/{SET}*/image")
        os.setxattr(old, attribute, b"kept in that moment")
        hand_over.put_old_aside()
        hand_over.remove_old()
    assert bool(tops(squashed, SET, ACCOUNT.pw_uid)) is stays


def test_one_whose_image_was_copied_without_his_last_words_hears_of_it(
    squashed: FaultStore, store: Path, workdir: Path
) -> None:
    may_log = ["is partial: a write failed"]
    with mounted(store, workdir / "mount", options=[KEPT_BY, "partial"], may_log=may_log) as mount:
        top = f"{mount.path}/{SET}"
        os.mkdir(top)
        fd = os.open(f"{top}/image", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"before ")
        with copying(store, ALICE) as hand_over:
            hand_over.begin()
            assert hand_over.writers().keys() == {os.uname().nodename.encode()}
            while hand_over.step():
                pass
            hand_over.finish()
            hand_over.put_old_aside()
            hand_over.remove_old()
        os.write(fd, b"after")
        assert errno_of_call(os.close, fd) == errno.EIO
        eventually(lambda: os.getxattr(f"{top}/image", "user.ckfs.state"), b"partial")
        assert read(f"{top}/image") == b"before "


def test_one_mount_copies_a_set_at_a_time(cluster: Cluster) -> None:
    os.mkdir(f"{cluster.server.path}/{SET}")
    with copying(cluster.store, ALICE) as one:
        one.begin()
        with copying(cluster.store, ALICE) as other, pytest.raises(BlockingIOError):
            other.begin()
        while one.step():
            pass
        one.finish()
        one.put_old_aside()
        one.remove_old()
    has_followed(cluster.faults, SET, ALICE)


def test_old_files_that_changed_in_the_last_moment_are_kept(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What another mount does between the last look and the removal is not in the set any more, but not lost."""
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    create(f"{top}/image", b"image")
    with copying(cluster.store, ALICE) as hand_over:
        hand_over.begin()
        while hand_over.step():
            pass
        hand_over.finish()
        of_account = cluster.faults.backing / f"store/users/{ACCOUNT.pw_uid}"
        (of_account / SET / "image").write_bytes(b"IMAGE")
        hand_over.put_old_aside()
        hand_over.remove_old()
    (old,) = of_account.iterdir()
    assert (old / "image").read_bytes() == b"IMAGE"
    assert "another mount wrote there" in caplog.text
    assert read(f"{top}/image") == b"image"


def test_a_mount_that_ends_in_mid_copy_leaves_it_to_others(cluster: Cluster) -> None:
    held_in_mid_copy(cluster)
    cluster.server.terminate()
    cluster.faults.release()
    there = f"{cluster.node.path}/{SET}"
    assert read(f"{there}/image") == b"i" * (3 * MIB)
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{there}/image") == b"i" * (3 * MIB)


def test_a_look_from_another_mount_does_not_disturb_a_copy(cluster: Cluster) -> None:
    """It used to begin to copy to the same place, and remove what was there."""
    held_in_mid_copy(cluster)
    there = f"{cluster.node.path}/{SET}"
    begun = time.monotonic()
    assert read(f"{there}/image") == b"i" * (3 * MIB)
    assert time.monotonic() - begun < 10, (
        "it waits a while for those that are nearly done, not for the whole copy"
    )
    time.sleep(6)  # the other mount tries by itself too
    assert len(tops(cluster.faults, SET, ALICE)) == 1
    cluster.faults.release()
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{there}/image") == b"i" * (3 * MIB)


def test_a_set_that_is_given_on_while_it_is_copied_goes_to_the_last(cluster: Cluster) -> None:
    top = held_in_mid_copy(cluster)
    os.chown(f"{cluster.node.path}/{SET}", BOB, BOB)
    assert owner_of(top) == str(BOB)
    cluster.faults.release()
    has_followed(cluster.faults, SET, BOB)
    eventually(lambda: tops(cluster.faults, SET, ALICE), [])
    assert read(f"{top}/image") == b"i" * (3 * MIB)


def test_a_set_that_is_removed_while_it_is_copied_is_gone(cluster: Cluster) -> None:
    top = held_in_mid_copy(cluster)
    os.unlink(f"{top}/image")
    os.rmdir(f"{top}/inner")
    os.rmdir(top)
    cluster.faults.release()
    eventually(lambda: tops(cluster.faults, SET, ALICE), [])
    for mount in (cluster.server, cluster.node):
        assert os.listdir(mount.path) == []
    os.mkdir(top)
    assert os.listdir(f"{cluster.node.path}/{SET}") == []


def test_a_full_disk_leaves_the_set_as_it_was_and_is_tried_again(cluster: Cluster) -> None:
    top = f"{cluster.server.path}/{SET}"
    os.mkdir(top)
    create(f"{top}/image", b"i" * (3 * MIB))
    cluster.faults.fail("write", errno.ENOSPC, path="~copy/image")
    os.chown(top, ALICE, ALICE)
    eventually(lambda: "No space left" in cluster.server.log(), True)
    eventually(
        lambda: tops(cluster.faults, SET, ALICE), []
    )  # what was copied would keep the room from others
    assert owner_of(f"{cluster.node.path}/{SET}") == str(ALICE)
    assert read(f"{cluster.node.path}/{SET}/image") == read(f"{top}/image") == b"i" * (3 * MIB)
    cluster.faults.clear()
    has_followed(cluster.faults, SET, ALICE)
    assert read(f"{top}/image") == b"i" * (3 * MIB)


# Death in the middle

IMAGE = "(image|inner/link)$"
"""The image of :func:`make_set` has two names: it is written by the one that is listed first, and linked to the other."""

MOMENTS: dict[str, tuple[str, str]] = {
    "before the set is locked": ("create", "staging/copying-"),
    "before the first file is there": ("mkdir", "~copy$"),
    "in the middle of an image": ("write", f"~copy/{IMAGE}"),
    "before an image is safe": ("fsync", f"~copy/{IMAGE}"),
    "before an attribute is kept": ("setxattr", "~copy/inner"),
    "when all is copied": ("setattr", "~copy$"),
    "before it is noted what is old": ("fsync", "staging/copying-"),
    "before the copy takes the set's place": ("rename", "staging/staging-"),
    "before the old files are put aside": ("rename", f"users/{ACCOUNT.pw_uid}/{SET}$"),
    "before the old files are removed": ("unlink", "~old/"),
    "before the old place is removed": ("rmdir", "~old$"),
    "before the set is unlocked": ("unlink", "staging/copying-"),
}
"""What hangs when the daemon is killed."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_hand_over_that_died_is_finished_by_the_next_look(
    squashed: FaultStore, store: Path, workdir: Path, moment: str
) -> None:
    with mounted(store, workdir / "mount", options=[KEPT_BY]) as mount:
        top = f"{mount.path}/{SET}"
        make_set(top)
        before = looks_of(top)
        with Agent(ROOT) as giver:
            operation, path = MOMENTS[moment]
            is_later = operation not in {"create", "mkdir"}
            if is_later:
                squashed.hang("mkdir", path="~copy$")  # it begins the copy
            else:
                squashed.hang(operation, path=path)
            giver.begin(os.chown, top, ALICE, ALICE)
            if is_later:
                # Only now: that the entry says whose the set is takes a rename, too.
                squashed.hanging("mkdir", within=WITHIN_S)
                squashed.hang(operation, path=path)
                squashed.release("mkdir")
            squashed.hanging(operation, within=WITHIN_S)
            assert os.readlink(squashed.backing / "store/names" / SET).split(":")[2] == f"{ALICE}.{ALICE}"
            mount.kill()
            with contextlib.suppress(OSError):
                giver.result()
        squashed.clear()
        squashed.release()
        mount.detach()
    with mounted(store, workdir / "mount", options=[KEPT_BY]) as mount:
        top = f"{mount.path}/{SET}"
        assert (owner_of(top), os.listdir(mount.path)) == (str(ALICE), [SET])
        eventually(lambda: len(tops(squashed, SET, ALICE)), 1)
        has_followed(squashed, SET, ALICE)
        assert looks_of(top) == before
        as_user(ALICE, create, f"{top}/hers")


def test_a_set_whose_giver_died_before_it_was_said_is_as_it_was(
    squashed: FaultStore, store: Path, workdir: Path
) -> None:
    """Before its first step nothing has happened. The chown is made again, and holds."""
    with mounted(store, workdir / "mount", options=[KEPT_BY]) as mount:
        top = f"{mount.path}/{SET}"
        make_set(top)
        before = looks_of(top)
        with Agent(ROOT) as giver:
            squashed.hang("rename", path="staging/staging-")
            giver.begin(os.chown, top, ALICE, ALICE)
            squashed.hanging("rename")
            mount.kill()
            with contextlib.suppress(OSError):
                giver.result()
        assert os.readlink(squashed.backing / "store/names" / SET).split(":")[2] == "-"
        squashed.release()  # whoever is killed lets go of what he called for
        mount.detach()
    with mounted(store, workdir / "mount", options=[KEPT_BY]) as mount:
        top = f"{mount.path}/{SET}"
        assert (owner_of(top), looks_of(top)) == ("-", before)
        os.chown(top, ALICE, ALICE)
        has_followed(squashed, SET, ALICE)
        assert (owner_of(top), looks_of(top)) == (str(ALICE), before)


# Without a mount


def test_a_bare_store_is_listed_though_its_directories_are_closed_to_root(cluster: Cluster) -> None:
    """ckfs looks at each set as the account that keeps it, so that no option is needed."""
    as_user(ALICE, work_of_a_user, f"{cluster.server.path}/hers")
    make_set(f"{cluster.server.path}/{SET}")
    assert errno_as(ROOT, os.listdir, cluster.store / f"users/{ALICE}") == errno.EACCES
    done = run_ckfs("ls", cluster.store)
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split()[-1]: line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert listed == {
        "hers": str(ALICE),
        "hers/image": str(ALICE),
        SET: "-",
        f"{SET}/image": "-",
        f"{SET}/inner/link": "-",
        f"{SET}/sparse": "-",
    }


def test_a_set_that_cannot_be_looked_at_hides_no_other(cluster: Cluster) -> None:
    as_user(ALICE, work_of_a_user, f"{cluster.server.path}/hers")
    as_user(BOB, work_of_a_user, f"{cluster.server.path}/his")
    os.chmod(cluster.faults.backing / f"store/users/{ALICE}", 0)
    done = run_ckfs("ls", cluster.store)
    os.chmod(cluster.faults.backing / f"store/users/{ALICE}", 0o700)
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == ["his", "his/image"]
    assert done.stderr == "ckfs: hers: cannot be read: Permission denied\n"


def test_a_store_that_root_cannot_walk_to_is_refused_in_one_line(
    squashed: FaultStore, store: Path, workdir: Path
) -> None:
    os.chmod(squashed.backing / "store", 0o700)
    (workdir / "mount").mkdir()
    for arguments in (
        ("ls", store),
        ("init", store),
        ("mount", store, workdir / "mount", "-f", "-o", KEPT_BY),
    ):
        done = run_ckfs(*arguments)
        assert (done.returncode, done.stdout.count("\n") <= 1, done.stderr.count("\n")) == (5, True, 1)
        assert "0755" in done.stderr
