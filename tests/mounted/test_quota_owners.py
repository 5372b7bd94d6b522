"""Whoever owns a set pays for it, whoever made it or writes there; and nobody is given what does not fit into his quota."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.images import append, content, save, write_at
from tests.support.jobfiles import Job, binary
from tests.support.payers import DIRECTORY, NOTHING, UNIT, Charge, MakePlace, Payer, Place, new_payer, paying
from tests.support.users import ROOT, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]


@pytest.fixture(scope="module")
def pbs_home(module_workdir: Path) -> Path:
    """TORQUE's home, in which the mount looks for the job files of pbs_mom."""
    home = module_workdir / "torque"
    (home / "mom_priv" / "jobs").mkdir(parents=True)
    return home


@pytest.fixture(scope="module")
def place(pbs_home: Path, make_place: MakePlace) -> Iterator[Place]:
    def policy(text: str) -> str:
        return text.replace('"/var/spool/torque"', f'"{pbs_home}"')

    with make_place(policy=policy, options=["partial"], may_log=["is partial: a write failed"]) as place:
        yield place


def make_job(pbs_home: Path, payer: Payer) -> None:
    """As pbs_mom does when a job of *payer*'s begins."""
    job = f"{payer.uid}.server"
    file = pbs_home / "mom_priv" / "jobs" / f"{job}.JB"
    file.write_bytes(binary(Job(job, job, uid=payer.uid, gid=payer.uid)))


@pytest.fixture
def other(place: Place) -> Iterator[Payer]:
    with paying(place) as payer:
        yield payer


IN_SET = Charge(7 * UNIT, 4)
"""Of what root makes: two directories, an image of four units, and one of one byte."""


@pytest.fixture
def unclaimed(place: Place, payer: Payer) -> Iterator[str]:
    """A batch set of root's, of a job that nobody knows."""
    path = f"{place.mount.path}/{payer.uid}.server.CK"
    os.makedirs(f"{path}/ckpt")
    save(f"{path}/ckpt/image", b"x" * (4 * UNIT))
    save(f"{path}/ckpt/one", b"x")
    yield path
    place.quotas.settled(place.keeper)


@dataclass(frozen=True)
class Everything:
    """What must not change if a set could not be given away."""

    owner: str
    looks: list[tuple[str, int, int, int, int, int]]
    contents: list[bytes]


def everything(path: str) -> Everything:
    paths = [path, f"{path}/ckpt", f"{path}/ckpt/image", f"{path}/ckpt/one"]
    looks = []
    for each in paths:
        status = os.stat(each)
        looks.append((each, status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns, status.st_ino))
    uid = os.getxattr(path, "user.ckfs.uid").decode()
    return Everything(uid, looks, [content(each) for each in paths[2:]])


# Created as root, then given away


def give_by_chown(path: str, uid: int) -> None:
    os.chown(path, uid, uid)


def give_by_attribute(path: str, uid: int) -> None:
    os.setxattr(path, "user.ckfs.owner", str(uid).encode())


GIVING: tuple[Callable[[str, int], None], ...] = (give_by_chown, give_by_attribute)


@pytest.mark.parametrize("give", GIVING, ids=lambda give: give.__name__)
def test_what_root_gives_away_is_charged_to_the_new_owner(
    place: Place, payer: Payer, unclaimed: str, give: Callable[[str, int], None]
) -> None:
    of_root, before = place.quotas.settled(place.keeper), payer.has()
    payer.may_add(bytes=IN_SET.bytes, files=IN_SET.files)
    give(unclaimed, payer.uid)
    assert payer.quotas.standing(payer.uid).total.bytes >= before.bytes + IN_SET.bytes, "at once"
    assert payer.has() - before == IN_SET
    assert of_root - place.quotas.settled(place.keeper) == IN_SET
    assert payer.room == 0


