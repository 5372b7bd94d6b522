"""What two mounts say to each other in ``mounts/``, to find out how late each sees the other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.names import MountId
from ckfs.store.exchanges import Exchanges, Said, Voice
from ckfs.store.identity import ROOT
from ckfs.store.mounts import Mounts, Registration, is_passing, new_id

pytestmark = pytest.mark.root


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def mounts(root_fd: int) -> Mounts:
    return Mounts(root_fd, ROOT)


@pytest.fixture
def exchanges(root_fd: int) -> Exchanges:
    return Exchanges(root_fd, ROOT, b"kernel")


def registered(mounts: Mounts) -> MountId:
    id_ = new_id()
    mounts.register(Registration(id_, b"node", b"kernel", 1, 1, 1))
    return id_


def test_one_at_a_time_asks(mounts: Mounts, exchanges: Exchanges) -> None:
    a, b, c = (registered(mounts) for _ in range(3))
    assert exchanges.asker(b) is None
    assert exchanges.ask(a, b)
    assert not exchanges.ask(c, b)
    assert exchanges.asker(b) == a
    exchanges.end_asking(c, b)
    assert exchanges.asker(b) == a
    exchanges.end_asking(a, b)
    assert exchanges.asker(b) is None


def test_one_that_has_ended_is_not_asked(mounts: Mounts, exchanges: Exchanges) -> None:
    a = registered(mounts)
    assert not exchanges.ask(a, new_id())


@pytest.mark.parametrize("voice", Voice)
def test_each_number_is_heard_after_the_last(mounts: Mounts, exchanges: Exchanges, voice: Voice) -> None:
    a, b = registered(mounts), registered(mounts)
    assert exchanges.heard(a, voice) is None
    exchanges.begin(a, voice, b)
    last = exchanges.heard(a, voice)
    for number in range(5):
        assert last == Said(exchanges.client(), b, number)
        assert exchanges.heard(a, voice, after=last) == last
        exchanges.say(a, voice, b, number + 1)
        last = exchanges.heard(a, voice, after=last)
    exchanges.fall_silent(a, voice)
    assert exchanges.heard(a, voice) is None


@pytest.mark.parametrize(
    ("voice", "is_same"),
    [(Voice.ASKS, [True, True, True, True]), (Voice.ANSWERS, [True, False, True, False])],
)
def test_even_answers_are_another_file_and_nothing_else_changes_names(
    mounts: Mounts, exchanges: Exchanges, tmp_path: Path, voice: Voice, is_same: list[bool]
) -> None:
    a, b = registered(mounts), registered(mounts)
    exchanges.begin(a, voice, b)
    file = tmp_path / "mounts" / (a + voice.value).decode()
    inodes, changes = [file.stat().st_ino], [exchanges.changes]
    for number in range(1, 5):
        exchanges.say(a, voice, b, number)
        inodes.append(file.stat().st_ino)
        changes.append(exchanges.changes)
    assert [one == other for one, other in itertools.pairwise(inodes)] == is_same
    assert [one == other for one, other in itertools.pairwise(changes)] == is_same


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense", b"client;0123;..", b"client;0123456789abcdef;..x", b"\xff" * 2000]
)
def test_what_no_mount_has_said_is_not_heard(
    exchanges: Exchanges, mounts: Mounts, tmp_path: Path, raw: bytes
) -> None:
    a = registered(mounts)
    (tmp_path / "mounts" / f"{a.decode()}.answers").write_bytes(raw)
    assert exchanges.heard(a, Voice.ANSWERS) is None


def _leave(mounts: Mounts, mount: MountId) -> None:
    mounts.leave(mount, finished=True)


def _be_ended(mounts: Mounts, mount: MountId) -> None:
    mounts.end(mount)
    mounts.forget(mount)


@pytest.mark.parametrize("leave", [_leave, _be_ended])
def test_who_leaves_takes_along_what_it_said_and_was_asked(
    mounts: Mounts, exchanges: Exchanges, tmp_path: Path, leave: Callable[[Mounts, MountId], None]
) -> None:
    a, b = registered(mounts), registered(mounts)
    exchanges.ask(b, a)
    exchanges.begin(a, Voice.ASKS, b)
    exchanges.begin(a, Voice.ANSWERS, b)
    leave(mounts, a)
    assert os.listdir(tmp_path / "mounts") == [b.decode()]


def test_mounts_are_listed_without_what_they_say(mounts: Mounts, exchanges: Exchanges) -> None:
    a, b = registered(mounts), registered(mounts)
    exchanges.ask(a, b)
    exchanges.begin(a, Voice.ASKS, b)
    assert sorted(mounts.ids()) == sorted([a, b])
    assert sorted(one.id for one in mounts.all()) == sorted([a, b])


def test_the_check_knows_their_names() -> None:
    assert is_passing(b"0123456789abcdef.asks")
    assert is_passing(b"0123456789abcdef.answers~")
    assert not is_passing(b"notes.asks")
    assert not is_passing(b"0123456789abcdef")
