"""CephFS: attributes of the realm say its limits, and the cluster counts what is below it (Ceph documentation, "CephFS Quotas").

Clients enforce them, and notice within seconds: a writer may pass the limit by what he writes in that time. There are no soft limits.
Renames out of a directory with a quota are EXDEV.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from ckfs.engines.directories import Directories
from ckfs.errors import EngineFailed, Unsupported
from ckfs.names import Uid
from ckfs.policy.quota import Account, Amount, Limit, Limits

_MOST_BYTES, _MOST_FILES = "ceph.quota.max_bytes", "ceph.quota.max_files"
_BYTES, _FILES, _DIRECTORIES = "ceph.dir.rbytes", "ceph.dir.rfiles", "ceph.dir.rsubdirs"


def parse(name: str, raw: bytes) -> int:
    """The number in one of these attributes; EngineFailed for anything else."""
    text = raw.decode("ascii", "replace").strip("\0 \n")
    if not text.isascii() or not text.isdigit():
        raise EngineFailed(f"the attribute {name} says what ckfs does not understand: {text[:40]!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class CephFs(Directories):
    name: str = "cephfs"

    def start(self) -> None:
        try:
            os.getxattr(self.realms.fd, _BYTES)
        except OSError as error:
            raise EngineFailed(
                f"this is no CephFS: it has no attribute {_BYTES} ({error.strerror})"
            ) from None

    def mark(self, uid: Uid) -> None:
        """It counts what is below each directory by itself."""

    def account(self, uid: Uid) -> Account:
        with self.realms.opened(uid) as fd:
            held, files, below = (_read(fd, name) for name in (_BYTES, _FILES, _DIRECTORIES))
            most_bytes, most_files = _read(fd, _MOST_BYTES), _read(fd, _MOST_FILES)
        limits = Limits(Limit(hard=most_bytes or None), Limit(hard=most_files or None), None)
        return Account(uid, Amount(held, files + below), limits=limits)

    def check(self, limits: Limits) -> None:
        if limits.bytes.soft is not None or limits.files.soft is not None:
            raise Unsupported("CephFS has no soft limits: give a hard one")

    def limit(self, uid: Uid, limits: Limits) -> None:
        with self.realms.opened(uid) as fd:
            try:
                for name, limit in ((_MOST_BYTES, limits.bytes.hard), (_MOST_FILES, limits.files.hard)):
                    os.setxattr(fd, name, b"%d" % (0 if limit is None else max(1, limit)))
            except OSError as error:
                raise EngineFailed(
                    f"the quota of users/{uid} cannot be set ({error.strerror}): the client needs the capability 'p' on the path"
                ) from None


def _read(fd: int, name: str) -> int:
    """0 where nothing was ever said."""
    try:
        return parse(name, os.getxattr(fd, name))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return 0
        raise EngineFailed(f"the attribute {name} cannot be read: {error.strerror}") from None
