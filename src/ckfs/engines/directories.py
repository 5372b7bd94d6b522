"""What is the same for engines that limit plain directories."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckfs.engines.engine import REALM_MODE, Realms
from ckfs.errors import EngineFailed
from ckfs.names import Uid
from ckfs.policy.quota import Account, Limit, Limits

KIB = 1024


@dataclass(frozen=True, slots=True)
class Directories:
    """The part of a Driver that such an engine need not change."""

    realms: Realms
    tried: bool = False
    says_full: bool = False
    refuses_notes: bool = False

    def start(self) -> None:
        """Nothing has to be there."""

    def make(self, uid: Uid) -> None:
        os.mkdir(str(uid), REALM_MODE, dir_fd=self.realms.fd)

    def remove(self, uid: Uid) -> None:
        os.rmdir(str(uid), dir_fd=self.realms.fd)

    def settle(self) -> None:
        """It counts at once."""

    def account(self, uid: Uid) -> Account:
        raise NotImplementedError  # each engine has its own

    def accounts(self) -> list[Account]:
        return [self.account(uid) for uid in self.realms.uids()]

    def check(self, limits: Limits) -> None:
        """It has all kinds of them."""

    def limit(self, uid: Uid, limits: Limits) -> None:
        raise NotImplementedError  # each engine has its own

    def set_bytes(self, uid: Uid, limit_bytes: int) -> None:
        self.limit(uid, Limits(Limit(hard=limit_bytes)))

    def check_empty(self, uid: Uid, way_out: str) -> None:
        """Before an empty directory is made one that is counted: of what is in it already the engine would not know."""
        with self.realms.opened(uid) as fd:
            if os.listdir(fd):
                raise EngineFailed(f"users/{uid} holds what is not counted for its user: {way_out}")


def kib(limit_bytes: int | None) -> int:
    """A limit in whole KiB, as tools take it, for which 0 is none; never more than the limit."""
    return 0 if limit_bytes is None else max(1, limit_bytes // KIB)


def number(limit: int | None) -> int:
    """A limit of a number of files, of which 0 is none."""
    return 0 if limit is None else max(1, limit)


def limit_of(soft: int, hard: int, unit: int = 1) -> Limit:
    """What tools print, for which 0 is none."""
    return Limit(soft * unit or None, hard * unit or None)
