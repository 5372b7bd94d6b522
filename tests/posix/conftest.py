"""The places in which every test of the suite runs: see :mod:`tests.posix.places`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.posix.places import DIRECTORY, Place, make, remove
from tests.support.gluster_cluster import Cluster
from tests.support.mounting import Mount

_numbers = itertools.count(1)
ON_CLUSTER = {"test_posix_locks"}
"""What runs on the GlusterFS cluster every time, where each call takes long. All of it does with ``--whole-cluster``."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/posix/" in item.nodeid and item.path.stem not in ON_CLUSTER:
            item.add_marker("long_on_cluster")


@pytest.fixture(scope="module", autouse=True)
def no_umask() -> Iterator[None]:
    """What a test makes has the mode that it says; children ask for a umask where it matters."""
    before = os.umask(0)
    yield
    os.umask(before)


PLACES = ["directory", "mount", "mount-root"]
ON_NFS = {"remove"}
"""These run on a store that behaves like NFS, too: where it differs most. (The others do as well, and take minutes.)"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "area" in metafunc.fixturenames:
        about = metafunc.module.__name__.rpartition("test_posix_")[2]
        on_nfs = ["mount-on-nfs"] if about in ON_NFS else []
        places = [*PLACES, *on_nfs, pytest.param("gluster", marks=pytest.mark.cluster)]
        metafunc.parametrize("area", places, indirect=True, scope="module")


@pytest.fixture(scope="session")
def gluster_mount(gluster: Cluster) -> Iterator[Mount]:
    """A node's mount of a store on GlusterFS that squashes root, shared by all modules: what they leave behind is nothing."""
    store = gluster.make_store("--quota", "none")
    with gluster.hosts[0].mounts(store, gluster.directory / store) as running:
        yield running


@pytest.fixture(scope="module")
def area(request: pytest.FixtureRequest, root_and_fuse: None, module_workdir: Path) -> Place:
    """One place per module: all its tests share a daemon, and each works in its own ``place``."""
    kind = cast("str", request.param)
    if kind == "directory":
        directory = module_workdir / "plain"
        directory.mkdir(mode=0o755)
    else:
        of = {"gluster": "gluster_mount", "mount-on-nfs": "module_mount_on_nfs"}.get(kind, "module_mount")
        directory = request.getfixturevalue(of).path
        if kind != "mount-root":
            directory /= f"set{next(_numbers)}"
            directory.mkdir(mode=0o755)
    return Place(kind, str(directory))


@pytest.fixture
def place(area: Place) -> Iterator[Place]:
    """A parent directory of root's, 01777, whose entries are this test's; they are gone after it."""
    number = next(_numbers)
    if area.entries_are_sets:
        mine = Place(area.kind, area.top, f"t{number}-")
        yield mine
        for name in os.listdir(area.top):
            if name.startswith(mine.prefix):
                remove(f"{area.top}/{name}")
        return
    top = make(DIRECTORY, f"{area.top}/t{number}", 0o1777)
    yield Place(area.kind, top)
    remove(top)


@pytest.fixture
def room(place: Place) -> str:
    """A directory of root's, 0777 and not sticky, for this test alone; at the mount's root it is one set."""
    return place.dir(mode=0o777)
