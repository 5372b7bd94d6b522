"""Files, directories, links and attributes are charged, each once, until the last of them is gone: the holes that have to do
with names."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator

import pytest

from tests.support.agents import Agent
from tests.support.images import append, content, resize, save, write_at
from tests.support.mounting import run_ckfs
from tests.support.payers import (
    DIRECTORY,
    EMPTY_FILE,
    NOTHING,
    UNIT,
    Charge,
    MakePlace,
    Payer,
    Place,
    new_payer,
    until,
)
from tests.support.users import errno_as, errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def place(make_place: MakePlace) -> Iterator[Place]:
    with make_place(may_log=["is partial: a write failed"]) as place:
        yield place


# What takes a file


def make_file(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


KINDS: dict[str, tuple[Callable[[str], None], Charge]] = {
    "file": (make_file, EMPTY_FILE),
    "directory": (os.mkdir, DIRECTORY),
    "symbolic link": (lambda path: os.symlink("target", path), Charge(UNIT, 1)),
    "fifo": (os.mkfifo, EMPTY_FILE),
    "mknod": (lambda path: os.mknod(path, stat.S_IFREG | 0o600), EMPTY_FILE),
    "socket": (make_socket, EMPTY_FILE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_name_takes_a_file_until_there_are_no_more(payer: Payer, kind: str) -> None:
    make, charge = KINDS[kind]
    before = payer.has()
    payer.may_add(files=2)
    for number in range(2):
        payer.calls(make, payer.inside(f"name-{number}"))
    with raises_errno(errno.EDQUOT):
        payer.calls(make, payer.inside("one too many"))
    assert sorted(payer.calls(os.listdir, payer.path)) == ["name-0", "name-1"]
    assert payer.has() - before == charge + charge


@pytest.mark.parametrize("kind", [kind for kind, (_, charge) in KINDS.items() if charge.bytes])
def test_what_takes_bytes_is_not_made_without(payer: Payer, kind: str) -> None:
    make, _ = KINDS[kind]
    payer.may_add(bytes=UNIT + 100)
    payer.calls(make, payer.inside("first"))
    with raises_errno(errno.EDQUOT):
        payer.calls(make, payer.inside("second"))
    assert payer.calls(os.listdir, payer.path) == ["first"]


@pytest.mark.parametrize("kind", KINDS)
def test_sets_are_files_too(payer: Payer, place: Place, kind: str) -> None:
    make, _ = KINDS[kind]
    top = f"{payer.path}-other"
    payer.may_add(files=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(make, top)
    assert not os.path.lexists(top)
    somebody = new_payer(place.mount, place.quotas)
    somebody.calls(make, top)
    assert os.lstat(top).st_uid == somebody.uid, "the name stays free for others"
    assert somebody.has().files == 2


def test_what_is_there_can_be_opened_written_and_linked_without_files_left(payer: Payer) -> None:
    payer.calls(save, payer.inside("image"), b"old")
    before = payer.has()
    payer.may_add(files=0)
    payer.calls(append, payer.inside("image"), b" and new")
    payer.calls(os.link, payer.inside("image"), payer.inside("link"))
    payer.calls(os.rename, payer.inside("image"), payer.inside("renamed"))
    assert payer.has() == before


def test_a_long_target_of_a_symbolic_link_is_charged(payer: Payer) -> None:
    before = payer.has()
    payer.may_add(bytes=UNIT)
    payer.calls(os.symlink, "t" * 4000, payer.inside("link"))
    assert payer.has() - before == Charge(UNIT, 1)


# Removing


def test_deleting_frees(payer: Payer) -> None:
    image = payer.inside("image.tmp")
    payer.may_add(bytes=5 * UNIT, files=1)
    for _ in range(3):
        payer.calls(save, image, b"x" * (5 * UNIT))
        with raises_errno(errno.EDQUOT):
            payer.calls(make_file, payer.inside("another"))
        payer.calls(os.unlink, image)
    assert payer.room == 5 * UNIT


def test_what_was_freed_can_be_used_at_once_after_a_refusal(payer: Payer) -> None:
    """Complete images go to the trash, which gives way to whoever needs the room, however lately it had nothing to give."""
    payer.may_add(bytes=5 * UNIT)
    for number in range(4):
        payer.calls(save, payer.inside(f"image-{number}"), b"x" * (5 * UNIT))
        with raises_errno(errno.EDQUOT):
            payer.calls(save, payer.inside("another.tmp"), b"x")
        payer.calls(os.unlink, payer.inside(f"image-{number}"))
    assert payer.calls(os.listdir, payer.path) == ["another.tmp"]


def test_a_removed_file_counts_until_it_is_closed(payer: Payer) -> None:
    before = payer.has()
    payer.may_add(bytes=5 * UNIT, files=1)
    with Agent(payer.uid) as holder:
        fd = holder.do(os.open, payer.inside("image.tmp"), os.O_RDWR | os.O_CREAT, 0o600)
        assert holder.do(os.write, fd, b"x" * (3 * UNIT)) == 3 * UNIT
        holder.do(os.unlink, payer.inside("image.tmp"))
        assert errno_as(payer.uid, make_file, payer.inside("another")) == errno.EDQUOT
        assert holder.do(os.write, fd, b"x" * (3 * UNIT)) == 2 * UNIT
        with raises_errno(errno.EDQUOT):
            holder.do(os.write, fd, b"x")
        standing = payer.quotas.standing(payer.uid)
        assert standing.total.bytes == before.bytes + 5 * UNIT
        holder.do(os.close, fd)
    assert payer.has() == before
    payer.calls(save, payer.inside("another"), b"x" * (5 * UNIT))


def test_a_closed_image_that_is_removed_while_somebody_reads_it_counts_until_then(payer: Payer) -> None:
    before = payer.has()
    payer.calls(save, payer.inside("image.tmp"), b"x" * (3 * UNIT))
    payer.may_add(bytes=0)
    with Agent(payer.uid) as reader:
        fd = reader.do(os.open, payer.inside("image.tmp"), os.O_RDONLY)
        payer.calls(os.unlink, payer.inside("image.tmp"))
        with raises_errno(errno.EDQUOT):
            payer.calls(save, payer.inside("another.tmp"), b"x")
        reader.do(os.close, fd)
    payer.calls(os.unlink, payer.inside("another.tmp"))
    assert payer.has() == before


def test_usage_never_goes_below_nothing(payer: Payer) -> None:
    with Agent(payer.uid) as holder:
        fds = []
        for number in range(3):
            fds.append(holder.do(os.open, payer.inside(f"image-{number}"), os.O_RDWR | os.O_CREAT, 0o600))
            holder.do(os.write, fds[-1], b"x" * (2 * UNIT))
        holder.do(os.ftruncate, fds[0], 0)
        for number in range(3):
            holder.do(os.unlink, payer.inside(f"image-{number}"))
        holder.do(os.ftruncate, fds[1], 0)
        holder.do(os.rmdir, payer.path)
        standing = payer.quotas.standing(payer.uid)
        assert (
            min(standing.used.bytes, standing.used.files, standing.claimed.bytes, standing.claimed.files) >= 0
        )
        for fd in fds:
            holder.do(os.close, fd)
    assert payer.has() == NOTHING


def test_removing_a_whole_set_leaves_nothing(payer: Payer) -> None:
    def fill_and_remove() -> None:
        os.makedirs(payer.inside("a/b/c"))
        for directory in ("a", "a/b", "a/b/c"):
            save(payer.inside(f"{directory}/image.tmp"), b"x" * UNIT)
            os.symlink("image.tmp", payer.inside(f"{directory}/link"))
        for directory in ("a/b/c", "a/b", "a"):
            os.unlink(payer.inside(f"{directory}/link"))
            os.unlink(payer.inside(f"{directory}/image.tmp"))
            os.rmdir(payer.inside(directory))
        os.rmdir(payer.path)

    payer.calls(fill_and_remove)
    assert payer.has() == NOTHING


def test_what_is_in_the_trash_is_charged_and_purging_it_frees(payer: Payer, place: Place) -> None:
    payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
    before = payer.has()
    payer.calls(os.unlink, payer.inside("image"))
    assert payer.has() == before
    assert payer.quotas.standing(payer.uid).trash_bytes == 3 * UNIT
    done = run_ckfs("trash", "purge", "--owner", str(payer.uid), "--store", place.mount.path)
    assert done.returncode == 0, done
    assert payer.has() == before - Charge(3 * UNIT, 1)


# Names of the same file


def test_hard_links_count_once_until_the_last_is_gone(payer: Payer) -> None:
    names = [payer.inside(f"link-{number}.tmp") for number in range(3)]
    before = payer.has()
    payer.calls(save, names[0], b"x" * (3 * UNIT))
    for name in names[1:]:
        payer.calls(os.link, names[0], name)
    assert payer.has() - before == Charge(3 * UNIT, 1)
    payer.calls(os.unlink, names[0])
    payer.calls(append, names[1], b"y" * UNIT)
    payer.calls(os.unlink, names[1])
    assert payer.has() - before == Charge(4 * UNIT, 1)
    payer.calls(os.unlink, names[2])
    assert payer.has() == before


def test_a_link_that_is_a_set_of_its_own_counts_with_the_other(payer: Payer) -> None:
    one, two = f"{payer.path}-one.tmp", f"{payer.path}-two.tmp"
    before = payer.has()
    payer.calls(save, one, b"x" * (2 * UNIT))
    payer.calls(os.link, one, two)
    assert payer.has() - before == Charge(2 * UNIT, 1)
    payer.calls(os.unlink, one)
    assert payer.has() - before == Charge(2 * UNIT, 1)
    payer.calls(os.unlink, two)
    assert payer.has() == before


# Renaming


def test_a_rename_over_another_file_frees_that(payer: Payer) -> None:
    old, new = payer.inside("old.tmp"), payer.inside("new.tmp")
    before = payer.has()
    payer.calls(save, old, b"o" * (5 * UNIT))
    payer.calls(save, new, b"n" * (2 * UNIT))
    payer.calls(os.rename, new, old)
    assert payer.has() - before == Charge(2 * UNIT, 1)


def test_a_checkpointer_that_replaces_its_image_needs_room_for_two(payer: Payer) -> None:
    """What was replaced lies in the trash, and gives way to the next."""
    payer.may_add(bytes=10 * UNIT, files=2)
    for number in range(4):
        payer.calls(save, payer.inside(".image.tmp"), bytes([number]) * (5 * UNIT))
        payer.calls(os.rename, payer.inside(".image.tmp"), payer.inside("image"))
    assert payer.calls(content, payer.inside("image")) == bytes([3]) * (5 * UNIT)


def test_a_rename_over_an_open_file_frees_it_when_it_is_closed(payer: Payer) -> None:
    old, new = payer.inside("old.tmp"), payer.inside("new.tmp")
    payer.calls(save, new, b"n" * (2 * UNIT))
    before = payer.has()
    with Agent(payer.uid) as holder:
        fd = holder.do(os.open, old, os.O_WRONLY | os.O_CREAT, 0o600)
        holder.do(os.write, fd, b"o" * (5 * UNIT))
        payer.calls(os.rename, new, old)
        standing = payer.quotas.standing(payer.uid)
        assert standing.total.bytes >= before.bytes + 5 * UNIT
        holder.do(os.close, fd)
    assert payer.has() == before


def test_moving_within_ones_own_sets_changes_nothing(payer: Payer) -> None:
    other = f"{payer.path}-other"

    def prepare() -> None:
        os.mkdir(other)
        os.mkdir(payer.inside("directory"))
        save(payer.inside("directory/image"), b"x" * UNIT)
        save(payer.inside("a"), b"a" * (2 * UNIT))

    def move() -> None:
        os.rename(payer.inside("directory"), f"{other}/directory")
        os.rename(payer.inside("a"), f"{payer.path}-top")
        os.rename(f"{payer.path}-top", f"{other}/a")
        os.rename(f"{other}/directory", f"{payer.path}-directory")
        os.rename(other, f"{other}-renamed")

    payer.calls(prepare)
    payer.may_add(bytes=0, files=0)
    before = payer.has()
    payer.calls(move)
    assert payer.has() == before


def test_exchanging_within_ones_own_sets_changes_nothing(payer: Payer, place: Place) -> None:
    if not place.has_rename_flags:
        pytest.skip("GlusterFS has no RENAME_EXCHANGE: it is EINVAL within a set")
    one, other = payer.inside("a"), payer.inside("b")
    payer.calls(save, one, b"a" * (2 * UNIT))
    payer.calls(save, other, b"b" * (3 * UNIT))
    payer.may_add(bytes=0, files=0)
    before = payer.has()
    payer.calls(exchange, one, other)
    assert payer.has() == before


def exchange(one: str, other: str) -> None:
    if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), one)


def test_nothing_moves_to_another_owner_past_his_quota(payer: Payer, place: Place) -> None:
    """A program copies then, as mv does, and is stopped by the quota of whose set it copies into."""
    taker = new_payer(place.mount, place.quotas, 0o777)
    taker.may_add(bytes=2 * UNIT)
    payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
    with raises_errno(errno.EXDEV):
        os.rename(payer.inside("image"), taker.inside("image"))
    with raises_errno(errno.EXDEV):
        os.link(payer.inside("image"), taker.inside("image"))
    with raises_errno(errno.EDQUOT):
        payer.calls(save, taker.inside("copy.tmp"), b"x" * (3 * UNIT))
    assert taker.room == 0
    assert payer.calls(content, payer.inside("image")) == b"x" * (3 * UNIT)


# Attributes


def test_users_attributes_are_charged_by_units(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"")
    before = payer.has()
    payer.calls(os.setxattr, image, "user.note", b"v" * 1000)
    assert payer.has() - before == Charge(UNIT, 0)
    payer.calls(os.setxattr, image, "user.another", b"v" * 1000)
    assert payer.has() - before == Charge(UNIT, 0)
    payer.calls(os.removexattr, image, "user.note")
    payer.calls(os.setxattr, image, "user.another", b"short")
    assert payer.has() - before == Charge(UNIT, 0)
    payer.calls(os.removexattr, image, "user.another")
    assert payer.has() == before


@pytest.mark.parametrize("of", ["image", "directory"])
def test_an_attribute_that_does_not_fit_is_not_set(payer: Payer, of: str) -> None:
    payer.calls(save if of == "image" else lambda path, _: os.mkdir(path), payer.inside(of), b"")
    payer.may_add(bytes=UNIT - 1)
    with raises_errno(errno.EDQUOT):
        payer.calls(os.setxattr, payer.inside(of), "user.note", b"value")
    assert payer.calls(os.listxattr, payer.inside(of)) == []
    payer.may_add(bytes=UNIT)
    payer.calls(os.setxattr, payer.inside(of), "user.note", b"value")
    payer.calls(os.setxattr, payer.inside(of), "user.note", b"changed")
    assert payer.calls(os.getxattr, payer.inside(of), "user.note") == b"changed"
    assert payer.room == 0


def test_attributes_go_with_their_file(payer: Payer) -> None:
    before = payer.has()
    for name in ("one.tmp", "two.tmp"):
        payer.calls(save, payer.inside(name), b"x")
        payer.calls(os.setxattr, payer.inside(name), "user.note", b"v" * 100)
    payer.calls(os.mkdir, payer.inside("directory"))
    payer.calls(os.setxattr, payer.inside("directory"), "user.note", b"v" * 100)
    assert payer.has() - before == Charge(6 * UNIT, 3)
    payer.calls(os.unlink, payer.inside("one.tmp"))
    payer.calls(os.rename, payer.inside("two.tmp"), payer.inside("one.tmp"))
    payer.calls(os.rmdir, payer.inside("directory"))
    assert payer.has() - before == Charge(2 * UNIT, 1)
    payer.calls(os.unlink, payer.inside("one.tmp"))
    assert payer.has() == before


def test_an_attribute_of_a_file_that_is_being_written_is_charged(payer: Payer) -> None:
    before = payer.has()
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, payer.inside("image.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)
        writer.do(os.write, fd, b"x" * UNIT)
        writer.do(os.setxattr, payer.inside("image.tmp"), "user.note", b"v" * 100)
        writer.do(os.write, fd, b"x" * UNIT)
        writer.do(os.close, fd)
    assert payer.has() - before == Charge(3 * UNIT, 1)


# What ckfs itself keeps


def test_what_ckfs_keeps_with_files_is_not_charged(payer: Payer) -> None:
    image = payer.inside("image")
    payer.calls(save, image, b"x" * UNIT)
    payer.may_add(bytes=0, files=0)
    before = payer.has()
    until(
        lambda: errno_of_call(os.getxattr, image, "user.ckfs.digest") == 0,
        lambda: f"{image} has no digest yet",
    )
    payer.calls(os.chmod, image, 0o400)
    payer.calls(os.utime, image, (1, 1))
    assert payer.has() == before


def test_what_ckfs_keeps_with_files_of_holes_is_counted_right(payer: Payer) -> None:
    """The store's file system may need a block of its own for what ckfs keeps: it counts as soon as it is there."""
    image = payer.inside("image")
    payer.calls(resize, image, 100 * UNIT)
    payer.calls(write_at, image, 50 * UNIT, b"x")
    payer.has()
    until(
        lambda: errno_of_call(os.getxattr, image, "user.ckfs.digest") == 0,
        lambda: f"{image} has no digest yet",
    )
    payer.has()


def test_a_file_of_a_few_bytes_takes_a_unit_and_an_empty_one_none(payer: Payer) -> None:
    before = payer.has()
    payer.calls(save, payer.inside("one"), b"x")
    payer.calls(save, payer.inside("none"), b"")
    assert payer.has() - before == Charge(UNIT, 2)
