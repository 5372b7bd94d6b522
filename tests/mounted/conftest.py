"""Fixtures of tests on real mounts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.payers import Payer, Place, paying


@pytest.fixture
def payer(place: Place) -> Iterator[Payer]:
    """A user of this test's own, in the ``place`` of its file."""
    with paying(place) as payer:
        yield payer
