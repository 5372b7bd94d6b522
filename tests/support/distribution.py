"""Which tests run in one process when they are distributed over several (pytest-xdist)."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

_CLUSTER = "gluster"


class ByFileOrCluster(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """Those of one file do, in order; and all whose name or parameters say that they need the cluster, so that there is one."""

    def _split_scope(self, nodeid: str) -> str:
        return _CLUSTER if _CLUSTER in nodeid else str(super()._split_scope(nodeid))
