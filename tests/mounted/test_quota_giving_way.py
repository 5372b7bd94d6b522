"""Who is at his limit gets room from what he has removed, then from what his newer checkpoints have outlived, the oldest first,
before he is refused; what is protected never goes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator

import pytest

from tests.support.commands import ckfs_as_root
from tests.support.images import content, save
from tests.support.mounting import run_ckfs
from tests.support.payers import UNIT, MakePlace, Payer, Place, new_payer
from tests.support.users import errno_as, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SIZE = 4 * UNIT
MIB = 1 << 20


@pytest.fixture(scope="module")
def place(make_place: MakePlace) -> Iterator[Place]:
    with make_place(may_log=["is partial"]) as place:
        yield place


def in_trash(place: Place, payer: Payer) -> list[str]:
    """The paths of what lies in his trash, sorted."""
    listed = ckfs_as_root("trash", "ls", "--json", "--owner", str(payer.uid), "--store", place.mount.path)
    return sorted(row["path"] for row in json.loads(listed))


def removed(payer: Payer, name: str, size: int = SIZE) -> None:
    payer.calls(save, payer.inside(name), name[:1].encode() * size)
    payer.calls(os.unlink, payer.inside(name))


def test_the_trash_gives_way_to_a_write(place: Place, payer: Payer) -> None:
    removed(payer, "old")
    payer.may_add(bytes=0)
    payer.calls(save, payer.inside("new"), b"n" * SIZE)
    assert payer.calls(content, payer.inside("new")) == b"n" * SIZE
    assert in_trash(place, payer) == []
    with raises_errno(errno.EDQUOT):
        payer.calls(save, payer.inside("more"), b"m")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=lambda make: make.__name__)
def test_the_trash_gives_way_to_whoever_needs_a_file(place: Place, payer: Payer, make: object) -> None:
    removed(payer, "old")
    payer.may_add(files=0)
    assert callable(make)
    payer.calls(make, payer.inside("new"))
    assert in_trash(place, payer) == []
    with raises_errno(errno.EDQUOT):
        payer.calls(make, payer.inside("more"))


def test_the_trash_gives_way_to_a_set_an_attribute_and_a_link(place: Place, payer: Payer) -> None:
    for number in range(3):
        removed(payer, f"{number}", UNIT)
    payer.may_add(bytes=0, files=0)
    payer.calls(os.mkdir, f"{payer.path}-another")
    payer.calls(os.symlink, "target", payer.inside("link"))
    payer.calls(os.setxattr, payer.path, "user.note", b"value")
    assert in_trash(place, payer) == []
    assert payer.room == 0


def test_the_trash_gives_way_to_a_set_that_is_given(place: Place, payer: Payer) -> None:
    path = f"{payer.path}-given"
    os.mkdir(path)
    save(f"{path}/image", b"x" * SIZE)
    removed(payer, "old", SIZE + UNIT)
    payer.may_add(bytes=0, files=1)
    os.chown(path, payer.uid, payer.uid)
    assert in_trash(place, payer) == []
    assert payer.room == 0


def test_the_oldest_of_the_trash_goes_first(place: Place, payer: Payer) -> None:
    """It gives way by 64 MiB at a time."""
    for name in ("a", "b", "c"):
        removed(payer, name, 40 * MIB)
    payer.may_add(bytes=0)
    payer.calls(save, payer.inside("new"), b"n" * SIZE)
    assert in_trash(place, payer) == ["c"]


def test_what_others_have_in_the_trash_stays(place: Place, payer: Payer) -> None:
    somebody = new_payer(place.mount, place.quotas)
    removed(somebody, "theirs")
    payer.may_add(bytes=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(save, payer.inside("new"), b"n")
    assert in_trash(place, somebody) == ["theirs"]


# Batch sets


@pytest.fixture
def batch(place: Place, payer: Payer) -> str:
    """A batch set with four checkpoints, of which the two newest are protected."""
    path = f"{place.mount.path}/{payer.uid}.server.CK"
    os.mkdir(path)
    os.chown(path, payer.uid, payer.uid)
    for name in ("one", "two", "three", "four"):
        payer.calls(save, f"{path}/{name}", name.encode() * SIZE)
    return path


def test_what_newer_checkpoints_have_outlived_gives_way_and_what_is_protected_does_not(
    payer: Payer, batch: str
) -> None:
    payer.may_add(bytes=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(save, payer.inside("new.tmp"), b"n" * (100 * SIZE))
    assert sorted(os.listdir(batch)) == ["four", "three"]
    for name in ("three", "four"):
        assert payer.calls(content, f"{batch}/{name}") == name.encode() * SIZE
        assert os.getxattr(f"{batch}/{name}", "user.ckfs.state") == b"complete"
    assert payer.room == 0


def test_what_was_removed_goes_before_what_was_outlived(place: Place, payer: Payer, batch: str) -> None:
    removed(payer, "old")
    payer.may_add(bytes=0)
    payer.calls(save, payer.inside("new"), b"n" * SIZE)
    assert in_trash(place, payer) == []
    assert sorted(os.listdir(batch)) == ["four", "one", "three", "two"]


def test_what_is_pinned_never_goes(payer: Payer, batch: str) -> None:
    payer.calls(os.setxattr, batch, "user.ckfs.keep", b"pinned/one")
    payer.may_add(bytes=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(save, payer.inside("new.tmp"), b"n" * (100 * SIZE))
    assert sorted(os.listdir(batch)) == ["four", "one", "three"]
    assert payer.calls(content, f"{batch}/one") == b"one" * SIZE


def test_a_dump_that_does_not_fit_leaves_the_earlier_checkpoints_to_restart_from(
    payer: Payer, batch: str
) -> None:
    payer.may_add(bytes=SIZE)
    image = f"{batch}/five"
    with raises_errno(errno.EDQUOT):
        payer.calls(save, image, b"5" * (100 * SIZE))
    assert os.getxattr(image, "user.ckfs.state") == b"partial"
    with raises_errno(errno.EIO):
        payer.calls(content, image)
    for name in ("three", "four"):
        assert payer.calls(content, f"{batch}/{name}") == name.encode() * SIZE
        assert errno_as(payer.uid, os.unlink, f"{batch}/{name}") == errno.EACCES
    payer.calls(os.unlink, image)
    payer.calls(save, image, b"5" * SIZE)
    assert payer.calls(content, image) == b"5" * SIZE


def test_an_image_that_failed_can_be_written_anew_at_once(payer: Payer) -> None:
    payer.may_add(bytes=SIZE)
    for _ in range(3):
        with raises_errno(errno.EDQUOT):
            payer.calls(save, payer.inside("image"), b"x" * (2 * SIZE))
        assert os.getxattr(payer.inside("image"), "user.ckfs.state") == b"partial"
        payer.calls(save, payer.inside("image"), b"y" * SIZE)
        assert os.getxattr(payer.inside("image"), "user.ckfs.state") == b"complete"
    assert payer.calls(content, payer.inside("image")) == b"y" * SIZE


def test_what_comes_back_from_the_trash_needs_no_room(place: Place, payer: Payer) -> None:
    """It was charged there already."""
    removed(payer, "old")
    payer.may_add(bytes=0, files=0)
    done = run_ckfs("trash", "restore", "--set", f"set-{payer.uid}", "--store", place.mount.path)
    assert done.returncode == 0, done
    assert payer.calls(content, payer.inside("old")) == b"o" * SIZE
    assert payer.room == 0
