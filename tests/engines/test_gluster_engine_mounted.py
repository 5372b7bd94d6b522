"""Quotas that GlusterFS enforces itself, under a mount of ckfs: every way of writing ends with EDQUOT, and how far over the limit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.gluster_engine import WAYS, run
from tests.support.gluster_node import LIMIT, MIB

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.long_on_cluster]

Facts = dict[str, dict[str, int]]
INEXACT_BYTES = 4 * MIB
"""What docs/quotas.md says of it, and as much again for a busy machine."""


@pytest.fixture(scope="module")
def facts(root_and_fuse: None, module_workdir: Path) -> Facts:
    if os.geteuid() != 0 or not all(map(shutil.which, ("glusterd", "gluster", "glusterfs"))):
        pytest.skip("needs root, and the packages glusterfs-server and glusterfs-client")
    found = run(module_workdir)
    for name, met in found.items():
        print(f"{name}: {met}")
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_ends_near_the_limit(facts: Facts, way: str) -> None:
    met = facts[way]
    assert met["refused"], met
    assert LIMIT // 2 < met["taken_bytes"] < LIMIT + INEXACT_BYTES


@pytest.mark.parametrize("way", WAYS)
def test_who_is_at_his_limit_can_rename(facts: Facts, way: str) -> None:
    assert facts[way]["renames"] == 0
