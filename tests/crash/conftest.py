"""Where those that die in process have their stores: in a plain directory, and on what behaves like NFS with root squashed."""

from __future__ import annotations

import pytest

from tests.fs.places import run_on


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run_on(metafunc, "plain", "nfs")
