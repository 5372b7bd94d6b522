"""The engine of a store: the one that its policy names, or the one that its file system is."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable

from ckfs.engines.btrfs import Btrfs
from ckfs.engines.cephfs import CephFs
from ckfs.engines.driven import Driven
from ckfs.engines.engine import Driver, Engine, MountedOn, Realms
from ckfs.engines.glusterfs import GlusterFs
from ckfs.engines.lustre import Lustre
from ckfs.engines.projects import Ext4, Xfs
from ckfs.engines.trusted import Trusted
from ckfs.errors import EngineFailed
from ckfs.policy.enforcing import AUTO, QuotaPolicy

DRIVERS: dict[str, Callable[[Realms], Driver]] = {
    "btrfs": Btrfs,
    "xfs": Xfs,
    "ext4": Ext4,
    "lustre": Lustre,
    "cephfs": CephFs,
    "glusterfs": GlusterFs,
    "statvfs": Trusted,
}
_OF_KIND = {
    "btrfs": "btrfs",
    "xfs": "xfs",
    "ext4": "ext4",
    "lustre": "lustre",
    "ceph": "cephfs",
    "fuse.ceph": "cephfs",
    "fuse.ceph-fuse": "cephfs",
    "fuse.glusterfs": "glusterfs",
}
"""By the kernel's names of file systems, as mount(8) shows them."""


def detect(kind: str) -> str:
    """The engine of a file system of *kind*; for those that none is made for, the one that trusts them."""
    return _OF_KIND.get(kind, "statvfs")


def open_engine(users_fd: int, quota: QuotaPolicy) -> Engine:
    """The engine of the store whose ``users/`` is open as *users_fd* (a descriptor to list it by, which the engine owns from
    now on). Raises EngineFailed if it cannot do its work, in one line that says what to do."""
    try:
        realms = Realms(users_fd, mounted_on(users_fd))
        name = detect(realms.mounted.kind) if quota.engine == AUTO else quota.engine
        engine = Driven(DRIVERS[name](realms), realms)
        engine.start()
    except BaseException:
        os.close(users_fd)
        raise
    return engine


def mounted_on(fd: int) -> MountedOn:
    """Where the file system of *fd* is mounted, as the kernel's list says."""
    number = _mount_number(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            mount, _parent, _device, _root, point, options, *_ = fields.split(" ")
            if mount == number:
                kind, source, of_all, *_ = rest.rstrip("\n").split(" ")
                return MountedOn(kind, _unescaped(source), _unescaped(point), f"{options},{of_all}")
    raise EngineFailed(
        "the kernel's list of mounts does not have the store's file system: is this a container?"
    )


def _mount_number(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as fields, contextlib.suppress(StopIteration):
        return next(line.split()[1] for line in fields if line.startswith("mnt_id:"))
    raise EngineFailed("the kernel does not say where the store's file system is mounted")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
