"""Any other file system with quotas of its own: it is trusted to enforce them, and what it says of a realm by statvfs(2) is shown.

Whoever sets limits up does that with the file system's own tools. Where a realm looks as large as the whole store, there is none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckfs.engines.directories import Directories
from ckfs.errors import Unsupported
from ckfs.names import Uid
from ckfs.policy.quota import UNLIMITED, Account, Amount, Limit, Limits


def account_of(uid: Uid, realm: os.statvfs_result, store: os.statvfs_result) -> Account:
    """What *realm* says, if it is not what all of the *store* says."""
    if (realm.f_blocks, realm.f_files) == (store.f_blocks, store.f_files):
        return Account(uid)
    used = Amount((realm.f_blocks - realm.f_bfree) * realm.f_frsize, realm.f_files - realm.f_ffree)
    of_bytes = Limit(hard=realm.f_blocks * realm.f_frsize) if realm.f_blocks != store.f_blocks else Limit()
    of_files = Limit(hard=realm.f_files) if realm.f_files != store.f_files else Limit()
    return Account(uid, used, limits=Limits(of_bytes, of_files, None))


@dataclass(frozen=True, slots=True)
class Trusted(Directories):
    name: str = "statvfs"
    tried: bool = True

    def mark(self, uid: Uid) -> None:
        """That is the admin's."""

    def account(self, uid: Uid) -> Account:
        with self.realms.opened(uid) as fd:
            return account_of(uid, os.fstatvfs(fd), os.fstatvfs(self.realms.fd))

    def check(self, limits: Limits) -> None:
        if (limits.bytes, limits.files) != (UNLIMITED.bytes, UNLIMITED.files):
            raise Unsupported(
                "limits are not set by ckfs here (quota.engine is statvfs): set them with the file system's own tool"
            )

    def limit(self, uid: Uid, limits: Limits) -> None:
        """Nothing: :meth:`check` lets no limit pass."""
