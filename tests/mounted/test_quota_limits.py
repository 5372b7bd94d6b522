"""What admins say of quotas holds from then on: soft limits with their grace time, limits that are lowered, raised, or nobody's own."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.images import append, content, save, write_at
from tests.support.payers import UNIT, Payer, Place, new_payer, place_in, until
from tests.support.users import ROOT, errno_as, errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture(scope="module")
def place(root_and_fuse: None, module_workdir: Path) -> Iterator[Place]:
    with place_in(
        module_workdir, options=["partial"], may_log=["soft limit", "is partial: a write failed"]
    ) as place:
        yield place


def may_add_softly(payer: Payer, *, soft: int, grace: str, hard: str | int = "none") -> None:
    payer.quotas.limit(payer.uid, soft=payer.has().bytes + soft, hard=hard, grace=grace)
    payer.quotas.all_given_back()  # what was granted before counts, too


def warnings(place: Place, payer: Payer) -> list[str]:
    lines = place.mount.log().splitlines()
    return [line for line in lines if f"uid {payer.uid} has passed the soft limit" in line]


# Soft limits


def test_a_soft_limit_may_be_passed_within_the_grace_time_and_is_warned_of_once(
    place: Place, payer: Payer
) -> None:
    may_add_softly(payer, soft=2 * UNIT, grace="1d")
    payer.calls(save, payer.inside("image"), b"x" * (2 * UNIT))
    payer.has()
    assert payer.quotas.standing(payer.uid).row["grace_bytes_s"] is None
    assert warnings(place, payer) == []
    for _ in range(5):
        payer.calls(append, payer.inside("image"), b"x" * UNIT)
    payer.has()
    until(lambda: bool(warnings(place, payer)), lambda: "no warning")
    assert len(warnings(place, payer)) == 1
    left = payer.quotas.standing(payer.uid).row["grace_bytes_s"]
    assert 0 < left <= 86_400


def test_after_the_grace_time_nothing_more_is_written_until_it_is_below_again(payer: Payer) -> None:
    image = payer.inside("image.tmp")
    may_add_softly(payer, soft=4 * UNIT, grace="1d")
    payer.calls(save, image, b"x" * (6 * UNIT))
    payer.has()
    payer.quotas.limit(payer.uid, grace="1s")
    until(
        lambda: payer.calls(errno_of_call, append, image, b"x" * UNIT) == errno.EDQUOT,
        lambda: "the grace time does not end",
    )
    assert payer.quotas.standing(payer.uid).row["grace_bytes_s"] == 0
    assert payer.calls(write_at, image, 0, b"y" * UNIT) == UNIT, "rewriting adds nothing"
    payer.calls(os.truncate, image, 3 * UNIT)
    payer.has()
    payer.quotas.limit(payer.uid, grace="1d")
    payer.calls(append, image, b"x" * (4 * UNIT))


def test_a_soft_limit_of_files_has_its_grace_time_too(payer: Payer) -> None:
    payer.quotas.limit(payer.uid, files_soft=payer.has().files + 1, grace="1d")
    for number in range(3):
        payer.calls(os.mkdir, payer.inside(f"{number}"))
    payer.has()
    payer.quotas.limit(payer.uid, grace="1s")
    names = itertools.count()
    until(
        lambda: errno_as(payer.uid, os.mkdir, payer.inside(f"more-{next(names)}")) == errno.EDQUOT,
        lambda: "the grace time does not end",
    )


def test_within_the_grace_time_the_hard_limit_holds(payer: Payer) -> None:
    has = payer.has().bytes
    payer.quotas.all_given_back()
    payer.hard_bytes = has + 4 * UNIT
    payer.quotas.limit(payer.uid, soft=has + UNIT, hard=payer.hard_bytes, grace="1d")
    with raises_errno(errno.EDQUOT):
        payer.calls(save, payer.inside("image"), b"x" * (5 * UNIT))
    assert payer.room == 0


# Limits that change


def test_who_is_over_a_new_limit_keeps_what_he_has_and_gets_no_more(payer: Payer) -> None:
    image = payer.inside("image.tmp")
    payer.calls(save, image, b"x" * (8 * UNIT))
    payer.calls(save, payer.inside("other.tmp"), b"y" * (3 * UNIT))
    has = payer.has()
    payer.quotas.limit(payer.uid, hard=has.bytes - 4 * UNIT, files=1)
    payer.quotas.all_given_back()
    with raises_errno(errno.EDQUOT):
        payer.calls(append, image, b"x" * UNIT)
    with raises_errno(errno.EDQUOT):
        payer.calls(os.mkdir, payer.inside("directory"))
    assert payer.has() == has
    assert payer.calls(write_at, image, 0, b"z" * UNIT) == UNIT
    payer.calls(os.rename, image, payer.inside("image"))
    assert payer.calls(content, payer.inside("image")) == b"z" * UNIT + b"x" * (7 * UNIT)
    payer.calls(os.truncate, payer.inside("other.tmp"), UNIT)
    with raises_errno(errno.EDQUOT):
        payer.calls(append, payer.inside("other.tmp"), b"y" * UNIT)
    payer.calls(os.unlink, payer.inside("other.tmp"))
    payer.quotas.limit(payer.uid, hard=payer.has().bytes + UNIT, files="none")
    payer.calls(save, payer.inside("another"), b"a" * UNIT)


def test_a_limit_that_is_raised_holds_at_once(payer: Payer) -> None:
    for _ in range(3):
        payer.may_add(bytes=2 * UNIT)
        with raises_errno(errno.EDQUOT):
            payer.calls(append, payer.inside("image"), b"x" * (3 * UNIT))
    assert payer.calls(os.path.getsize, payer.inside("image")) == 6 * UNIT


def test_a_limit_that_is_set_while_somebody_writes_stops_him_there(payer: Payer) -> None:
    """Without a limit mounts are granted much at a time: it is taken back. What the kernel writes by itself: test_passthrough."""
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, payer.inside("image"), os.O_RDWR | os.O_CREAT, 0o600)
        assert writer.do(os.write, fd, b"x" * MIB) == MIB
        hard = payer.quotas.standing(payer.uid).used.bytes + 2 * MIB
        payer.quotas.limit(payer.uid, hard=hard)
        until(
            lambda: payer.quotas.standing(payer.uid).total.bytes <= hard,
            lambda: f"more than {hard} stay claimed: {payer.quotas.standing(payer.uid)}",
        )
        written = 0
        while writer.do(errno_of_call, os.write, fd, b"x" * (64 << 10)) == 0:
            written += 64 << 10
            assert written <= 2 * MIB
        writer.do(os.close, fd)
    payer.hard_bytes = hard
    assert payer.room < UNIT


def test_much_room_is_granted_in_few_pieces_and_given_back(payer: Payer) -> None:
    payer.may_add(bytes=10 * GIB)
    payer.calls(save, payer.inside("image"), b"x" * (3 * MIB))
    assert payer.room == 10 * GIB - 3 * MIB


# Others


def test_what_holds_for_all_others_holds_for_who_has_no_limit_of_his_own(place: Place) -> None:
    payer, other = (new_payer(place.mount, place.quotas) for _ in range(2))
    place.quotas.limit(other.uid, hard="none")
    try:
        place.quotas.limit_others(hard=payer.has().bytes + 2 * UNIT, files=2)
        payer.hard_bytes = payer.has().bytes + 2 * UNIT
        with raises_errno(errno.EDQUOT):
            payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
        assert payer.room == 0
        with raises_errno(errno.EDQUOT):
            payer.calls(save, payer.inside("another"), b"")
        other.calls(save, other.inside("image"), b"x" * (3 * UNIT))
        place.quotas.limit(payer.uid, hard="1M", files="default")
        payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
        place.quotas.limit(payer.uid, hard="default")
        with raises_errno(errno.EDQUOT):
            payer.calls(append, payer.inside("image"), b"x" * UNIT)
    finally:
        place.quotas.limit_others(hard="none", files="none")


def test_what_holds_for_all_others_does_not_hold_for_root(place: Place) -> None:
    path = f"{place.mount.path}/of-root"
    try:
        place.quotas.limit_others(hard=1, files=1)
        os.mkdir(path)
        save(f"{path}/image", b"x" * UNIT)
    finally:
        place.quotas.limit_others(hard="none", files="none")
    place.quotas.settled(ROOT)
