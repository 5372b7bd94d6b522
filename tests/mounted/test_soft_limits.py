"""A soft limit, passed on a mount: allowed until the grace time ends, and a line in the log for each of the two."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Mount, mounted
from tests.support.quotas import set_quota, standing
from tests.support.users import ALICE, as_user, errno_as

pytestmark = pytest.mark.root

MIB = 1 << 20
PASSED = f"uid {ALICE} has passed the soft limit of 1M"
ENDED = f"uid {ALICE} gets nothing more: over the soft limit of 1M"


@pytest.fixture
def mount(store: Path, workdir: Path) -> Iterator[Mount]:
    torn = "is partial: a write failed"
    with mounted(store, workdir / "mount", may_log=[PASSED, ENDED, torn]) as running:
        set_quota(running.path, ALICE, "--soft", "1M", "--hard", "100M")
        as_user(ALICE, os.mkdir, running.path / "s")
        yield running


def save(path: Path, size: int) -> None:
    path.write_bytes(os.urandom(size))


def test_passing_it_is_allowed_and_logged_once(mount: Mount) -> None:
    as_user(ALICE, save, mount.path / "s/within", MIB // 2)
    assert PASSED not in mount.log()
    for number in range(4):
        as_user(ALICE, save, mount.path / f"s/{number}", MIB)
    assert mount.log().count(PASSED) == 1
    assert standing(mount.path, ALICE)["state"] == "grace"


def test_when_the_grace_time_has_ended_it_holds_and_is_logged_once(mount: Mount) -> None:
    set_quota(mount.path, ALICE, "--grace", "0s")
    as_user(ALICE, save, mount.path / "s/within", MIB // 2)
    as_user(ALICE, save, mount.path / "s/beyond", MIB)  # passes it, which is when the time begins
    for _ in range(3):
        assert errno_as(ALICE, save, mount.path / "s/more", MIB) == errno.EDQUOT
    assert mount.log().count(ENDED) == 1
    assert standing(mount.path, ALICE)["state"] == "over"
    as_user(ALICE, (mount.path / "s/within").read_bytes)
