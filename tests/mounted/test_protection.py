"""Through no door does anybody take away or change one of the newest complete checkpoints of a batch set.

Each door is tried on a node, by the set's owner and by root, as unmodified TORQUE may (docs/torque.md).
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, EEXIST, ENOTEMPTY, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.mounting import Mount, make_store, mounted
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, raises_errno

pytestmark = pytest.mark.root

CONTENT = b"an image " * 1000
RENAME_EXCHANGE = 2
PUNCH_HOLE = 0x01 | 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(100)


@dataclass(frozen=True)
class Place:
    """Two nodes, the server, and a host that is both, each with a mount of one store."""

    node: Mount
    other: Mount
    server: Mount
    both: Mount
    store: Path


@pytest.fixture(scope="module")
def place(root_and_fuse: None, module_workdir: Path) -> Iterator[Place]:
    private = module_workdir / "private"
    private.mkdir(mode=0o700)
    store = make_store(private)
    with (
        mounted(store, module_workdir / "node", node="node") as node,
        mounted(store, module_workdir / "other", node="other") as other,
        mounted(store, module_workdir / "server", role="server", node="server") as server,
        mounted(store, module_workdir / "of-both", role="both", node="of-both") as both,
    ):
        yield Place(node, other, server, both, store)


@pytest.fixture
def name() -> str:
    """A batch set's name that no other test has."""
    return f"{next(_numbers)}.server.CK"


def make_set(root: Path, name: str) -> str:
    """As pbs_mom makes it."""
    path = f"{root}/{name}"
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    return path


def dump(path: str, name: str, content: bytes = CONTENT, mode: int = 0o400) -> str:
    """As BLCR's script writes it; call it as the job's user."""
    image, hidden = f"{path}/{name}", f"{path}/.{name}.tmp"
    fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(fd, content)
        os.rename(hidden, image)
        os.fsync(fd)
    finally:
        os.close(fd)
    return image


def dump_as(uid: int, path: str, name: str, content: bytes = CONTENT, mode: int = 0o400) -> str:
    return as_user(uid, dump, path, name, content, mode)


def state_of(path: str) -> str:
    return os.getxattr(path, "user.ckfs.state").decode()


def is_protected(path: str) -> bool:
    return os.getxattr(path, "user.ckfs.protected") != b"no"


def save(path: str, content: bytes = b"", mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, mode)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def rename2(old: str, new: str, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), ctypes.c_uint(flags)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), old, None, new)


