"""What time it is, where the clocks of hosts differ.

When something was removed, or became complete, was noted by the clock of the host on which it was; times of files may be those of hosts, too,
since the clients of most distributed file systems send them. So its age is counted by the slowest clock of all mounts that
live, each of which says in its registration what its own showed: nothing then goes before its time, and it may go later by as much as
the clocks differ.
"""

from __future__ import annotations

import time

from ckfs.fs.core import Core

SECOND_NS = 1_000_000_000
LEAST_BEHIND_S = 60.0
"""A clock that is less behind counts as right: what a mount said of its own may be as old as its last beat, up to a lease."""
MOST_BEHIND_S = 3600.0
"""A clock that is further behind is broken, and keeps nothing from ending."""


def slowest_clock_ns(core: Core) -> int:
    """In ns since the epoch. Blocking; reads all registrations."""
    own_ns, lease_s, judge = time.time_ns(), core.policy.lease_s, core.judge
    least_ns, most_ns = max(LEAST_BEHIND_S, lease_s) * SECOND_NS, MOST_BEHIND_S * SECOND_NS
    return min(
        (
            one.wall_ns
            for one in core.store.mounts.all()
            if least_ns < own_ns - one.wall_ns < most_ns
            and not judge.has_died_here(one)
            and judge.silent_s(one, lease_s) < lease_s
        ),
        default=own_ns,
    )
