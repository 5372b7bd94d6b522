"""This mount among the others: its registration in the store, renewed for as long as it lives.

Others settle what a mount was writing once they have not heard of it for the policy's fence time. So whoever writes makes sure
first that this cannot have happened: if the last beat that the store took is older than half of that time, nothing is written
until another one got through. A mount that finds itself fenced registers anew; what it had open for writing before gets EIO.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import trio

from ckfs.errors import Fenced, FsError, UsageError
from ckfs.fs.listening import described, namesake
from ckfs.fs.liveness import Judge, registration_here
from ckfs.names import MountId, shown
from ckfs.policy.settings import Policy
from ckfs.store.gate import Gate
from ckfs.store.mounts import Mounts, Registration

log = logging.getLogger(__name__)

_BEATS_PER_LEASE = 4


def _since_boot_s() -> float:
    """Goes on while the host is suspended, unlike time.monotonic."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Membership:
    """Made, and so registered, before the loop runs; everything else belongs to the loop's thread."""

    def __init__(self, mounts: Mounts, node: bytes, clock: Callable[[], float] = _since_boot_s) -> None:
        self._mounts = mounts
        self._node = node
        self._clock = clock
        self._renewing = trio.Lock()
        self._own = registration_here(node)
        self._registered = False
        self._heard_s = -math.inf
        try:
            mounts.register(self._own)
        except OSError as error:  # a store that is full is still good for reading and clearing up
            log.info("this mount cannot register, and writes nothing until it can: %s", error.strerror)
        else:
            self._registered, self._heard_s = True, clock()

    def claim_name(self, lease_s: float) -> None:
        """Have the node's name, or share it with another mount of this host. Blocking, for up to half a lease; UsageError if a
        mount of another host has it."""
        if not self._registered:
            return
        try:
            other = namesake(self._mounts, Judge(self._mounts), self._own, lease_s, log.info)
        except OSError as error:
            log.info("whether another host has the name of this node is not known: %s", error.strerror)
            return
        if other is not None:
            raise UsageError(
                f"{described(other)} is on another host, and alive: give each host a name of its own (mount option node=)"
            )

    @property
    def id(self) -> MountId:
        return self._own.id

    @property
    def heard_ago_s(self) -> float:
        """How long ago the store took this mount's last sign of life, in seconds."""
        return self._clock() - self._heard_s

    async def run(self, gate: Gate, policy: Callable[[], Policy]) -> None:
        """Renew the registration; for the life of the mount."""
        failing = False
        while True:
            await trio.sleep(policy().lease_s / _BEATS_PER_LEASE)
            try:
                await self.renew(gate)
                failing = False
            except Fenced:
                failing = False
            except (OSError, FsError) as error:
                if not failing:
                    log.info("other mounts do not hear of this one now: %s", error)
                failing = True

    def is_sure(self, policy: Policy, held: MountId | None) -> bool:
        """Whether :meth:`assure` has nothing to do."""
        return held == self.id and self.heard_ago_s <= policy.fence_s / 2

    async def assure(self, gate: Gate, policy: Policy, held: MountId | None) -> None:
        """Before something is written that is marked as *held*: raises Fenced if others may have settled it."""
        if self.heard_ago_s > policy.fence_s / 2:
            await self.renew(gate)
        if held is not None and held != self.id:
            raise Fenced("the image was settled by others while this mount was not heard of")

    async def renew(self, gate: Gate) -> None:
        """Let the others hear of this mount now. Fenced if they gave it up; it has registered anew then."""
        async with self._renewing:
            began_s, own = self._clock(), self._own
            if not self._registered:
                await gate.call(lambda: self._mounts.register(own))
                self._registered, self._heard_s = True, began_s
                return
            try:
                self._own = await gate.call(lambda: self._mounts.renew(own))
            except Fenced:
                anew = registration_here(self._node)
                await gate.call(lambda: self._register_instead_of(own, anew))
                self._own, self._heard_s = anew, began_s
                log.error(  # noqa: TRY400 - not a bug
                    "this mount was not heard of for too long: what it was writing has been settled by others;"
                    " writers that had images open get EIO (mount %s goes on as %s)",
                    shown(own.id),
                    shown(anew.id),
                )
                raise
            self._heard_s = began_s

    def _register_instead_of(self, own: Registration, anew: Registration) -> None:
        self._mounts.register(anew)
        if self._mounts.holder_of(own.node) == own.id:
            self._mounts.take_node(own.node, anew.id, own.id)

    def leave(self, *, finished: bool) -> None:
        """Blocking; the last that a mount does. *finished*: no image is marked as being written by it."""
        if self._registered:
            self._mounts.leave(self.id, finished=finished)
            self._mounts.give_node_back(self._own.node, self.id)