def fallocate(fd: int, mode: int, size: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# The doors by name


def open_and_close(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def open_again_for_writing(image: str) -> None:
    """By the descriptor of somebody who reads it."""
    fd = os.open(image, os.O_RDONLY)
    try:
        open_and_close(f"/proc/self/fd/{fd}", os.O_WRONLY)
    finally:
        os.close(fd)


def rename_over(image: str) -> None:
    spare = f"{os.path.dirname(image)}/.spare"
    save(spare, b"spare")
    os.rename(spare, image)


def rename_over_from_the_top(image: str) -> None:
    """A set that is a file, of the same owner."""
    spare = f"{os.path.dirname(image)}.mine"
    save(spare, b"spare")
    os.chown(spare, ALICE, ALICE)
    os.rename(spare, image)


def rename_over_from_another_set(image: str) -> None:
    spare = f"{os.path.dirname(image)}.mine"
    os.mkdir(spare)
    os.chown(spare, ALICE, ALICE)
    save(f"{spare}/file", b"spare")
    os.rename(f"{spare}/file", image)


def exchange(image: str) -> None:
    spare = f"{os.path.dirname(image)}/.spare"
    save(spare, b"spare")
    rename2(spare, image, RENAME_EXCHANGE)


def exchange_other_way(image: str) -> None:
    spare = f"{os.path.dirname(image)}/.spare"
    save(spare, b"spare")
    rename2(image, spare, RENAME_EXCHANGE)


def link_then_unlink(image: str) -> None:
    os.link(image, f"{image}.link")
    os.unlink(image)


def exchange_sets(image: str) -> None:
    path = os.path.dirname(image)
    os.mkdir(f"{path}.mine")
    rename2(f"{path}.mine", path, RENAME_EXCHANGE)


def set_into_another(image: str) -> None:
    path = os.path.dirname(image)
    os.mkdir(f"{path}.mine")
    os.chown(f"{path}.mine", ALICE, ALICE)
    os.rename(path, f"{path}.mine/inner")


def to_another_set(image: str) -> None:
    path = os.path.dirname(image)
    os.mkdir(f"{path}.mine")
    os.chown(f"{path}.mine", ALICE, ALICE)
    os.rename(image, f"{path}.mine/image")


DOORS: dict[str, Callable[[str], object]] = {
    "unlink": os.unlink,
    "rename over": rename_over,
    "rename over, from the top": rename_over_from_the_top,
    "rename over, from another set": rename_over_from_another_set,
    "rename away": lambda image: os.rename(image, f"{image}.gone"),
    "rename to a temporary name": lambda image: os.rename(image, f"{image}.tmp"),
    "rename to the top": lambda image: os.rename(image, f"{os.path.dirname(image)}.mine"),
    "rename to another set": to_another_set,
    "rename of the set": lambda image: os.rename(os.path.dirname(image), f"{os.path.dirname(image)}.mine"),
    "rename of the set into another": set_into_another,
    "RENAME_EXCHANGE": exchange,
    "RENAME_EXCHANGE the other way": exchange_other_way,
    "RENAME_EXCHANGE of the set": exchange_sets,
    "O_TRUNC": lambda image: open_and_close(image, os.O_WRONLY | os.O_TRUNC),
    "O_RDONLY|O_TRUNC": lambda image: open_and_close(image, os.O_RDONLY | os.O_TRUNC),
    "O_CREAT|O_TRUNC": lambda image: open_and_close(image, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "truncate": lambda image: os.truncate(image, 1),
    "truncate to its size": lambda image: os.truncate(image, len(CONTENT)),
    "truncate to more": lambda image: os.truncate(image, 10 * len(CONTENT)),
    "O_WRONLY": lambda image: open_and_close(image, os.O_WRONLY),
    "O_APPEND": lambda image: open_and_close(image, os.O_WRONLY | os.O_APPEND),
    "O_RDWR": lambda image: open_and_close(image, os.O_RDWR),
    "O_WRONLY, by /proc/self/fd": open_again_for_writing,
    "link, then unlink": link_then_unlink,
}
ELSEWHERE = [
    pytest.param(door, mount, uid, id=f"{door}-{mount}-{who}")
    for door in DOORS
    for mount, uid, who in (
        ("other", ALICE, "owner"),
        ("other", ROOT, "root"),
        ("both", ALICE, "owner"),
        ("both", ROOT, "root, by what is no remover"),
        ("server", ALICE, "owner"),
    )
]
"""Root on the server may remove: that is another test's."""


def check_untouched(place: Place, name: str, image: str = "image", content: bytes = CONTENT) -> None:
    for mount in (place.node, place.other, place.server, place.both):
        path = mount.path / name / image
        assert path.read_bytes() == content
        assert state_of(str(path)) == "complete"
        assert os.stat(path).st_nlink == 1


@pytest.mark.parametrize("chmod", [None, 0o777], ids=["", "chmod"])
@pytest.mark.parametrize("uid", [ALICE, ROOT], ids=["owner", "root"])
@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_shut(place: Place, name: str, door: str, uid: int, chmod: int | None) -> None:
    path = make_set(place.node.path, name)
    image = dump_as(ALICE, path, "image")
    if chmod is not None:
        as_user(uid, os.chmod, image, chmod)
    assert errno_as(uid, DOORS[door], image) == EACCES
    check_untouched(place, name)


@pytest.mark.parametrize("chmod", [None, 0o777], ids=["", "chmod"])
@pytest.mark.parametrize("uid", [ALICE, ROOT], ids=["owner", "root"])
def test_the_set_is_not_empty(place: Place, name: str, uid: int, chmod: int | None) -> None:
    path = make_set(place.node.path, name)
    dump_as(ALICE, path, "image")
    if chmod is not None:
        as_user(uid, os.chmod, path, chmod)
    for mount in (place.node, place.other, place.server, place.both):
        assert errno_as(uid, os.rmdir, f"{mount.path}/{name}") == ENOTEMPTY
    check_untouched(place, name)


@pytest.mark.parametrize("door", DOORS)
def test_the_mode_of_the_set_opens_no_door_to_others(place: Place, name: str, door: str) -> None:
    path = make_set(place.node.path, name)
    image = dump_as(ALICE, path, "image", mode=0o666)
    as_user(ALICE, os.chmod, path, 0o777)
    assert errno_as(BOB, DOORS[door], image) in (EACCES, EPERM, EXDEV)  # mv copies what is EXDEV
    check_untouched(place, name)


@pytest.mark.parametrize("uid", [ALICE, ROOT], ids=["owner", "root"])
@pytest.mark.parametrize("mode", [0, PUNCH_HOLE], ids=["fallocate", "punch hole"])
def test_nothing_is_allocated_or_punched(place: Place, name: str, uid: int, mode: int) -> None:
    path = make_set(place.node.path, name)
    image = dump_as(ALICE, path, "image", mode=0o600)
    with Agent(uid) as other:
        assert errno_as(uid, open_and_close, image, os.O_RDWR) == EACCES
        fd = other.do(os.open, image, os.O_RDONLY)
        with pytest.raises(OSError):  # noqa: PT011 - EBADF: not open for writing
            other.do(fallocate, fd, mode, 4096)
    check_untouched(place, name)


@pytest.mark.parametrize(("door", "mount", "uid"), ELSEWHERE)
def test_other_mounts_have_the_same_doors(place: Place, name: str, door: str, mount: str, uid: int) -> None:
    path = make_set(place.node.path, name)
    dump_as(ALICE, path, "image", mode=0o700)
    elsewhere: Mount = getattr(place, mount)
    assert errno_as(uid, DOORS[door], f"{elsewhere.path}/{name}/image") == EACCES
    check_untouched(place, name)


def test_chown_of_one_image_to_somebody_else(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    image = dump_as(ALICE, path, "image")
    before = os.stat(image)
    for mount in (place.node, place.other, place.both):
        assert errno_as(ROOT, os.chown, f"{mount.path}/{name}/image", BOB, BOB) == EACCES
    os.chown(image, ALICE, ALICE)  # as pbs_mom does before a restart
    after = os.stat(image)
    assert (after.st_uid, after.st_mtime_ns) == (ALICE, before.st_mtime_ns)
    check_untouched(place, name)


@pytest.mark.parametrize("how", ["chown", "set's owner"])
def test_a_set_given_to_somebody_else_is_kept_from_him_too(place: Place, name: str, how: str) -> None:
    path = make_set(place.node.path, name)
    image = dump_as(ALICE, path, "image")
    if how == "chown":
        os.chown(path, BOB, BOB)
    else:
        os.setxattr(path, "user.ckfs.owner", b"%d" % BOB)
    for uid in (ALICE, BOB, ROOT):
        assert errno_as(uid, os.unlink, image) == EACCES
    check_untouched(place, name)


# Handles that were open before the image was complete


def write_at(fd: int, data: bytes) -> None:
    os.pwrite(fd, data, 0)


def map_and_store(fd: int, data: bytes) -> None:
    with mmap.mmap(fd, len(CONTENT)) as mapped:
        mapped[: len(data)] = data
        mapped.flush()


_mapped: list[mmap.mmap] = []
"""Of the process of an agent."""


def map_file(fd: int) -> None:
    _mapped.append(mmap.mmap(fd, len(CONTENT)))


def store_in_map(data: bytes) -> None:
    _mapped[-1][: len(data)] = data
    _mapped[-1].flush()


def unmap() -> None:
    _mapped.pop().close()


HANDLE_DOORS: dict[str, Callable[[Agent, int], object]] = {
    "write": lambda other, fd: other.do(write_at, fd, b"x"),
    "ftruncate": lambda other, fd: other.do(os.ftruncate, fd, 0),
    "ftruncate to more": lambda other, fd: other.do(os.ftruncate, fd, 10**6),
}


@pytest.mark.parametrize("mount", ["node", "other"])
@pytest.mark.parametrize("uid", [ALICE, ROOT], ids=["owner", "root"])
@pytest.mark.parametrize("access", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("door", HANDLE_DOORS)
def test_a_handle_from_before_writes_no_more(
    place: Place, name: str, door: str, access: int, uid: int, mount: str
) -> None:
    path = make_set(place.node.path, name)
    elsewhere: Mount = getattr(place, mount)
    with Agent(ALICE) as writer, Agent(uid) as other:
        # Beside what the kernel writes by itself, O_RDWR is ETXTBSY.
        both = access & os.O_ACCMODE == os.O_RDWR
        fd = writer.do(
            os.open, f"{path}/.image.tmp", (os.O_RDWR if both else os.O_WRONLY) | os.O_CREAT, 0o600
        )
        old = other.do(os.open, f"{elsewhere.path}/{name}/.image.tmp", access)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.rename, f"{path}/.image.tmp", f"{path}/image")
        writer.do(os.close, fd)
        assert state_of(f"{path}/image") == "complete"  # a moment after close(2), if the kernel wrote it
        for _ in range(2):
            with raises_errno(EACCES):
                HANDLE_DOORS[door](other, old)
        check_untouched(place, name)
        other.do(os.close, old)
    check_untouched(place, name)


@pytest.mark.parametrize("mount", ["node", "other"])
@pytest.mark.parametrize("uid", [ALICE, ROOT], ids=["owner", "root"])
@pytest.mark.parametrize("mode", [0, PUNCH_HOLE, 0x10], ids=["fallocate", "punch hole", "zero range"])
def test_a_handle_from_before_allocates_and_punches_nothing(
    place: Place, name: str, mode: int, uid: int, mount: str
) -> None:
    path = make_set(place.node.path, name)
    elsewhere: Mount = getattr(place, mount)
    with Agent(ALICE) as writer, Agent(uid) as other:
        fd = writer.do(os.open, f"{path}/image", os.O_WRONLY | os.O_CREAT, 0o600)
        old = other.do(os.open, f"{elsewhere.path}/{name}/image", os.O_RDWR)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.close, fd)
        with raises_errno(EACCES, EOPNOTSUPP):
            other.do(fallocate, old, mode, 4096)
    check_untouched(place, name)


@pytest.mark.parametrize("mount", ["node", "other"])
@pytest.mark.parametrize("uid", [ALICE, ROOT], ids=["owner", "root"])
@pytest.mark.parametrize("mapped", ["before it was complete", "since"])
def test_what_is_stored_through_an_old_handles_mapping_goes_nowhere(
    place: Place, name: str, mapped: str, uid: int, mount: str
) -> None:
    path = make_set(place.node.path, name)
    elsewhere: Mount = getattr(place, mount)
    with Agent(ALICE) as writer, Agent(uid) as other:
        fd = writer.do(os.open, f"{path}/image", os.O_WRONLY | os.O_CREAT, 0o600)
        old = other.do(os.open, f"{elsewhere.path}/{name}/image", os.O_RDWR)
        writer.do(os.write, fd, CONTENT)
        if mapped == "since":
            writer.do(os.close, fd)
            with pytest.raises(OSError):  # noqa: PT011 - what msync makes of a refused page is the kernel's affair
                other.do(map_and_store, old, b"stored")
        else:
            other.do(map_file, old)
            writer.do(os.close, fd)
            with pytest.raises(OSError):  # noqa: PT011 - what msync makes of a refused page is the kernel's affair
                other.do(store_in_map, b"stored")
            other.do(unmap)
        assert (place.server.path / name / "image").read_bytes() == CONTENT
        other.do(os.close, old)
    assert (place.server.path / name / "image").read_bytes() == CONTENT
    assert state_of(f"{path}/image") == "complete"


# What is kept


def test_the_newest_two_survive_and_older_ones_are_superseded(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    images = [dump_as(ALICE, path, f"ckpt.{number}") for number in range(4)]
    assert [state_of(image) for image in images] == ["superseded"] * 2 + ["complete"] * 2
    assert [is_protected(image) for image in images] == [False, False, True, True]
    assert [errno_as(ALICE, os.unlink, image) for image in images] == [0, 0, EACCES, EACCES]
    assert sorted(os.listdir(path)) == ["ckpt.2", "ckpt.3"]


def test_root_on_a_node_removes_superseded_ones_too(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    images = [dump_as(ALICE, path, f"ckpt.{number}") for number in range(3)]
    assert [errno_as(ROOT, os.unlink, image) for image in images] == [0, EACCES, EACCES]


def test_an_unfinished_checkpoint_displaces_none(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    images = [dump_as(ALICE, path, f"ckpt.{number}") for number in range(2)]
    for number in range(3):
        as_user(ALICE, save, f"{path}/.ckpt.{number}.tmp", b"half")
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{path}/ckpt.9", os.O_WRONLY | os.O_CREAT, 0o600)
        writer.do(os.write, fd, b"half")
        assert [errno_as(ALICE, os.unlink, image) for image in images] == [EACCES, EACCES]


def dump_directory(path: str, files: int, content: bytes = CONTENT) -> None:
    """As CRIU writes it: many files under their final names."""
    os.mkdir(path)
    for number in range(files):
        save(f"{path}/core-{number}.img", content)


def test_a_directory_of_files_is_one_checkpoint(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    for dump_name in ("a", "b", "c"):
        as_user(ALICE, dump_directory, f"{path}/{dump_name}", 40)
    assert [state_of(f"{path}/{dump_name}") for dump_name in "abc"] == ["superseded", "complete", "complete"]
    for uid in (ALICE, ROOT):
        for dump_name, number in itertools.product("bc", (0, 39)):
            assert errno_as(uid, os.unlink, f"{path}/{dump_name}/core-{number}.img") == EACCES
        assert errno_as(uid, os.rename, f"{path}/b", f"{path}/d") == EACCES
        assert errno_as(uid, rename2, f"{path}/b", f"{path}/a", RENAME_EXCHANGE) == EACCES
        assert errno_as(uid, os.rmdir, f"{path}/b") == ENOTEMPTY
    as_user(ALICE, shutil.rmtree, f"{path}/a")
    assert len(os.listdir(place.other.path / name / "b")) == 40


def test_adding_to_a_directory_lays_it_not_open(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    as_user(ALICE, dump_directory, f"{path}/a", 3)
    with Agent(ALICE) as other:
        other.do(os.open, f"{path}/a/more", os.O_WRONLY | os.O_CREAT, 0o600)
        assert state_of(f"{path}/a") == "writing"
        assert errno_as(ALICE, os.unlink, f"{path}/a/core-0.img") == EACCES
        assert errno_as(ALICE, os.rename, f"{path}/a", f"{path}/b") == EACCES
    assert is_protected(f"{path}/a")


def test_the_second_of_one_name_harms_not_the_first(place: Place, name: str) -> None:
    """TORQUE's names have a resolution of one second."""
    path = make_set(place.node.path, name)
    dump_as(ALICE, path, "image")
    assert errno_as(ALICE, dump, path, "image", b"second") == EACCES
    check_untouched(place, name)
    assert errno_as(ALICE, dump, f"{place.other.path}/{name}", "image", b"third") == EACCES
    check_untouched(place, name)


@pytest.mark.parametrize("when_ns", [0, 1, 2**33 * 10**9])
def test_times_do_not_matter(place: Place, name: str, when_ns: int) -> None:
    path = make_set(place.node.path, name)
    images = [dump_as(ALICE, path, f"ckpt.{number}") for number in range(3)]
    for image, ns in zip(images, (2**33 * 10**9, when_ns, when_ns), strict=True):
        as_user(ALICE, lambda image=image, ns=ns: os.utime(image, ns=(ns, ns)))
    assert [errno_as(ALICE, os.unlink, image) for image in images] == [0, EACCES, EACCES]


def test_a_clock_that_is_set_back_does_not_matter(place: Place, name: str) -> None:
    """An image made when the clock was far ahead, and then two later ones: the later ones count."""
    path = make_set(place.node.path, name)
    first = dump_as(ALICE, path, "ckpt.0")
    stored = place.store / "users" / str(ALICE) / name / "ckpt.0"
    fields = os.getxattr(stored, "user.ckfs").split(b";")
    ahead = b"c=%x" % (2**33 * 10**9)
    os.setxattr(
        stored, "user.ckfs", b";".join(ahead if field.startswith(b"c=") else field for field in fields)
    )
    later = [dump_as(ALICE, path, f"ckpt.{number}") for number in (1, 2)]
    assert state_of(first) == "superseded"
    assert [errno_as(ALICE, os.unlink, image) for image in (first, *later)] == [0, EACCES, EACCES]


def test_openpbs_sets_aside_and_removes_over_three_checkpoints(place: Place, name: str) -> None:
    path = f"{place.node.path}/{name}"
    for number in range(3):
        if number:
            if number > 1:
                for entry in os.listdir(f"{path}.old"):
                    os.unlink(f"{path}.old/{entry}")
                os.rmdir(f"{path}.old")
            os.rename(path, f"{path}.old")
            for entry in os.listdir(f"{path}.old"):  # nothing newer is complete yet
                assert errno_as(ROOT, os.unlink, f"{path}.old/{entry}") == EACCES
        make_set(place.node.path, name)
        dump_as(ALICE, path, f"image.{number}")
    assert (os.listdir(path), os.listdir(f"{path}.old")) == (["image.2"], ["image.1"])
    assert errno_as(ALICE, os.unlink, f"{path}.old/image.1") == EACCES
    assert errno_as(ALICE, os.unlink, f"{path}/image.2") == EACCES


def test_outside_batch_sets_owners_work_as_on_any_disk(place: Place, name: str) -> None:
    path = f"{place.node.path}/{name}.mine"
    as_user(ALICE, os.mkdir, path)
    for door in ("O_TRUNC", "truncate", "O_RDWR", "rename over", "link, then unlink"):
        image = dump_as(ALICE, path, f"image-{next(_numbers)}", mode=0o600)
        as_user(ALICE, DOORS[door], image)


def test_a_link_is_refused_to_an_image_alone(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    image = dump_as(ALICE, path, "image")
    for uid in (ALICE, ROOT):
        assert errno_as(uid, os.link, image, f"{path}/second") == EACCES
        assert errno_as(uid, os.link, image, f"{place.node.path}/{name}.mine") in (EACCES, EEXIST, 18)
    check_untouched(place, name)


def test_an_image_has_one_name_from_the_start(place: Place, name: str) -> None:
    """BLCR refuses one that has two, and one made in time would stay for ever."""
    path = make_set(place.node.path, name)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{path}/.image.tmp", os.O_WRONLY | os.O_CREAT, 0o600)
        for uid in (ALICE, ROOT):
            assert errno_as(uid, os.link, f"{path}/.image.tmp", f"{path}/second") == EACCES
        writer.do(os.close, fd)


def test_a_directory_that_gets_its_final_name_supersedes_others(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    for dump_name in ("a", "b", "c"):
        as_user(ALICE, dump_directory, f"{path}/{dump_name}.tmp", 2)
        assert not is_protected(f"{path}/{dump_name}.tmp")
        as_user(ALICE, os.rename, f"{path}/{dump_name}.tmp", f"{path}/{dump_name}")
        assert is_protected(f"{path}/{dump_name}")
    assert [state_of(f"{path}/{dump_name}") for dump_name in "abc"] == ["superseded", "complete", "complete"]


def test_a_refused_write_leaves_no_trace(place: Place, name: str) -> None:
    """Once released, the image can be written on as any other."""
    path = make_set(place.node.path, name)
    with Agent(ALICE) as writer, Agent(ALICE) as other:
        fd = writer.do(os.open, f"{path}/image", os.O_WRONLY | os.O_CREAT, 0o600)
        old = other.do(os.open, f"{path}/image", os.O_RDWR)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.close, fd)
        for door in HANDLE_DOORS.values():
            with raises_errno(EACCES):
                door(other, old)
        os.setxattr(path, "user.ckfs.keep", b"released/image")
        other.do(write_at, old, b"x")
        other.do(os.close, old)
    assert state_of(f"{path}/image") == "complete"
    assert Path(path, "image").read_bytes() == b"x" + CONTENT[1:]


# Who may


def test_root_on_the_server_removes(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    dump_as(ALICE, path, "image")
    shutil.rmtree(place.server.path / name)
    assert not os.path.exists(path)


def test_the_newest_left_count_after_a_removal(place: Place, name: str) -> None:
    path = make_set(place.node.path, name)
    images = [dump_as(ALICE, path, f"ckpt.{number}") for number in range(3)]
    os.unlink(place.server.path / name / "ckpt.2")
    assert [state_of(image) for image in images[:2]] == ["complete", "complete"]
    assert errno_as(ALICE, os.unlink, images[0]) == EACCES


@pytest.fixture(scope="module")
def both(root_and_fuse: None, module_workdir: Path) -> Iterator[Mount]:
    private = module_workdir / "private-of-both"
    private.mkdir(mode=0o700)
    with mounted(make_store(private), module_workdir / "both", role="both") as mount:
        yield mount


def program(directory: Path, name: str) -> Path:
    """A program called *name*, in a directory of its own."""
    path = directory / f"bin-{next(_numbers)}" / name
    path.parent.mkdir(mode=0o755)
    shutil.copy(shutil.which("rm") or "/bin/rm", path)
    return path


def removes(program: Path, image: str) -> bool:
    done = subprocess.run([program, "-f", image], env={"LC_ALL": "C"}, capture_output=True, check=False)
    assert done.returncode == 0 or b"Permission denied" in done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    ("uid", "named", "expected"),
    [
        (ROOT, "pbs_server", True),
        (ROOT, "rm", False),
        (ROOT, "pbs_server2", False),
        (ALICE, "pbs_server", False),
    ],
)
def test_where_server_and_mom_share_a_host_a_remover_removes(
    both: Mount, name: str, workdir: Path, uid: int, named: str, *, expected: bool
) -> None:
    path = make_set(both.path, name)
    image = dump_as(ALICE, path, "image")
    assert as_user(uid, removes, program(workdir, named), image) == expected
    assert os.path.exists(image) != expected


def test_a_remover_whose_package_was_updated_still_is_one(both: Mount, name: str, workdir: Path) -> None:
    path = make_set(both.path, name)
    image = dump_as(ALICE, path, "image")
    python = workdir / "pbs_server"
    shutil.copy(os.path.realpath(sys.executable), python)
    script = "import os, sys; print(flush=True); input(); os.unlink(sys.argv[1])"
    with subprocess.Popen(
        [python, "-c", script, image],
        stdin=-1,
        stdout=-1,
        env={**os.environ, "PYTHONHOME": sys.base_prefix},
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        python.unlink()
        assert os.readlink(f"/proc/{running.pid}/exe").endswith(" (deleted)")
        running.communicate(b"\n")
    assert running.returncode == 0
    assert not os.path.exists(image)


def test_the_policy_says_how_many_are_kept_and_who_removes(store: Path, workdir: Path, name: str) -> None:
    trusted = program(workdir, "tool")
    policy = store / "policy.toml"
    text = policy.read_text().replace("keep = 2", "keep = 1")
    policy.write_text(text.replace('removers = ["pbs_server"]', f'removers = ["{trusted}"]'))
    with mounted(store, workdir / "mount", role="both") as mount:
        path = make_set(mount.path, name)
        images = [dump_as(ALICE, path, f"ckpt.{number}") for number in range(2)]
        assert [errno_as(ALICE, os.unlink, image) for image in images] == [0, EACCES]
        for other in (program(workdir, "pbs_server"), program(workdir, "tool")):
            assert not removes(other, images[1])
        assert removes(trusted, images[1])
