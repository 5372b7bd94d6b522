"""Fixtures of tests on real mounts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.payers import Payer, Place, paying


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out on a store like NFS what it cannot do by design: the module says which tests, and why, in ``NOT_ON_NFS``."""
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
