"""Where a selftest works, and as whom."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from ckfs.model import Owner
from ckfs.policy.advice import Topic, advice
from ckfs.policy.enforcing import QuotaPolicy
from ckfs.selftest.peers import Peer
from ckfs.store.identity import acting_as


@dataclass(frozen=True, slots=True)
class Place:
    """*room* is a directory in the scratch directory, whose name nobody else can know: checks run in it as their working directory,
    so that users who may not go to the store find what is meant for them by relative paths. *keeper* is who keeps the store: root, or
    where root is *squashed* the owner of the store's directory. *users* are two who are neither. *quota* is the policy's, if the
    store has been made and leaves quotas to an engine, or what the command was told to try."""

    store: str
    scratch: str
    room: str
    keeper: Owner
    squashed: bool
    root_is: int
    """Whom what root makes belongs to; -1 if root can make nothing."""
    users: tuple[Owner, Owner]
    kind: str
    timeout_s: float
    peers: tuple[Peer, ...] = ()
    quota: QuotaPolicy | None = None
    limited: Owner | None = None
    is_store: bool = False

    def new_room(self, mode: int = 0o700) -> str:
        """The path, from :attr:`room`, of a new directory of the keeper's, of just this *mode*."""
        path = secrets.token_hex(8)
        with acting_as(self.keeper):
            os.mkdir(path)
            os.chmod(path, mode)
        return path

    def mend(self, topic: Topic) -> str:
        """What helps on this kind of file system."""
        return advice(self.kind, topic)
