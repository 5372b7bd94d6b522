"""Each host has a name of its own: a second host under the same name is refused for as long as the first one lives."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckfs.fs.liveness import registration_here
from ckfs.store.identity import ROOT
from ckfs.store.mounts import Mounts, Registration
from tests.support.mounting import is_mounted, make_store, mounted, run_ckfs

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

USAGE = 2
LEASE_S = 2.0
BEAT_S = 0.1
OTHER_KERNEL = b"00000000-0000-4000-8000-000000000000"


@pytest.fixture
def store(root_and_fuse: None, workdir: Path) -> Path:
    """Several hosts may mount it: nobody counts in it."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    made = make_store(private, "--quota", "none")
    policy = made / "policy.toml"
    policy.write_text(policy.read_text().replace("lease = 60.0", f"lease = {LEASE_S}"))
    return made


class Elsewhere:
    """A mount of another host, as far as the store shows it."""

    def __init__(self, mounts: Mounts, node: bytes) -> None:
        self._mounts = mounts
        self.registration = replace(registration_here(node), boot=OTHER_KERNEL)
        self._end = threading.Event()
        self._beating = threading.Thread(target=self._beat)
        mounts.register(self.registration)
        assert mounts.take_node(node, self.registration.id, None)
        self._beating.start()

    def _beat(self) -> None:
        own: Registration = self.registration
        while not self._end.wait(BEAT_S):
            own = self._mounts.renew(own)

    def disappear(self) -> None:
        self._end.set()
        self._beating.join()


@contextlib.contextmanager
def registry(store: Path) -> Iterator[Mounts]:
    root_fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Mounts(root_fd, ROOT)
    finally:
        os.close(root_fd)


@pytest.fixture
def elsewhere(store: Path) -> Iterator[Elsewhere]:
    with registry(store) as mounts:
        other = Elsewhere(mounts, b"tqn1")
        try:
            yield other
        finally:
            other.disappear()


def test_a_second_host_under_the_same_name_is_refused(
    store: Path, workdir: Path, elsewhere: Elsewhere
) -> None:
    (workdir / "mount").mkdir()
    done = run_ckfs("mount", store, workdir / "mount", "-o", "node=tqn1")
    assert done.returncode == USAGE
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ckfs: ")]
    assert "of node tqn1 is on another host, and alive: give each host a name of its own" in line
    assert not is_mounted(workdir / "mount")
    with registry(store) as mounts:  # nothing is left of the one that was refused
        assert [one.id for one in mounts.all()] == [elsewhere.registration.id]
        assert mounts.holder_of(b"tqn1") == elsewhere.registration.id
    with mounted(store, workdir / "mount", node="tqn2"):
        pass


def test_who_is_silent_for_ever_keeps_nobody_from_his_name(
    store: Path, workdir: Path, elsewhere: Elsewhere
) -> None:
    """As after a host has lost its power, and has started again."""
    elsewhere.disappear()
    with mounted(store, workdir / "mount", node="tqn1") as mount:
        assert "on another host, is alive" in mount.log()
        with registry(store) as mounts:
            assert mounts.holder_of(b"tqn1") not in {None, elsewhere.registration.id}
    with registry(store) as mounts:
        assert mounts.holder_of(b"tqn1") is None


def test_mounts_of_one_host_share_its_name(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "a", node="tqn1"), mounted(store, workdir / "b", node="tqn1"):
        pass


def test_a_name_that_a_killed_daemon_had_is_free_at_once_on_its_host(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "a", node="tqn1") as first:
        first.kill()
    with mounted(store, workdir / "a", node="tqn1") as mount:
        assert "listening" not in mount.log()


def test_of_many_who_take_a_name_at_once_one_has_it(store: Path) -> None:
    taken: list[bytes] = []
    with registry(store) as mounts:
        before = registration_here(b"tqn1").id
        assert mounts.take_node(b"tqn1", before, None)
        together = threading.Barrier(8)

        def take() -> None:
            own = registration_here(b"tqn1").id
            together.wait()
            if mounts.take_node(b"tqn1", own, before):
                taken.append(own)

        takers = [threading.Thread(target=take) for _ in range(8)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert [mounts.holder_of(b"tqn1")] == taken
    assert [name for name in os.listdir(store / "mounts") if "~" in name] == []
