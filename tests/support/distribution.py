"""Which tests run in one process when they are distributed over several (pytest-xdist)."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

_CLUSTER = "gluster"
LONGEST = (
    _CLUSTER,
    "mounted/test_squashed_root",
    "fs/test_every_failure",
    "mounted/test_quota_holes",
    "mounted/test_database_away_on_mounts",
    "mounted/test_theft",
    "cluster/test_two_mounts",
    "mounted/test_bench_command",
    "mounted/test_protection",
    "mounted/test_lifecycle",
    "fs/test_trash",
    "mounted/test_quota_giving_way",
    "mounted/test_quota_names",
    "mounted/test_store_errors",
    "crash/test_kill",
    "e2e/test_",
    "posix/test_posix_sticky",
    "posix/test_posix_remove",
    "mounted/test_gc_command",
    "mounted/test_keeping",
    "mounted/test_quota_command",
    "model/test_protection_model",
)
"""Parts of the names of what takes longest, longest first. They begin first: one of them at the end would keep the others waiting."""


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    return sorted(items, key=_rank)


def _rank(item: pytest.Item) -> int:
    ranks = (rank for rank, part in enumerate(LONGEST) if part in item.nodeid)
    return next(ranks, len(LONGEST))


class ByFileOrCluster(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """Those of one file do, in order; and all whose name or parameters say that they need the cluster, so that there is one."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        config.option.loadscopereorder = False  # by how many tests a file has: not by how long they take
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return _CLUSTER if _CLUSTER in nodeid else str(super()._split_scope(nodeid))
