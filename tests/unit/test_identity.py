"""Acting as a set's owner in the store: nested blocks, and the way back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store.identity import ROOT, acting_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")

ALICE, BOB = Owner(Uid(2101), Gid(2101)), Owner(Uid(2102), Gid(2102))


def who(directory: Path) -> int:
    """Whose file it is that this thread makes."""
    path = directory / "probe"
    path.touch()
    owner = path.stat().st_uid
    path.unlink()
    return owner


@pytest.fixture
def public(workdir: Path) -> Path:
    directory = workdir / "public"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def test_a_block_within_another_ends_as_that_one(public: Path) -> None:
    """What lists a directory as its owner goes on as him after something was done for another."""
    with acting_as(ALICE):
        assert who(public) == ALICE.uid
        with acting_as(BOB):
            assert who(public) == BOB.uid
            with acting_as(ROOT):
                assert who(public) == 0
            assert who(public) == BOB.uid
        with acting_as(ALICE):
            assert who(public) == ALICE.uid
        assert who(public) == ALICE.uid
    assert who(public) == 0


def test_an_exception_ends_it_too(public: Path) -> None:
    with pytest.raises(KeyError), acting_as(ALICE):
        raise KeyError
    assert who(public) == 0
