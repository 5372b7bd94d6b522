"""Fixtures of tests on real mounts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import ledgers
from tests.support.payers import MakePlace, Payer, Place, paying, place_in, place_on

ON_CLUSTER = {
    "test_the_trash_gives_way_to_a_write",
}
"""Of the holes in quotas, what is tried on the GlusterFS cluster every time. All of it is with ``--whole-cluster``."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (
            "/mounted/" in item.nodeid
            and item.get_closest_marker("cluster")
            and _name(item) not in ON_CLUSTER
        ):
            item.add_marker("long_on_cluster")


def _name(item: pytest.Item) -> str:
    return item.name.partition("[")[0]


@pytest.fixture(
    scope="module", params=["embedded", "postgresql", pytest.param("gluster", marks=pytest.mark.cluster)]
)
def make_place(request: pytest.FixtureRequest, root_and_fuse: None, module_workdir: Path) -> MakePlace:
    """Quotas are kept in a file, or in PostgreSQL; there, too, where the store is on a cluster that squashes root."""
    if request.param == "embedded":
        return partial(place_in, module_workdir, ledgers.embedded)
    ledger = ledgers.in_new_database(request.getfixturevalue("postgres"))
    if request.param == "gluster":
        return partial(place_on, request.getfixturevalue("gluster"), module_workdir, ledger)
    return partial(place_in, module_workdir, ledger)


@pytest.fixture
def payer(place: Place) -> Iterator[Payer]:
    """A user of this test's own, in the ``place`` of its file."""
    with paying(place) as payer:
        yield payer
