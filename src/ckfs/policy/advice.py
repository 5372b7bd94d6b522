"""The options, and the steps, that mend what a check finds, by the kind of file system.

Sources: nfs(5); GlusterFS administrator guide and ``mount.glusterfs(8)``, measured for ckfs on 10.3; ``beegfs-client.conf`` and
``beegfs-meta.conf`` of BeeGFS 7; the Lustre operations manual; ``mount.ceph(8)``; mount.cifs(8).
"""

from __future__ import annotations

import enum


class Family(enum.Enum):
    LOCAL = "a file system of this host alone"
    NFS = "NFS"
    GLUSTER = "GlusterFS"
    CEPH = "CephFS"
    LUSTRE = "Lustre"
    BEEGFS = "BeeGFS"
    CIFS = "SMB"
    FUSE = "a FUSE file system"
    OTHER = "a file system that ckfs does not know"


_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "zfs", "f2fs", "bcachefs", "overlay"}
_SHARED = {
    "nfs": Family.NFS,
    "nfs4": Family.NFS,
    "fuse.glusterfs": Family.GLUSTER,
    "ceph": Family.CEPH,
    "fuse.ceph": Family.CEPH,
    "fuse.ceph-fuse": Family.CEPH,
    "lustre": Family.LUSTRE,
    "beegfs": Family.BEEGFS,
    "cifs": Family.CIFS,
    "smb3": Family.CIFS,
}


def family_of(kind: str) -> Family:
    """By the kernel's name of the file system, as mount(8) shows it."""
    if kind in _LOCAL:
        return Family.LOCAL
    if kind in _SHARED:
        return _SHARED[kind]
    return Family.FUSE if kind.startswith("fuse") else Family.OTHER


class Topic(enum.Enum):
    IDENTITY = enum.auto()
    ROOT = enum.auto()
    ATTRIBUTES = enum.auto()
    """Extended ones."""
    EXCLUSIVE = enum.auto()
    LINKS = enum.auto()
    LOCKS = enum.auto()
    SYNC = enum.auto()
    SEEN_NAMES = enum.auto()
    """A change of names, sizes or modes that other mounts see late."""
    SEEN_DATA = enum.auto()
    LATE = enum.auto()


_NFS_SEEN = "mount NFS with -o noac,lookupcache=none on every host"
_GLUSTER_CLIENT = (
    "mount with -o direct-io-mode=enable,attribute-timeout=0,entry-timeout=0,gid-timeout=0 on every host"
)
_GLUSTER_VOLUME = (
    "say 'gluster volume set VOLUME performance.X off' for X = quick-read, io-cache, stat-prefetch, read-ahead,"
    " write-behind, open-behind and readdir-ahead"
)
_COHERENT_BY_ITSELF = "it is coherent by itself: look whether this path is exported again (NFS, SMB), or a mount is out of touch"
_ANY = {
    Topic.IDENTITY: "the server must take callers' uids as they are: no squashing of all users, no mapping of ids",
    Topic.ROOT: "on the storage server let an account of its own own the store's directory (chown ckfs: DIR; chmod 0755 DIR)",
    Topic.ATTRIBUTES: "take a file system that keeps extended attributes of users (user.*)",
    Topic.EXCLUSIVE: "use this file system for one host alone, or another one",
    Topic.LINKS: "take a file system that has hard links across directories",
    Topic.LOCKS: "turn on locks (flock) for this mount",
    Topic.SYNC: "ask the file system's maker: what was synced must be there after a crash",
    Topic.SEEN_NAMES: "switch its client's caches of names and attributes off, on every host",
    Topic.SEEN_DATA: "switch its client's cache of data off, or let it ask the server at each open, on every host",
    Topic.LATE: "let the client write through: then write() itself says that a limit is met",
}
_OF_FAMILY = {
    (
        Family.NFS,
        Topic.IDENTITY,
    ): "export without all_squash, and with one set of uids: no idmapping (sec=sys)",
    (Family.NFS, Topic.ATTRIBUTES): "mount with -o vers=4.2; client and server need Linux 5.9 or later",
    (Family.NFS, Topic.LOCKS): "mount without nolock and local_lock",
    (Family.NFS, Topic.SEEN_NAMES): _NFS_SEEN,
    (Family.NFS, Topic.SEEN_DATA): _NFS_SEEN,
    (Family.NFS, Topic.LATE): "mount with -o sync, or trust to ckfs, which asks every so often",
    (Family.GLUSTER, Topic.SEEN_NAMES): f"{_GLUSTER_CLIENT}; {_GLUSTER_VOLUME}",
    (Family.GLUSTER, Topic.SEEN_DATA): f"{_GLUSTER_VOLUME}; {_GLUSTER_CLIENT}",
    (Family.GLUSTER, Topic.LATE): "say 'gluster volume set VOLUME performance.write-behind off'",
    (Family.CEPH, Topic.SEEN_NAMES): _COHERENT_BY_ITSELF,
    (Family.CEPH, Topic.SEEN_DATA): f"mount without fsc and nocto; else {_COHERENT_BY_ITSELF}",
    (Family.LUSTRE, Topic.IDENTITY): "give users that the metadata server knows: --users NAME,NAME",
    (Family.LUSTRE, Topic.LOCKS): "mount with -o flock on every host",
    (Family.LUSTRE, Topic.ATTRIBUTES): "mount with -o user_xattr",
    (Family.LUSTRE, Topic.SEEN_NAMES): _COHERENT_BY_ITSELF,
    (Family.LUSTRE, Topic.SEEN_DATA): _COHERENT_BY_ITSELF,
    (Family.BEEGFS, Topic.ATTRIBUTES): "set sysXAttrsEnabled = true in beegfs-client.conf on every host, and"
    " storeClientXAttrs = true in beegfs-meta.conf",
    (Family.BEEGFS, Topic.LOCKS): "set tuneUseGlobalFileLocks = true in beegfs-client.conf on every host",
    (
        Family.BEEGFS,
        Topic.LINKS,
    ): "BeeGFS makes hard links within a directory alone, which is not enough for ckfs: take another"
    " file system",
    (
        Family.BEEGFS,
        Topic.SEEN_NAMES,
    ): "set tuneDirSubentryCacheValidityMS, tuneFileSubentryCacheValidityMS and"
    " tuneENOENTCacheValidityMS to 0 in beegfs-client.conf on every host",
    (Family.BEEGFS, Topic.SEEN_DATA): "set tuneFileCacheType = none in beegfs-client.conf on every host",
    (
        Family.BEEGFS,
        Topic.LATE,
    ): "set sysSyncOnClose and sysSessionCheckOnClose to true in beegfs-client.conf on every host",
    (Family.CIFS, Topic.SEEN_NAMES): "mount with -o cache=none,actimeo=0",
    (Family.CIFS, Topic.SEEN_DATA): "mount with -o cache=none,actimeo=0",
    (
        Family.FUSE,
        Topic.SEEN_NAMES,
    ): "mount with entry, negative and attribute time-outs of 0 (of libfuse: -o entry_timeout=0,"
    "negative_timeout=0,attr_timeout=0), on every host",
    (
        Family.FUSE,
        Topic.SEEN_DATA,
    ): "mount without its data cache (of libfuse: -o direct_io, or without kernel_cache), on every host",
}


def advice(kind: str, topic: Topic) -> str:
    return _OF_FAMILY.get((family_of(kind), topic), _ANY[topic])
