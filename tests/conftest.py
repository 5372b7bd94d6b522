"""Fixtures that every kind of test may use: directories, stores and mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.ledger import state
from tests.support import gluster_cluster
from tests.support.gluster_cluster import Cluster
from tests.support.mounting import Mount, make_store, mounted, state_directory


@contextlib.contextmanager
def _open_to_all() -> Iterator[Path]:
    """A new local directory that every user may pass through; pytest's own are root's alone."""
    directory = Path(tempfile.mkdtemp(prefix="ckfs-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session", autouse=True)
def host_state() -> Iterator[Path]:
    """Commands that tests run in their own process keep the state of the host there, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(state.VARIABLE, str(state_directory()))
        yield state_directory()


@pytest.fixture(scope="session")
def root_and_fuse() -> None:
    """Skips what needs to be root with a FUSE device."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be other users and to mount")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse")


@pytest.fixture(scope="session")
def gluster(root_and_fuse: None) -> Iterator[Cluster]:
    """A GlusterFS cluster whose volume squashes root: one for all tests that need it, which run in one process."""
    with gluster_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A local directory of this test, 0711: users may pass through it, not list it."""
    with _open_to_all() as directory:
        yield directory


@pytest.fixture(scope="module")
def module_workdir() -> Iterator[Path]:
    """As ``workdir``, for all tests of one module."""
    with _open_to_all() as directory:
        yield directory


@pytest.fixture
def store(root_and_fuse: None, workdir: Path) -> Path:
    """A new store below a directory of root, 0700, so that users cannot reach it around ckfs."""
    return _private_store(workdir)


@pytest.fixture
def mount(store: Path, workdir: Path) -> Iterator[Mount]:
    """The store mounted once, as a node."""
    with mounted(store, workdir / "mount") as running:
        yield running


@pytest.fixture
def two_mounts(store: Path, workdir: Path) -> Iterator[tuple[Mount, Mount]]:
    """One store mounted twice, as the nodes a and b."""
    with (
        mounted(store, workdir / "a", node="a") as first,
        mounted(store, workdir / "b", node="b") as second,
    ):
        yield first, second


@pytest.fixture(scope="module")
def module_mount(root_and_fuse: None, module_workdir: Path) -> Iterator[Mount]:
    """A node's mount of a new store, shared by all tests of one module."""
    store = _private_store(module_workdir)
    with mounted(store, module_workdir / "mount") as running:
        yield running


def _private_store(directory: Path) -> Path:
    private = directory / "private"
    private.mkdir(mode=0o700)
    return make_store(private)
