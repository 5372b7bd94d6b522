"""Who may open a partial image once, since he said that he knows what it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from ckfs.errors import Busy
from ckfs.names import Inode, Uid
from ckfs.owners.processes import Process, process_of

_HOLDS_S = 5.0
_MOST = 256
_MOST_PER_USER = 32


@dataclass(frozen=True, slots=True)
class _Permit:
    uid: Uid
    until: float


@dataclass(slots=True)
class Permits:
    """Belongs to the event loop's thread. A permit is one process's, by its id and start, for one file; it says nothing of
    permissions, which the kernel checks as for any open."""

    _permits: dict[tuple[Process, Inode], _Permit] = field(default_factory=dict)

    def give(self, process: Process, ino: Inode, uid: Uid) -> None:
        """Busy if there are too many already."""
        now = trio.current_time()
        self._permits = {key: permit for key, permit in self._permits.items() if permit.until > now}
        his = sum(permit.uid == uid for permit in self._permits.values())
        if len(self._permits) >= _MOST or his >= _MOST_PER_USER:
            raise Busy("too many are about to read partial images: try again")
        self._permits[process, ino] = _Permit(uid, now + _HOLDS_S)

    def take(self, tid: int, ino: Inode) -> bool:
        """Whether the thread *tid*, which opens *ino*, has a permit, which is used up by that."""
        if not self._permits:
            return False
        process = process_of(tid)
        permit = self._permits.pop((process, ino), None) if process is not None else None
        return permit is not None and permit.until > trio.current_time()
