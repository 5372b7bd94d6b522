"""On a real GlusterFS: what its default options cost is found out, and with those that ckfs documents nothing is left to say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.gluster_selftest import run
from tests.support.selftests import Report

pytestmark = pytest.mark.root

NO_FLAGS = {"rename.noreplace", "rename.exchange"}


@pytest.fixture(scope="module")
def reports(module_workdir: Path) -> dict[str, Report]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("glusterd", "gluster", "glusterfs"))):
        pytest.skip("needs root, and the packages glusterfs-server and glusterfs-client")
    return run(module_workdir)


def test_with_default_options_an_open_file_shows_what_was_long_ago(reports: dict[str, Report]) -> None:
    row = reports["default"].rows["coherence.open_data"]
    assert row.verdict in {"warn", "fail"}
    assert "performance.X off" in row.mend
    assert "attribute-timeout=0" in row.mend


def test_with_the_documented_options_the_next_call_sees_everything(reports: dict[str, Report]) -> None:
    report = reports["coherent"]
    assert (report.of("fail"), report.of("warn"), report.of("not tried")) == ({}, {}, {})
    assert report.rows["names.create"].figures["mounts"] == 2
    assert report.rows["coherence.locks"].verdict == "ok"


def test_where_root_is_squashed_the_directorys_owner_keeps_the_store(reports: dict[str, Report]) -> None:
    report = reports["squashed"]
    assert report.of("fail") == {}
    assert report.of("warn").keys() == NO_FLAGS
    assert report.rows["root.squash"].figures == {"squashed": 1}
    assert report.rows["store.nothing_left"].verdict == "ok"
