"""The GlusterFS driver on a real volume, where the machine has GlusterFS."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.support.gluster_node import LIMIT, MIB, run

Facts = dict[str, object]


@pytest.fixture(scope="module")
def facts(module_workdir: Path) -> Facts:
    """What one run of the engine on a volume of its own met."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("glusterd", "gluster", "glusterfs"))):
        pytest.skip("needs root, and the packages glusterfs-server and glusterfs-client")
    return run(module_workdir)


def test_a_mounted_volume_is_known_by_itself(facts: Facts) -> None:
    assert facts["name"] == "glusterfs"


def test_new_realms_have_the_default_limit(facts: Facts) -> None:
    assert facts["default"] == [LIMIT, LIMIT]


def test_at_his_limit_a_user_gets_edquot_and_another_goes_on(facts: Facts) -> None:
    taken = facts["taken"]
    assert isinstance(taken, int)
    assert facts["refusal"] == errno.EDQUOT
    assert LIMIT // 2 < taken < LIMIT + 4 * MIB  # it is not exact
    assert (facts["others"], facts["others_refusal"]) == (2 * LIMIT, 0)


def test_what_he_has_is_shown(facts: Facts) -> None:
    used = facts["used"]
    assert isinstance(used, int)
    assert LIMIT // 2 < used < LIMIT + 4 * MIB


def test_files_are_limited_and_counted(facts: Facts) -> None:
    files = facts["files"]
    assert isinstance(files, int)
    assert facts["files_refusal"] == errno.EDQUOT
    assert 4 <= files <= 6


def test_a_limit_can_be_lifted(facts: Facts) -> None:
    assert facts["lifted"] is None
