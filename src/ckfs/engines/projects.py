"""XFS and ext4: each realm is a project, whose number is its user's, and has the limits of that (quota tools: setquota, repquota).

A directory with the flag *project inherit* gives its project to all that is made in it. Renames and links between projects are
EXDEV. XFS answers ENOSPC to a project over its hard limit, ext4 EDQUOT. Root's own project would be 0, which is none: he has no limit.
"""

from __future__ import annotations

import fcntl
import struct
import time
from dataclasses import dataclass

from ckfs.engines import tools
from ckfs.engines.directories import KIB, Directories, kib, limit_of, number
from ckfs.errors import EngineFailed
from ckfs.names import ROOT_UID, Uid
from ckfs.policy.quota import DEFAULT_GRACE_S, UNLIMITED, Account, Amount, Limits, Over

_PACKAGE = "quota"
_GET, _SET = 0x801C581F, 0x401C5820
"""FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, with struct fsxattr: flags, extsize, nextents, project, cowextsize, padding."""
_FSXATTR = struct.Struct("=5I8x")
_INHERIT = 0x200
"""FS_XFLAG_PROJINHERIT"""
_HEADINGS = (
    "Project,BlockStatus,FileStatus,BlockUsed,BlockSoftLimit,BlockHardLimit,BlockGrace,"
    "FileUsed,FileSoftLimit,FileHardLimit,FileGrace"
)
_REPQUOTA = ("-P", "-n", "-p", "-v", "-O", "csv")


def parse(text: str, now_s: float) -> dict[Uid, Account]:
    """What ``repquota -P -n -p -v -O csv`` says of each project, by its number. EngineFailed for anything else. *now_s*, in seconds
    since the epoch, is when it said that: grace times are given as the moment of their end."""
    headings, *lines = [line for line in text.splitlines() if line.strip()] or [""]
    if headings != _HEADINGS:
        raise tools.unexpected("repquota", text)
    return {account.uid: account for account in (_account(line, now_s) for line in lines)}


def _account(line: str, now_s: float) -> Account:
    words = line.split(",")
    try:
        project = int(words[0].removeprefix("#"))
        used_kib, soft_kib, hard_kib, grace, files, soft, hard, files_grace = (
            int(word or 0) for word in words[3:]
        )
    except ValueError:
        raise tools.unexpected("repquota", line) from None
    return Account(
        Uid(project),
        Amount(used_kib * KIB, files),
        limits=Limits(limit_of(soft_kib, hard_kib, KIB), limit_of(soft, hard)),
        over_bytes=_over(grace, now_s),
        over_files=_over(files_grace, now_s),
    )


def _over(end_s: int, now_s: float) -> Over | None:
    """ckfs adds up how long a limit has been passed, the engine says when that must end."""
    return Over(DEFAULT_GRACE_S - max(0.0, end_s - now_s), int(now_s * 1e9)) if end_s else None


@dataclass(frozen=True, slots=True)
class Projects(Directories):
    name: str = "ext4"

    def start(self) -> None:
        tools.find("setquota", _PACKAGE)
        try:
            self._report()
        except EngineFailed as error:
            raise EngineFailed(
                f"{error} (project quotas must be on: mount {self.realms.mounted.point} with the option prjquota)"
            ) from None

    def mark(self, uid: Uid) -> None:
        if uid == ROOT_UID:
            return
        with self.realms.opened(uid) as fd:
            flags, extent, count, project, copying = _FSXATTR.unpack(
                fcntl.ioctl(fd, _GET, bytes(_FSXATTR.size))
            )
            if project == uid and flags & _INHERIT:
                return
            self.check_empty(uid, f"'chattr -R -p {uid} +P users/{uid}', unmounted")
            fcntl.ioctl(fd, _SET, _FSXATTR.pack(flags | _INHERIT, extent, count, uid, copying))

    def account(self, uid: Uid) -> Account:
        return Account(uid) if uid == ROOT_UID else self._report().get(uid, Account(uid))

    def accounts(self) -> list[Account]:
        known = self._report()
        return [known.get(uid, Account(uid)) for uid in self.realms.uids() if uid != ROOT_UID]

    def limit(self, uid: Uid, limits: Limits) -> None:
        if uid == ROOT_UID:
            if (limits.bytes, limits.files) != (UNLIMITED.bytes, UNLIMITED.files):
                raise EngineFailed("root has no project, and so no limit: keep the store as another account")
            return
        numbers = (
            kib(limits.bytes.soft),
            kib(limits.bytes.hard),
            number(limits.files.soft),
            number(limits.files.hard),
        )
        arguments = ["-P", str(uid), *map(str, numbers), self.realms.mounted.point]
        tools.run("setquota", _PACKAGE, arguments)

    def _report(self) -> dict[Uid, Account]:
        text = tools.run("repquota", _PACKAGE, [*_REPQUOTA, self.realms.mounted.point])
        return parse(text, time.time())


@dataclass(frozen=True, slots=True)
class Ext4(Projects):
    name: str = "ext4"


@dataclass(frozen=True, slots=True)
class Xfs(Projects):
    name: str = "xfs"
    says_full: bool = True
