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
    "test_what_one_user_gives_up_another_pays_for",
    "test_deleting_frees",
    "test_what_is_appended_is_charged",
}
"""Of the holes in quotas, what is tried on the GlusterFS cluster every time. All of it is with ``--whole-cluster``."""


def _mark_what_takes_long(items: list[pytest.Item]) -> None:
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out on a store like NFS what it cannot do by design: the module says which tests, and why, in ``NOT_ON_NFS``."""
    _mark_what_takes_long(items)
    left_out = [item for item in items if _is_not_on_nfs(item)]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


def _is_not_on_nfs(item: pytest.Item) -> bool:
    parts: dict[str, str] = getattr(getattr(item, "module", None), "NOT_ON_NFS", {})
    return "[nfs" in item.name and any(part in item.name for part in parts)


@pytest.fixture
def payer(place: Place) -> Iterator[Payer]:
    """A user of this test's own, in the ``place`` of its file."""
    with paying(place) as payer:
        yield payer
