"""Fixtures that every kind of test may use: directories, stores and mounts."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer

from ckfs.ledger import state
from tests.support import gluster_cluster, ledgers
from tests.support.distribution import ByFileOrCluster, longest_first
from tests.support.gluster_cluster import Cluster
from tests.support.ledgers import Policy
from tests.support.mounting import TRANSPORT, Mount, mounted, run_ckfs, state_directory
from tests.support.nfs import directory_for, nfs_store
from tests.support.payers import Quotas, ledger_in, private_store
from tests.support.postgres import Server, running, skip_unless_installed

pytest_plugins = ("tests.fs.failing", "tests.fs.places")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-cluster",
        action="store_true",
        help="run on the GlusterFS cluster all that can run there, not only what fits in time: an hour and more",
    )
    parser.addoption(
        "--transport",
        choices=("kernel", "pyfuse3"),
        help="by which transport mounts are served, if not by the one that ckfs chooses",
    )


def pytest_configure(config: pytest.Config) -> None:
    if transport := config.getoption("transport"):
        os.environ[TRANSPORT] = transport


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long on the cluster, unless it is asked for; and begin with what takes longest of the rest."""
    items[:] = longest_first(items)
    if config.getoption("whole_cluster"):
        return
    left_out = [
        item
        for item in items
        if item.get_closest_marker("cluster") and item.get_closest_marker("long_on_cluster")
    ]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFileOrCluster | None:
    return ByFileOrCluster(config, log) if config.getoption("dist") == "loadfile" else None


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
    return private_store(workdir)


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
def module_mount_on_plain(root_and_fuse: None, module_workdir: Path) -> Iterator[Mount]:
    """A node's mount of a new store, shared by all tests of one module."""
    store = private_store(module_workdir)
    with mounted(store, module_workdir / "mount") as running:
        yield running


@pytest.fixture(scope="module")
def module_mount(module_mount_on_plain: Mount) -> Mount:
    """As ``module_mount_on_plain``, unless a module says otherwise."""
    return module_mount_on_plain


@pytest.fixture(scope="module")
def module_mount_on_nfs(root_and_fuse: None, module_workdir: Path) -> Iterator[Mount]:
    """As ``module_mount``, on what behaves like NFS whose server squashes root."""
    private = module_workdir / "nfs"
    private.mkdir(mode=0o700)
    keeper = pwd.getpwnam("daemon")  # every Debian has it; it stands for the account that an admin makes
    with nfs_store(private) as nfs:
        directory_for(nfs, keeper.pw_uid, keeper.pw_gid)
        store = nfs.clients[0].path / "store"
        run_ckfs("init", store, "--service-user", keeper.pw_name).check_returncode()
        options = [f"service_user={keeper.pw_name}"]
        with mounted(store, module_workdir / "mount-on-nfs", options=options) as running:
            yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL that all tests of a process share: it is not theirs to stop. Each store gets a database of its own."""
    skip_unless_installed()
    with running() as server:
        yield server


@pytest.fixture(scope="module", params=["embedded", "postgresql"])
def ledger(request: pytest.FixtureRequest) -> Policy:
    """What a policy says of where the ledger is. All tests of a module run with each."""
    if request.param == "embedded":
        return ledgers.embedded
    return ledgers.in_new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def own_state(workdir: Path) -> Iterator[Path]:
    """Where this host keeps the ledgers of the test's stores."""
    with ledger_in(workdir / "state"):
        yield workdir / "state"


@pytest.fixture
def quotas(root_and_fuse: None, own_state: Path, workdir: Path) -> Quotas:
    """Of a new store, which is not mounted yet."""
    store = private_store(workdir)
    return Quotas(store, store)
