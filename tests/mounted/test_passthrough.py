"""What the kernel reads and writes in the store by itself (FUSE passthrough), and what is as it would be without."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pwd
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from errno import EACCES, EDQUOT, ENOSPC, ETXTBSY
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.commands import ckfs_as_root
from tests.support.further import make_further, name_stores, table
from tests.support.images import content, save, state
from tests.support.ledgers import ledger_file
from tests.support.loops import ext4
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.nfs import directory_for, nfs_store
from tests.support.passed import NEEDED, is_read_unseen, is_written_unseen
from tests.support.payers import UNIT, Payer, Place, charged, new_payer, place_in, private_store, until
from tests.support.users import ALICE, ROOT, as_user, errno_as

pytestmark = [pytest.mark.root, NEEDED]

MIB = 1 << 20
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
CONTENT = b"half of an image " * 5000
TORN = r"is partial"


def batch_of(mount: Mount, name: str = "12.server.CK") -> str:
    path = f"{mount.path}/{name}"
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    return path


def own_of(mount: Mount, name: str = "own") -> str:
    path = f"{mount.path}/{name}"
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    return path


def digest_of(path: str) -> str:
    return os.getxattr(path, "user.ckfs.digest").decode()


def has_digest(path: str) -> bool:
    try:
        digest_of(path)
    except OSError:
        return False
    return True


def check_digest(path: str) -> None:
    """What ckfs says of the content is so."""
    until(lambda: has_digest(path), lambda: f"{path} has no digest yet")
    ran = ckfs_as_root("verify", path)
    assert "damaged" not in ran.replace("0 damaged", "")


@pytest.fixture
def torn(store: Path, workdir: Path) -> Iterator[Mount]:
    """A mount that may log of partial images."""
    with mounted(store, workdir / "mount", may_log=[TORN]) as mount:
        yield mount


# What is passed through


@pytest.mark.parametrize("name", ["x.tmp", "x.part", ".x"])
def test_temporary_names_in_batch_sets_are_written_unseen(mount: Mount, name: str) -> None:
    batch = batch_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{batch}/{name}", NEW, 0o600)
        assert is_written_unseen(mount, writer, fd)
        writer.do(os.close, fd)
    assert content(f"{batch}/{name}") == b"unseen"


def test_final_names_in_batch_sets_are_written_through_the_daemon(mount: Mount) -> None:
    batch = batch_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{batch}/image", NEW, 0o600)
        assert not is_written_unseen(mount, writer, fd)
        writer.do(os.close, fd)
    assert state(f"{batch}/image") == "complete"


@pytest.mark.parametrize("how", ["made", "emptied"])
def test_any_name_outside_batch_sets_is_written_unseen(mount: Mount, how: str) -> None:
    own = own_of(mount)
    if how == "emptied":
        as_user(ALICE, save, f"{own}/image", CONTENT)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        assert is_written_unseen(mount, writer, fd)
        writer.do(os.close, fd)
    assert content(f"{own}/image") == b"unseen"
    assert state(f"{own}/image") == "complete"


@pytest.mark.parametrize(
    "flags", [os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_SYNC, os.O_WRONLY | os.O_DSYNC]
)
def test_what_may_be_mapped_appended_or_synced_is_written_through_the_daemon(
    mount: Mount, flags: int
) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", flags | os.O_CREAT, 0o600)
        assert not is_written_unseen(mount, writer, fd)


def test_what_has_content_already_is_written_through_the_daemon(mount: Mount) -> None:
    own = own_of(mount)
    as_user(ALICE, save, f"{own}/image", CONTENT)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", os.O_WRONLY)
        assert not is_written_unseen(mount, writer, fd)


def test_complete_images_of_batch_sets_are_read_unseen(mount: Mount) -> None:
    batch = batch_of(mount)
    as_user(ALICE, save, f"{batch}/image", CONTENT)
    with Agent(ALICE) as reader, Agent(ROOT) as other:
        fd = reader.do(os.open, f"{batch}/image", os.O_RDONLY)
        again = other.do(os.open, f"{batch}/image", os.O_RDONLY)
        assert is_read_unseen(mount, reader, fd)
        assert is_read_unseen(mount, other, again)
    assert content(f"{batch}/image") == CONTENT


def test_images_outside_batch_sets_are_read_unseen_unless_their_owner_has_a_limit(
    place: Place, payer: Payer
) -> None:
    with Agent(payer.uid) as reader:
        payer.calls(save, payer.inside("image"), CONTENT)
        fd = reader.do(os.open, payer.inside("image"), os.O_RDONLY)
        assert is_read_unseen(place.mount, reader, fd)
        reader.do(os.close, fd)
        payer.may_add(MIB)
        fd = reader.do(os.open, payer.inside("image"), os.O_RDONLY)
        assert not is_read_unseen(place.mount, reader, fd)


def test_small_images_are_read_through_the_daemon(mount: Mount) -> None:
    own = own_of(mount)
    as_user(ALICE, save, f"{own}/image", b"small")
    with Agent(ALICE) as reader:
        assert not is_read_unseen(mount, reader, reader.do(os.open, f"{own}/image", os.O_RDONLY))


def test_nothing_is_passed_through_where_it_is_off(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", options=["passthrough=off"]) as mount:
        own, batch = own_of(mount), batch_of(mount)
        as_user(ALICE, save, f"{batch}/image", CONTENT)
        with Agent(ALICE) as agent:
            fd = agent.do(os.open, f"{own}/image", NEW, 0o600)
            assert not is_written_unseen(mount, agent, fd)
            fd = agent.do(os.open, f"{batch}/image", os.O_RDONLY)
            assert not is_read_unseen(mount, agent, fd)


# Several who have it open


def test_writers_beside_each_other_write_one_file(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as first, Agent(ALICE) as second, Agent(ALICE) as third:
        fds = [
            agent.do(os.open, f"{own}/image", flags, 0o600)
            for agent, flags in [
                (first, NEW),
                (second, os.O_WRONLY),
                (third, os.O_WRONLY | os.O_APPEND),
            ]
        ]
        assert first.do(os.pwrite, fds[0], b"aaa", 0) == 3
        assert second.do(os.pwrite, fds[1], b"bbb", 3) == 3
        assert third.do(os.write, fds[2], b"ccc") == 3
        assert content(f"{own}/image") == b"aaabbbccc"
        first.do(os.close, fds[0])
        assert state(f"{own}/image") == "writing"
        assert second.do(os.pwrite, fds[1], b"B", 3) == 1
    until(lambda: state(f"{own}/image") == "complete", lambda: state(f"{own}/image"))
    assert content(f"{own}/image") == b"aaaBbbccc"
    check_digest(f"{own}/image")


def test_both_reading_and_writing_is_refused_beside_who_writes_unseen(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        assert errno_as(ALICE, os.open, f"{own}/image", os.O_RDWR) == ETXTBSY
        writer.do(os.close, fd)
        assert errno_as(ALICE, os.open, f"{own}/image", os.O_RDWR) == 0


def test_who_opens_it_in_every_way_at_once_gets_no_error_but_etxtbsy(mount: Mount) -> None:
    own, failed = own_of(mount), list[int]()
    ways = [NEW, os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT]

    def open_often(flags: int) -> None:
        for _ in range(150):
            try:
                fd = os.open(f"{own}/image", flags, 0o600)
                if flags & os.O_ACCMODE:
                    os.write(fd, CONTENT[:5000])
                else:
                    os.read(fd, 5000)
                os.close(fd)
            except OSError as error:
                if error.errno != ETXTBSY:
                    failed.append(error.errno or 0)

    save(f"{own}/image", CONTENT)
    threads = [threading.Thread(target=open_often, args=(flags,)) for flags in ways * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    until(lambda: state(f"{own}/image") == "complete", lambda: state(f"{own}/image"))
    check_digest(f"{own}/image")


@pytest.mark.parametrize("written_after", [False, True])
def test_set_id_bits_go_with_what_is_written_unseen_after_them(mount: Mount, written_after: bool) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o700)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.fchmod, fd, 0o4700)
        if written_after:
            writer.do(os.write, fd, CONTENT)
        writer.do(os.close, fd)
    assert os.stat(f"{own}/image").st_mode & 0o7777 == (0o700 if written_after else 0o4700)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", os.O_WRONLY)
        writer.do(os.write, fd, b"x")
        assert os.stat(f"{own}/image").st_mode & 0o7777 == 0o700


# States


def test_a_close_and_a_rename_complete(mount: Mount) -> None:
    batch = batch_of(mount)
    as_user(ALICE, save, f"{batch}/x.tmp", CONTENT)
    assert state(f"{batch}/x.tmp") == "writing"
    as_user(ALICE, os.rename, f"{batch}/x.tmp", f"{batch}/x")
    assert state(f"{batch}/x") == "complete"
    assert errno_as(ALICE, os.unlink, f"{batch}/x") == EACCES
    check_digest(f"{batch}/x")


def test_a_rename_by_whoever_just_closed_it_completes_every_time(mount: Mount) -> None:
    batch = batch_of(mount)

    def often() -> None:
        for number in range(100):
            save(f"{batch}/{number}.tmp", CONTENT)
            os.rename(f"{batch}/{number}.tmp", f"{batch}/{number}")
            assert state(f"{batch}/{number}") in ("complete", "superseded")

    as_user(ALICE, often)


def test_what_is_renamed_while_it_is_written_completes_at_the_last_close(mount: Mount) -> None:
    batch = batch_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{batch}/x.tmp", NEW, 0o600)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.rename, f"{batch}/x.tmp", f"{batch}/x")
        writer.do(os.write, fd, CONTENT)
        assert state(f"{batch}/x") == "writing"
        writer.do(os.close, fd)
    assert state(f"{batch}/x") == "complete"
    check_digest(f"{batch}/x")


def keeps_open(begun: multiprocessing.synchronize.Event, path: str) -> None:
    os.write(os.open(path, NEW, 0o600), CONTENT)
    begun.set()
    signal.pause()


@pytest.mark.parametrize("name", ["own/image", "12.server.CK/x.tmp"])
def test_who_is_killed_leaves_it_partial(torn: Mount, name: str) -> None:
    own_of(torn)
    batch_of(torn)
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=keeps_open, args=(begun, f"{torn.path}/{name}"))
    process.start()
    assert begun.wait(20)
    process.kill()
    process.join()
    until(lambda: state(f"{torn.path}/{name}") == "partial", lambda: state(f"{torn.path}/{name}"))


def test_who_is_killed_after_an_fsync_leaves_it_complete(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.fsync, fd)
        writer.kill()
    until(lambda: state(f"{own}/image") == "complete", lambda: state(f"{own}/image"))


def test_who_writes_on_after_an_fsync_and_is_killed_leaves_it_partial(torn: Mount) -> None:
    own = own_of(torn)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.fsync, fd)
        writer.do(os.pwrite, fd, b"X", 0)
        writer.kill()
    until(lambda: state(f"{own}/image") == "partial", lambda: state(f"{own}/image"))


def close_and_leave_to_a_child(path: str) -> int:
    """The child, which has the only descriptor left."""
    fd = os.open(path, NEW, 0o600)
    os.write(fd, CONTENT)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    os.close(fd)
    return child


def test_a_child_that_keeps_the_descriptor_keeps_it_from_being_complete(mount: Mount) -> None:
    batch = batch_of(mount)
    with Agent(ALICE) as writer:
        child = writer.do(close_and_leave_to_a_child, f"{batch}/x.tmp")
        writer.do(os.rename, f"{batch}/x.tmp", f"{batch}/x")
        assert state(f"{batch}/x") == "writing"
        os.kill(child, signal.SIGKILL)
        writer.do(os.waitpid, child, 0)
    until(lambda: state(f"{batch}/x") == "complete", lambda: state(f"{batch}/x"))


def test_a_descriptor_on_its_way_to_another_process_keeps_it_from_being_complete(mount: Mount) -> None:
    own = own_of(mount)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = os.open(f"{own}/image", NEW, 0o600)
        os.write(fd, CONTENT)
        socket.send_fds(ours, [b"x"], [fd])
        os.close(fd)
        assert state(f"{own}/image") == "writing"
        _, (again,), _, _ = socket.recv_fds(theirs, 1, 1)
        os.write(again, CONTENT)
        os.close(again)
    until(lambda: state(f"{own}/image") == "complete", lambda: state(f"{own}/image"))
    assert content(f"{own}/image") == 2 * CONTENT
    check_digest(f"{own}/image")


def test_what_is_removed_while_it_is_written_is_gone(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.unlink, f"{own}/image")
        writer.do(os.write, fd, CONTENT)
        assert writer.do(os.fstat, fd).st_size == 2 * len(CONTENT)
        writer.do(os.close, fd)
    assert not os.listdir(own)


def test_readers_go_on_when_what_they_read_is_superseded_and_removed(mount: Mount) -> None:
    batch = batch_of(mount)
    for name in "abc":
        as_user(ALICE, save, f"{batch}/{name}", CONTENT)
    with Agent(ALICE) as reader:
        fd = reader.do(os.open, f"{batch}/a", os.O_RDONLY)
        as_user(ALICE, os.unlink, f"{batch}/a")
        as_user(ALICE, save, f"{batch}/a", b"new")
        assert reader.do(os.read, fd, len(CONTENT)) == CONTENT
        assert content(f"{batch}/a") == b"new"


# A full store


def write_on_until_refused(fd: int) -> int:
    """And close as if nothing were; returns the errno."""
    try:
        while True:
            os.write(fd, bytes(MIB))
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(fd)


def test_what_found_no_room_is_partial_and_took_nothing_of_roots(root_and_fuse: None, workdir: Path) -> None:
    with ext4(workdir, 2 << 30, 4000, for_root=5) as top:
        room = os.statvfs(top)
        kept = room.f_bfree - room.f_bavail
        assert kept * room.f_frsize > 64 * MIB
        store = make_store(top)
        with mounted(store, workdir / "mount", may_log=[TORN]) as mount, Agent(ALICE) as writer:
            own = own_of(mount)
            fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
            assert is_written_unseen(mount, writer, fd)
            with (top / "other").open("wb") as other:
                room = os.statvfs(top)
                os.posix_fallocate(other.fileno(), 0, room.f_bavail * room.f_frsize - 40 * MIB)
            assert writer.do(write_on_until_refused, fd) == ENOSPC
            assert os.statvfs(top).f_bfree >= kept
            until(lambda: state(f"{own}/image") == "partial", lambda: state(f"{own}/image"))


@pytest.mark.parametrize("wish", ["auto", "on"])
def test_on_a_store_behind_a_network_it_is_off_unless_wanted(
    root_and_fuse: None, workdir: Path, wish: str
) -> None:
    private, keeper = workdir / "private", pwd.getpwnam("daemon")
    private.mkdir(mode=0o700)
    with nfs_store(private) as nfs:
        directory_for(nfs, keeper.pw_uid, keeper.pw_gid)
        store = nfs.clients[0].path / "store"
        run_ckfs("init", store, "--service-user", keeper.pw_name).check_returncode()
        options = [f"service_user={keeper.pw_name}", f"passthrough={wish}"]
        with mounted(store, workdir / "mount", options=options) as mount, Agent(ALICE) as writer:
            writer.do(os.mkdir, f"{mount.path}/own")
            fd = writer.do(os.open, f"{mount.path}/own/image", NEW, 0o600)
            assert is_written_unseen(mount, writer, fd) == (wish == "on")
            writer.do(os.close, fd)
            assert state(f"{mount.path}/own/image") == "complete"


# Two mounts of one store


@pytest.mark.parametrize("options", [[], ["passthrough=off"]], ids=["both", "one"])
def test_what_one_mount_writes_unseen_another_sees_and_renames(
    store: Path, workdir: Path, options: list[str]
) -> None:
    with (
        mounted(store, workdir / "a", node="a") as a,
        mounted(store, workdir / "b", node="b", options=options) as b,
    ):
        batch_of(a)
        one, other = f"{a.path}/12.server.CK", f"{b.path}/12.server.CK"
        with Agent(ALICE) as writer:
            fd = writer.do(os.open, f"{one}/x.tmp", NEW, 0o600)
            writer.do(os.write, fd, CONTENT)
            assert content(f"{other}/x.tmp") == CONTENT
            as_user(ALICE, os.rename, f"{other}/x.tmp", f"{other}/x")
            assert state(f"{other}/x") == "writing"
            writer.do(os.write, fd, CONTENT)
            writer.do(os.close, fd)
        until(lambda: state(f"{other}/x") == "complete", lambda: state(f"{other}/x"))
        assert state(f"{one}/x") == "complete"
        assert content(f"{other}/x") == 2 * CONTENT
        assert errno_as(ALICE, os.unlink, f"{other}/x") == EACCES


def test_a_writer_that_outlives_its_mount_never_writes_what_is_complete(store: Path, workdir: Path) -> None:
    with (
        Agent(ALICE) as writer,
        mounted(store, workdir / "b", node="b", role="both", may_log=[TORN, "not heard of"]) as b,
    ):
        with mounted(store, workdir / "a", node="a") as a:
            own_of(a)
            fd = writer.do(os.open, f"{a.path}/own/image", NEW, 0o600)
            writer.do(os.write, fd, CONTENT)
            a.kill()
            writer.do(os.write, fd, CONTENT)
        image = f"{b.path}/own/image"
        as_user(ALICE, save, image, b"new")
        before = os.stat(image).st_ino
        writer.do(os.pwrite, fd, b"stray", 0)
        assert content(image) == b"new"
        assert os.stat(image).st_ino == before
        with contextlib.suppress(OSError):
            writer.do(os.close, fd)


# Quotas


@pytest.fixture(scope="module")
def place(root_and_fuse: None, module_workdir: Path) -> Iterator[Place]:
    with place_in(module_workdir, may_log=[TORN]) as place:
        yield place


@pytest.fixture
def payer(place: Place) -> Payer:
    return new_payer(place.mount, place.quotas)


def changed_in_every_way(path: str) -> None:
    fd = os.open(path, NEW, 0o600)
    os.write(fd, bytes(3 * MIB))
    os.ftruncate(fd, MIB + 1)
    os.pwrite(fd, b"x", 5 * MIB)
    os.posix_fallocate(fd, 8 * MIB, MIB)
    with open(path, "ab") as appended:
        appended.write(bytes(MIB))
    os.truncate(path, 7 * MIB)
    os.close(fd)


def test_what_was_written_unseen_is_charged_exactly(place: Place, payer: Payer) -> None:
    before = charged(place.store, payer.uid)
    payer.calls(changed_in_every_way, payer.inside("image"))
    has = place.quotas.settled(payer.uid)
    assert has.files == before.files + 1
    assert has.bytes > before.bytes
    payer.calls(os.unlink, payer.inside("image"))
    place.quotas.settled(payer.uid)
    place.quotas.all_given_back()
    place.quotas.check()


def said_unseen(place: Place) -> set[int]:
    """For whom the ledger says now that the kernel writes by itself, or is about to."""
    uri = f"{ledger_file(place.store).as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as ledger:
        return {uid for (uid,) in ledger.execute("SELECT uid FROM unseen")}


def test_who_has_a_limit_is_kept_within_it(place: Place, payer: Payer) -> None:
    payer.may_add(2 * MIB)
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, payer.inside("image"), NEW, 0o600)
        assert payer.uid not in said_unseen(place)
        assert not is_written_unseen(place.mount, writer, fd)


def test_what_is_written_while_a_limit_is_set_counts_before_it_is_closed(place: Place, payer: Payer) -> None:
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, payer.inside("image"), NEW, 0o600)
        assert payer.uid in said_unseen(place)
        assert is_written_unseen(place.mount, writer, fd)
        place.quotas.limit(payer.uid, hard=MIB)
        for _ in range(4):
            writer.do(os.write, fd, bytes(MIB))
        until(
            lambda: place.quotas.standing(payer.uid).used.bytes >= 4 * MIB,
            lambda: f"it counts with {place.quotas.standing(payer.uid)}",
        )
        assert errno_as(payer.uid, save, payer.inside("another"), b"x" * UNIT) == EDQUOT
        writer.do(os.close, fd)
    assert place.quotas.settled(payer.uid).bytes >= 4 * MIB
    place.quotas.all_given_back()
    place.quotas.check()


def test_a_set_that_is_given_away_while_it_is_written_counts_for_its_new_owner(
    place: Place, payer: Payer
) -> None:
    other = new_payer(place.mount, place.quotas)
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, payer.inside("image"), NEW, 0o600)
        writer.do(os.write, fd, bytes(2 * MIB))
        os.chown(payer.path, other.uid, other.uid)
        writer.do(os.write, fd, bytes(2 * MIB))
        writer.do(os.close, fd)
    assert place.quotas.settled(other.uid).bytes >= 4 * MIB
    place.quotas.settled(payer.uid)
    place.quotas.all_given_back()
    place.quotas.check()


# Sets that move


@pytest.fixture
def beside_fast(root_and_fuse: None, workdir: Path) -> Iterator[Mount]:
    """A mount of a store with a further one, called fast, in which new sets begin."""
    home = private_store(workdir)
    name_stores(home, table("fast", make_further(home, workdir / "private" / "fast")))
    with mounted(home, workdir / "mount", may_log=[TORN, "further store"]) as mount:
        yield mount


def test_what_is_written_unseen_keeps_its_set_from_being_moved(beside_fast: Mount) -> None:
    own = own_of(beside_fast)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        writer.do(os.write, fd, CONTENT)
        refused = run_ckfs("move", own, "home")
        assert refused.returncode != 0
        writer.do(os.write, fd, CONTENT)
        writer.do(os.close, fd)
    assert run_ckfs("move", own, "home").returncode == 0
    assert content(f"{own}/image") == 2 * CONTENT
    assert state(f"{own}/image") == "complete"


def test_who_reads_unseen_goes_on_while_the_set_is_moved(beside_fast: Mount) -> None:
    batch = batch_of(beside_fast)
    as_user(ALICE, save, f"{batch}/image", CONTENT)
    with Agent(ALICE) as reader, Agent(ALICE) as other:
        fd = reader.do(os.open, f"{batch}/image", os.O_RDONLY)
        assert is_read_unseen(beside_fast, reader, fd)
        moved = run_ckfs("move", batch, "home")
        assert (moved.returncode, moved.stdout) == (0, f"{batch}: lies in home now\n"), moved.stderr
        again = other.do(os.open, f"{batch}/image", os.O_RDONLY)
        assert reader.do(os.read, fd, len(CONTENT)) == CONTENT
        assert other.do(os.read, again, len(CONTENT)) == CONTENT
    check_digest(f"{batch}/image")


def test_what_is_overwritten_beside_a_reader_goes_to_the_trash_and_counts(place: Place, payer: Payer) -> None:
    """The kernel cannot be led to a new file: a copy goes there."""
    path, content = payer.inside("log"), b"first" * MIB
    with Agent(payer.uid) as writer, Agent(payer.uid) as reader:
        fd = writer.do(os.open, path, NEW, 0o600)
        writer.do(os.write, fd, content)
        old = reader.do(os.open, path, os.O_RDONLY)
        writer.do(os.close, fd)
        before = place.quotas.settled(payer.uid)
        payer.calls(save, path, b"second")
        after = place.quotas.settled(payer.uid)
        assert reader.do(os.pread, old, 10, 0) == b"second"
    assert payer.calls(state, path) == "complete"
    assert (after.bytes, after.files) == (before.bytes + UNIT, before.files + 1)
    assert ckfs_as_root("trash", "ls", "--store", place.mount.path).count("/log\n") == 1
    payer.calls(os.unlink, path)
    place.quotas.all_given_back()
    place.quotas.check()


def test_what_is_stored_through_a_mapping_beside_a_reader_is_noticed_at_the_close(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer, Agent(ALICE) as reader:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
        writer.do(os.write, fd, b"o" * MIB)
        reader.do(os.open, f"{own}/image", os.O_RDONLY)
        writer.do(os.close, fd)
        check_digest(f"{own}/image")
        as_user(ALICE, store_in_mapping, f"{own}/image")
        assert reader.do(content, f"{own}/image")[:4] == b"newo"
    assert as_user(ALICE, state, f"{own}/image") == "complete"
    check_digest(f"{own}/image")


def store_in_mapping(path: str) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[:3] = b"new"
