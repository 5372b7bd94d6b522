"""Fixtures for suites whose stores lie on more than one kind of file system: their ``conftest.py`` says which (:func:`run_on`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.fs.cores import new_store
from tests.fs.nfs_stores import file_system_of
from tests.support.nfs import on_server


def run_on(metafunc: pytest.Metafunc, *kinds: str) -> None:
    """Run the test on each of *kinds*, "plain" and "nfs", if its store lies on a ``file_system``."""
    if "file_system" in metafunc.fixturenames:
        metafunc.parametrize("file_system", kinds, indirect=True, scope="module")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-nfs",
        action="store_true",
        help="run on what behaves like NFS all that can run there, not only what fits in time: some minutes",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out on what behaves like NFS what means nothing there, and what takes long unless it is asked for."""
    left_out = [item for item in items if _is_on_nfs(item) and _stays_away(item, config)]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


def _is_on_nfs(item: pytest.Item) -> bool:
    spec = getattr(item, "callspec", None)
    return spec is not None and spec.params.get("file_system") == "nfs"


def _stays_away(item: pytest.Item, config: pytest.Config) -> bool:
    is_long = item.get_closest_marker("long_on_nfs") is not None
    return item.get_closest_marker("plain_alone") is not None or (
        is_long and not config.getoption("whole_nfs")
    )


@pytest.fixture(scope="module")
def file_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on a file system for all stores of the module."""
    kind = cast("str", request.param)
    with file_system_of(kind, tmp_path_factory.mktemp(kind)) as path:
        yield path


@pytest.fixture
def directory(file_system: Path) -> Path:
    """A new directory on it, for the stores of this test."""
    made = tempfile.mkdtemp(dir=on_server(file_system))
    os.chmod(made, 0o755)
    return file_system / os.path.basename(made)


@pytest.fixture
def place(directory: Path) -> Path:
    """A new store."""
    return new_store(directory)
