"""In which store the files of a new set go: the first in the policy's order that this host reaches and that has room, else home.

What is known of room is what the last look at each has found (:mod:`ckfs.fs.reaching`), so that nobody waits for a further store that
hangs; one that turns out to have no room for its owner after all is passed over.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ckfs.errors import Unreached
from ckfs.fs.core import Core
from ckfs.names import SetName, shown
from ckfs.store.spots import HOME, VolumeId

log = logging.getLogger(__name__)

T = TypeVar("T")

_TAKES_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Placing:
    core: Core

    def order(self) -> list[VolumeId]:
        """Where a new set may go, the best first; home is the last."""
        reserve = self.core.policy.quota.reserve
        fitting = [
            volume.id
            for volume in self.core.store.volumes.all()
            if volume.is_usable
            and volume.reached is not None
            and volume.reached.free_bytes > reserve.bytes_of(volume.reached.total_bytes)
        ]
        return [*fitting, HOME]

    def place(self, name: SetName, order: list[VolumeId], make: Callable[[VolumeId], T]) -> T:
        """What *make* makes of the set *name* in the first volume of *order* that takes it. Blocking."""
        for volume in order[:-1]:
            try:
                return make(volume)
            except Unreached as error:
                log.info("set %s goes to the next store: %s", shown(name), error)
            except OSError as error:
                if error.errno not in _TAKES_NO_MORE:
                    raise
                log.info("set %s goes to the next store: %s", shown(name), error.strerror)
        return make(order[-1])
