"""The store's registry of mounts, and who keeps house."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.errors import Fenced, ReadOnly
from ckfs.fs.liveness import Fate, Judge, registration_here
from ckfs.names import MountId
from ckfs.store.identity import ROOT
from ckfs.store.mounts import Mounts, Registration, decode, encode, new_id

LEASE_S = 60.0
ELSEWHERE = b"another-kernel"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def mounts(root_fd: int) -> Mounts:
    return Mounts(root_fd, ROOT)


def elsewhere(node: bytes = b"tqn1") -> Registration:
    """A mount on another host: nothing about its process can be known here."""
    return Registration(new_id(), node, ELSEWHERE, 1, 1, 1)


# What is written


@given(
    st.from_regex(rb"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    st.integers(0, 1 << 64),
    st.integers(0, 1 << 31),
    st.integers(0, 1 << 63),
)
def test_a_registration_is_read_as_it_was_written(node: bytes, beat: int, pid: int, started: int) -> None:
    registration = Registration(new_id(), node, b"6c3f", 4026531836, pid, started, beat)
    assert decode(registration.id, encode(registration)) == registration


@given(st.binary(max_size=200))
def test_what_is_no_registration_is_none(raw: bytes) -> None:
    found = decode(MountId(b"0" * 16), raw)
    assert found is None or raw.startswith(b"1;")


def test_a_later_versions_fields_are_passed_over() -> None:
    raw = encode(elsewhere()).replace(b";n=", b";later=1;n=")
    found = decode(MountId(b"0" * 16), raw)
    assert found is not None
    assert found.node == b"tqn1"


def test_a_line_that_cannot_be_read_is_no_sign_of_death(mounts: Mounts, tmp_path: Path) -> None:
    registration = elsewhere()
    mounts.register(registration)
    (tmp_path / "mounts" / registration.id.decode()).write_bytes(b"9;of a later version")
    assert mounts.read(registration.id) is not None
    assert Judge(mounts).fate(registration.id, LEASE_S) is Fate.ALIVE


# Coming and going


def test_a_mount_is_there_until_it_leaves(mounts: Mounts) -> None:
    registration = elsewhere()
    assert mounts.all() == []
    mounts.register(registration)
    assert mounts.all() == [registration]
    beating = mounts.renew(registration)
    assert beating.beat == registration.beat + 1
    assert mounts.read(registration.id) == beating
    mounts.leave(registration.id, finished=True)
    assert mounts.all() == []
    assert mounts.ended() == []


def test_one_that_leaves_something_unfinished_is_remembered_until_that_is_settled(mounts: Mounts) -> None:
    registration = elsewhere()
    mounts.register(registration)
    mounts.leave(registration.id, finished=False)
    assert (mounts.all(), mounts.ended()) == ([], [registration.id])
    mounts.forget(registration.id)
    assert mounts.ended() == []


def test_a_fenced_mount_beats_in_vain(mounts: Mounts) -> None:
    registration = elsewhere()
    mounts.register(registration)
    mounts.end(registration.id)
    mounts.end(registration.id)
    with pytest.raises(Fenced):
        mounts.renew(registration)
    assert mounts.read(registration.id) is None
    assert mounts.ended() == [registration.id]


def test_nobody_registers_twice(mounts: Mounts) -> None:
    registration = elsewhere()
    mounts.register(registration)
    with pytest.raises(FileExistsError):
        mounts.register(registration)


def test_nothing_is_changed_for_reading_only(mounts: Mounts, root_fd: int, tmp_path: Path) -> None:
    reading = Mounts(root_fd, ROOT, read_only=True)
    assert (reading.all(), reading.ended(), reading.housekeeper()) == ([], [], None)
    with pytest.raises(ReadOnly):
        reading.register(elsewhere())
    assert list(tmp_path.iterdir()) == []


# Who is alive


def test_silence_for_a_lease_is_what_counts_by_ones_own_clock(mounts: Mounts) -> None:
    clock, registration = Clock(), elsewhere()
    judge = Judge(mounts, clock)
    mounts.register(registration)
    assert judge.fate(registration.id, LEASE_S) is Fate.ALIVE
    clock.now_s += LEASE_S - 0.001
    assert judge.fate(registration.id, LEASE_S) is Fate.ALIVE
    clock.now_s += 0.001
    assert judge.fate(registration.id, LEASE_S) is Fate.SILENT
    mounts.renew(registration)
    assert judge.fate(registration.id, LEASE_S) is Fate.ALIVE


def test_who_could_not_listen_has_not_heard_silence(mounts: Mounts) -> None:
    """After a day without the store nobody may be taken for a mount that was silent for a day."""
    clock, registration = Clock(), elsewhere()
    judge = Judge(mounts, clock)
    mounts.register(registration)
    judge.fate(registration.id, LEASE_S)
    clock.now_s += 86_400
    assert judge.silent_s(registration, LEASE_S) == LEASE_S
    clock.now_s += LEASE_S / 2
    assert judge.silent_s(registration, LEASE_S) == LEASE_S * 1.5


def test_one_that_has_ended_is_gone_at_once(mounts: Mounts) -> None:
    registration = elsewhere()
    judge = Judge(mounts)
    mounts.register(registration)
    assert judge.fate(registration.id, LEASE_S) is Fate.ALIVE
    mounts.end(registration.id)
    assert judge.fate(registration.id, LEASE_S) is Fate.GONE
    assert judge.fate(new_id(), LEASE_S) is Fate.GONE


def test_one_of_this_host_is_gone_when_its_process_is(mounts: Mounts) -> None:
    here = registration_here(b"here")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            mounts.register(registration_here(b"child"))
        os._exit(0)
    os.waitpid(child, 0)
    (of_child,) = mounts.all()
    mounts.register(here)
    judge = Judge(mounts)
    assert judge.fate(of_child.id, LEASE_S) is Fate.GONE
    assert judge.fate(here.id, LEASE_S) is Fate.ALIVE


# Who keeps house


def test_one_keeps_house_for_as_long_as_it_lives(mounts: Mounts) -> None:
    first, second = elsewhere(), elsewhere()
    judge = Judge(mounts)

    def alive(mount: MountId) -> bool:
        return judge.fate(mount, LEASE_S) is Fate.ALIVE

    assert mounts.housekeeper() is None
    for registration in (first, second):
        mounts.register(registration)
    assert mounts.keep_house(first.id, alive)
    assert mounts.keep_house(first.id, alive)
    assert not mounts.keep_house(second.id, alive)
    mounts.leave(first.id, finished=True)
    assert mounts.keep_house(second.id, alive)
    assert mounts.housekeeper() == second.id


def test_another_takes_over_from_one_that_is_not_alive(mounts: Mounts) -> None:
    first, second = new_id(), new_id()
    assert mounts.keep_house(first, lambda _: True)
    assert mounts.keep_house(second, lambda mount: mount != first)
    assert mounts.housekeeper() == second
    assert not mounts.keep_house(first, lambda _: True)


def test_of_many_that_take_over_at_once_one_keeps_house(mounts: Mounts) -> None:
    won: list[MountId] = []
    for _ in range(50):
        won.clear()
        dead, takers = new_id(), [new_id() for _ in range(8)]
        mounts.keep_house(dead, lambda _: False)
        together = threading.Barrier(len(takers))

        def take(taker: MountId, dead: MountId = dead, together: threading.Barrier = together) -> None:
            together.wait()
            if mounts.keep_house(taker, lambda mount: mount != dead):
                won.append(taker)

        threads = [threading.Thread(target=take, args=(taker,)) for taker in takers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [mounts.housekeeper()]


def test_one_that_comes_too_late_for_its_term_finds_the_next(mounts: Mounts) -> None:
    dead, second, third, late = (new_id() for _ in range(4))
    mounts.keep_house(dead, lambda _: False)

    def while_it_asks(_: MountId) -> bool:
        assert mounts.keep_house(second, lambda _: False)
        assert mounts.keep_house(third, lambda _: False)
        return False

    assert not mounts.keep_house(late, while_it_asks)
    assert mounts.housekeeper() == third