@pytest.mark.parametrize("give", GIVING, ids=lambda give: give.__name__)
@pytest.mark.parametrize("short", ["bytes", "files"])
def test_what_does_not_fit_is_not_given_and_nothing_has_changed(
    place: Place, payer: Payer, unclaimed: str, short: str, give: Callable[[str, int], None]
) -> None:
    of_root, before, was = place.quotas.settled(place.keeper), payer.has(), everything(unclaimed)
    payer.may_add(**{short: getattr(IN_SET, short) - 1})
    with raises_errno(errno.EDQUOT):
        give(unclaimed, payer.uid)
    assert everything(unclaimed) == was
    assert (place.quotas.settled(place.keeper), payer.has()) == (of_root, before)
    payer.may_add(**{short: getattr(IN_SET, short)})
    give(unclaimed, payer.uid)
    assert payer.has() - before == IN_SET


def test_what_one_user_gives_up_another_pays_for(place: Place, payer: Payer, other: Payer) -> None:
    payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
    other.may_add(bytes=4 * UNIT - 1)
    before, of_other = payer.has(), other.has()
    with raises_errno(errno.EDQUOT):
        os.chown(payer.path, other.uid, other.uid)
    assert (payer.has(), other.has()) == (before, of_other)
    other.may_add(bytes=4 * UNIT)
    os.chown(payer.path, other.uid, other.uid)
    assert payer.has() == NOTHING
    assert other.has() == of_other + before


def test_giving_to_whom_it_belongs_costs_nothing(payer: Payer) -> None:
    payer.calls(save, payer.inside("image"), b"x" * UNIT)
    payer.may_add(bytes=0, files=0)
    before = payer.has()
    os.chown(payer.path, payer.uid, payer.uid)
    assert payer.has() == before


def test_a_set_that_is_a_file_is_charged_to_whom_it_is_given(place: Place, payer: Payer) -> None:
    path, before = f"{payer.path}-file", payer.has()
    save(path, b"x" * (2 * UNIT))
    payer.may_add(bytes=2 * UNIT - 1)
    with raises_errno(errno.EDQUOT):
        os.chown(path, payer.uid, payer.uid)
    payer.may_add(bytes=2 * UNIT)
    os.chown(path, payer.uid, payer.uid)
    assert payer.has() - before == Charge(2 * UNIT, 1)


def test_attributes_are_given_with_their_files(place: Place, payer: Payer) -> None:
    path, before = f"{payer.path}-other", payer.has()
    os.mkdir(path)
    os.setxattr(path, "user.note", b"v")
    payer.may_add(bytes=2 * UNIT - 1)
    with raises_errno(errno.EDQUOT):
        os.chown(path, payer.uid, payer.uid)
    payer.may_add(bytes=2 * UNIT)
    os.chown(path, payer.uid, payer.uid)
    assert payer.has() - before == DIRECTORY + Charge(UNIT, 0)


def test_a_chown_inside_a_set_charges_nobody_else(payer: Payer, other: Payer) -> None:
    payer.calls(save, payer.inside("image"), b"x" * UNIT)
    before = payer.has(), other.has()
    other.may_add(bytes=0, files=0)
    os.chown(payer.inside("image"), other.uid, other.uid)
    assert (payer.has(), other.has()) == before


def test_who_still_writes_in_a_set_that_is_given_away_goes_on_at_the_new_owners_cost(
    place: Place, payer: Payer, unclaimed: str
) -> None:
    payer.may_add(bytes=IN_SET.bytes + 3 * UNIT)
    of_root, before = place.quotas.settled(place.keeper), payer.has()
    with Agent(ROOT) as writer:
        # O_RDWR is what the daemon writes: what the kernel writes by itself goes on until it is closed (test_passthrough.py).
        fd = writer.do(os.open, f"{unclaimed}/ckpt/more.tmp", os.O_RDWR | os.O_CREAT, 0o600)
        assert writer.do(os.write, fd, b"y" * UNIT) == UNIT
        os.chown(unclaimed, payer.uid, payer.uid)
        assert writer.do(os.write, fd, b"y" * (4 * UNIT)) == 2 * UNIT
        with raises_errno(errno.EDQUOT):
            writer.do(os.write, fd, b"y")
        writer.do(os.close, fd)
    assert payer.room == 0
    assert payer.has() - before == IN_SET + Charge(3 * UNIT, 1)
    assert of_root - place.quotas.settled(place.keeper) == IN_SET


