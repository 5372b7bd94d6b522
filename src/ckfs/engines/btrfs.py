"""btrfs: each realm is a subvolume, and its qgroup has the limit (btrfs-qgroup(8)).

What counts is the *referenced* bytes: all that the subvolume reaches, also what it shares with another by a reflink. btrfs
has no limit for the number of files, and no soft ones. At its limit it refuses a write with EDQUOT, and whatever else needs
room for metadata: new names, renames, attributes. Unlink works.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from dataclasses import dataclass

from ckfs.engines import tools
from ckfs.engines.engine import Realms, path_of
from ckfs.errors import EngineFailed, Unsupported
from ckfs.names import Uid
from ckfs.policy.quota import Account, Amount, Limit, Limits

log = logging.getLogger(__name__)

_TOOL, _PACKAGE = "btrfs", "btrfs-progs"
_INO_LOOKUP = 0xD0009412
"""BTRFS_IOC_INO_LOOKUP, with a struct of this many bytes that begins with treeid and objectid:"""
_INO_LOOKUP_BYTES = 4096
_QGROUP_LIMIT = 0x8030942B
"""BTRFS_IOC_QGROUP_LIMIT, with struct btrfs_ioctl_qgroup_limit_args: qgroupid (0: the subvolume's own), flags, max_rfer and three that
are not meant."""
_LIMIT = struct.Struct("=6Q")
_MAX_REFERENCED = 1
_TOP_OF_SUBVOLUME = 256
"""The inode number of each subvolume's top, and of nothing else."""
_NOT_ENABLED = "not enabled"
_FILES_UNKNOWN = 0
_COLUMNS = ("qgroupid", "referenced", "max referenced")


@dataclass(frozen=True, slots=True)
class Held:
    """Of one qgroup, in bytes; *limit_bytes* None is no limit."""

    referenced_bytes: int
    limit_bytes: int | None

    def account(self, uid: Uid) -> Account:
        used = Amount(self.referenced_bytes, _FILES_UNKNOWN)
        return Account(uid, used, limits=Limits(Limit(hard=self.limit_bytes), grace_s=None))


def parse(text: str) -> dict[int, Held]:
    """What ``btrfs qgroup show -re --raw`` says of each subvolume, by its number. EngineFailed for anything else.

    A table whose columns are as wide as they need be, under headings of words that one space parts (btrfs-progs 4 to 6). Later
    versions say ``Path`` at the end.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or set(lines[1]) - {"-", " "}:
        raise tools.unexpected("btrfs qgroup show", text)
    headings = _headings(lines[0])
    if any(column not in headings for column in _COLUMNS):
        raise tools.unexpected("btrfs qgroup show", text)
    places = [headings.index(column) for column in _COLUMNS]
    held: dict[int, Held] = {}
    for line in lines[2:]:
        words = line.split()
        try:
            group, referenced, limit = (words[place] for place in places)
            level, number = map(int, group.split("/"))
            if level == 0:
                held[number] = Held(int(referenced), None if limit == "none" else int(limit))
        except (IndexError, ValueError):
            raise tools.unexpected("btrfs qgroup show", line) from None
    return held


def _headings(line: str) -> list[str]:
    """Older versions say ``rfer`` and ``max_rfer``."""
    words = line.lower().replace("max_rfer", "max~referenced").replace("max_excl", "max~exclusive")
    words = words.replace("max referenced", "max~referenced").replace("max exclusive", "max~exclusive")
    return ["referenced" if word == "rfer" else word.replace("~", " ") for word in words.split()]


@dataclass(frozen=True, slots=True)
class Btrfs:
    realms: Realms
    name: str = "btrfs"
    tried: bool = True
    says_full: bool = False
    refuses_notes: bool = True

    def start(self) -> None:
        """Switch quotas on if they are not."""
        try:
            self._show(self.realms.top)
        except EngineFailed as error:
            if _NOT_ENABLED not in str(error):
                raise
            self._run("quota", "enable", self.realms.top)
            log.info("quotas of the btrfs at %s were switched on", self.realms.mounted.point)

    def make(self, uid: Uid) -> None:
        try:
            self._run("subvolume", "create", f"{self.realms.top}/{uid}")
        except EngineFailed:
            if uid in self.realms.uids():
                raise FileExistsError from None
            raise

    def mark(self, uid: Uid) -> None:
        with self.realms.opened(uid) as fd:
            is_subvolume = os.fstat(fd).st_ino == _TOP_OF_SUBVOLUME
        if not is_subvolume:
            raise EngineFailed(
                f"users/{uid} is no subvolume, so that btrfs cannot limit it: move it away, unmounted,"
                f" 'btrfs subvolume create users/{uid}', and copy it back with cp -a --reflink"
            )

    def remove(self, uid: Uid) -> None:
        """Kernels before 6.11 leave the qgroup of a subvolume that is gone."""
        number = self._subvolume(uid)
        os.rmdir(str(uid), dir_fd=self.realms.fd)
        self.settle()
        with contextlib.suppress(EngineFailed):
            self._run("qgroup", "destroy", f"0/{number}", self.realms.top)

    def settle(self) -> None:
        self._run("filesystem", "sync", self.realms.top)

    def account(self, uid: Uid) -> Account:
        with self.realms.opened(uid) as fd:
            shown = self._show("-F", path_of(fd), keeps=fd)
        if len(shown) != 1:
            raise EngineFailed(f"users/{uid} has no qgroup of its own: see 'btrfs quota rescan'")
        (held,) = shown.values()
        return held.account(uid)

    def accounts(self) -> list[Account]:
        shown, uids = self._show(self.realms.top), self.realms.uids()
        numbers = {uid: self._subvolume(uid) for uid in uids}
        return [shown[number].account(uid) for uid, number in numbers.items() if number in shown]

    def _subvolume(self, uid: Uid) -> int | None:
        """The number of the subvolume that the realm is; None if it has just gone, or is none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self.realms.opened(uid) as fd:
            if os.fstat(fd).st_ino == _TOP_OF_SUBVOLUME:
                asked = bytearray(_INO_LOOKUP_BYTES)
                asked[8:16] = _TOP_OF_SUBVOLUME.to_bytes(8, "little")
                fcntl.ioctl(fd, _INO_LOOKUP, asked)
                return int.from_bytes(asked[:8], "little")
        return None

    def check(self, limits: Limits) -> None:
        if limits.bytes.soft is not None:
            raise Unsupported("btrfs has no soft limits: give a hard one")
        if limits.files != Limit():
            raise Unsupported("btrfs does not limit the number of files: give a limit of bytes")

    def limit(self, uid: Uid, limits: Limits) -> None:
        hard = limits.bytes.hard
        with self.realms.opened(uid) as fd:
            self._run("qgroup", "limit", "none" if hard is None else str(hard), path_of(fd), keeps=fd)

    def set_bytes(self, uid: Uid, limit_bytes: int) -> None:
        """By the system call that the tool makes: it is needed in the middle of others."""
        with self.realms.opened(uid) as fd:
            try:
                fcntl.ioctl(fd, _QGROUP_LIMIT, _LIMIT.pack(0, _MAX_REFERENCED, limit_bytes, 0, 0, 0))
            except OSError as error:
                raise EngineFailed(f"the limit of users/{uid} cannot be set: {error.strerror}") from None

    def _show(self, *arguments: str, keeps: int | None = None) -> dict[int, Held]:
        return parse(self._run("qgroup", "show", "-re", "--raw", *arguments, keeps=keeps))

    def _run(self, *arguments: str, keeps: int | None = None) -> str:
        return tools.run(
            _TOOL, _PACKAGE, list(arguments), keeps=(self.realms.fd if keeps is None else keeps,)
        )
