"""What callers see of a file: owner, group and mode as POSIX has them, whatever the store's own file says."""

from __future__ import annotations

import stat

from ckfs.model import Caller, Record, State
from ckfs.names import ROOT_UID, Gid, Inode, Uid

_SET_IDS = stat.S_ISUID | stat.S_ISGID
_PERMISSIONS = 0o7777


def of_new(ino: Inode, caller: Caller, parent: Record | None, mode: int, rdev: int, node: bytes) -> Record:
    """The record of something that *caller* makes in *parent*. *mode* carries the type; the umask is applied already.

    In a set-group-id directory the group is the directory's, and a new directory passes the bit on.
    """
    gid = caller.gid
    if parent is not None and parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    state = State.WRITING if stat.S_ISREG(mode) else State.COMPLETE
    return Record(ino, caller.uid, gid, mode, rdev, state, node)


def with_mode(record: Record, mode: int) -> Record:
    """chmod; the kernel has checked who may, and cleared set-group-id where the caller is not in the group."""
    return record.with_(mode=stat.S_IFMT(record.mode) | mode & _PERMISSIONS)


def with_owner(record: Record, uid: Uid | None, gid: Gid | None) -> Record:
    """chown; None leaves one as it is. Set-id bits go, as on every Linux file system, root's calls included."""
    bare = _without_set_ids(record, drop_group_mark=False)
    return bare.with_(uid=record.uid if uid is None else uid, gid=record.gid if gid is None else gid)


def after_write(record: Record, uid: Uid, gid: Gid) -> Record:
    """*record* as a write or truncate by *uid*, *gid* leaves it: set-id bits go unless root writes.

    Set-group-id without group execution marks mandatory locking rather than a privilege; only somebody of the file's
    group keeps that (Linux 6.2 and later: setattr_should_drop_sgid).
    """
    return record if uid == ROOT_UID else _without_set_ids(record, drop_group_mark=gid != record.gid)


def _without_set_ids(record: Record, *, drop_group_mark: bool) -> Record:
    if record.is_directory or not record.mode & _SET_IDS:
        return record
    mode = record.mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or drop_group_mark:
        mode &= ~stat.S_ISGID
    return record.with_(mode=mode)