# Unclaimed sets


def test_an_unclaimed_set_is_charged_to_the_service_account(place: Place, payer: Payer) -> None:
    before = place.quotas.settled(place.keeper)
    path = f"{place.mount.path}/{payer.uid}.server.CK"
    os.mkdir(path)
    save(f"{path}/image", b"x" * UNIT)
    assert place.quotas.settled(place.keeper) - before == Charge(2 * UNIT, 2)


def test_a_set_of_a_known_job_is_charged_to_its_owner_from_the_beginning(
    place: Place, payer: Payer, pbs_home: Path
) -> None:
    path = f"{place.mount.path}/{payer.uid}.server.CK"
    make_job(pbs_home, payer)
    payer.may_add(files=0)
    with raises_errno(errno.EDQUOT):
        os.mkdir(path)
    assert not os.path.exists(path)
    payer.may_add(bytes=UNIT, files=1)
    os.mkdir(path)
    assert os.getxattr(path, "user.ckfs.uid").decode() == str(payer.uid)
    assert payer.room == 0


def test_a_set_that_the_jobs_owner_comes_to_claim_is_charged_to_him_first(
    place: Place, payer: Payer, unclaimed: str, pbs_home: Path
) -> None:
    os.chmod(unclaimed, 0o777)
    make_job(pbs_home, payer)
    before, of_root, was = payer.has(), place.quotas.settled(place.keeper), everything(unclaimed)
    payer.may_add(bytes=IN_SET.bytes - 1)
    with raises_errno(errno.EDQUOT):
        payer.calls(save, f"{unclaimed}/new", b"")
    assert everything(unclaimed) == was
    assert (payer.has(), place.quotas.settled(place.keeper)) == (before, of_root)
    payer.may_add(bytes=IN_SET.bytes)
    payer.calls(save, f"{unclaimed}/new", b"")
    assert payer.has() - before == IN_SET + Charge(0, 1)
    assert of_root - place.quotas.settled(place.keeper) == IN_SET


# Whoever writes


def test_what_root_writes_into_a_users_set_is_the_users_and_ends_at_his_limit(payer: Payer) -> None:
    payer.may_add(bytes=4 * UNIT, files=1)
    assert write_at(payer.inside("image"), 0, b"x" * (10 * UNIT)) == 4 * UNIT
    with raises_errno(errno.EDQUOT):
        append(payer.inside("image"), b"x")
    for make in (os.mkdir, os.mkfifo):
        with raises_errno(errno.EDQUOT):
            make(payer.inside("another"))
    with raises_errno(errno.EDQUOT):
        os.setxattr(payer.inside("image"), "user.note", b"v")
    assert payer.room == 0


def test_what_another_user_writes_there_is_the_owners_too(place: Place, other: Payer) -> None:
    payer = new_payer(place.mount, place.quotas, 0o777)
    payer.may_add(bytes=4 * UNIT)
    other.may_add(bytes=0, files=0)
    with raises_errno(errno.EDQUOT):
        other.calls(save, payer.inside("image"), b"x" * (5 * UNIT))
    assert payer.room == 0


def test_a_copy_is_charged_to_the_owner_of_where_it_is_made(payer: Payer, other: Payer) -> None:
    payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
    before = payer.has()
    other.may_add(bytes=3 * UNIT)
    shutil.move(payer.inside("image"), other.inside("image"))
    assert other.room == 0
    assert payer.has() == before, "what was complete is in his trash now"


def test_one_user_over_his_limit_keeps_nobody_else_from_writing(payer: Payer, other: Payer) -> None:
    payer.may_add(bytes=0, files=0)
    with raises_errno(errno.EDQUOT):
        payer.calls(save, payer.inside("image"), b"x")
    other.calls(save, other.inside("image"), b"x" * (3 * UNIT))
    assert other.calls(content, other.inside("image")) == b"x" * (3 * UNIT)
