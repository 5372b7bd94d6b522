"""GlusterFS: directory quotas of a volume, by ``gluster volume quota`` (Gluster administrator guide, "Managing Directory Quota").

The tool works on a host of the trusted pool alone. Enforcement lags by the time-outs of the volume; with
``features.hard-timeout 0`` and ``features.soft-timeout 0`` by some hundred KiB.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from ckfs.engines import tools
from ckfs.engines.directories import Directories
from ckfs.errors import EngineFailed, Unsupported
from ckfs.names import Uid, shown
from ckfs.policy.quota import Account, Amount, Limit, Limits

_TOOL, _PACKAGE = "gluster", "glusterfs-server"
_LARGEST_BYTES = 16 << 20
_UNLIMITED = "N/A"
_NONE_YET = re.compile(r"No (inode )?quota configured on volume ")
"""How it says that no directory has a limit: as a failure."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Of one directory: *used* in bytes, or files and directories. *hard* None is no limit."""

    used: int
    hard: int | None


def parse(text: str, *used: str) -> dict[str, Listed]:
    """What ``gluster volume quota VOLUME list --xml`` (or ``list-objects``) says of each directory, by its path in the volume;
    *used* are the elements that add up to what is used. EngineFailed for anything else, and with the tool's own words if it failed.
    """
    if len(text) > _LARGEST_BYTES or "<!" in text:  # no document types, no entities
        raise tools.unexpected("gluster volume quota", text)
    try:
        root = ET.fromstring(text)  # noqa: S314 - of root's own tool, and without what could grow
    except ET.ParseError:
        raise tools.unexpected("gluster volume quota", text) from None
    if root.findtext("opRet") != "0":
        reason = root.findtext("opErrstr") or "no reason given"
        if _NONE_YET.match(reason):
            return {}
        raise EngineFailed(f"'gluster volume quota' failed: {shown(reason.strip())}")
    try:
        return {_text(limit, "path"): _listed(limit, used) for limit in root.iter("limit")}
    except ValueError:
        raise tools.unexpected("gluster volume quota", text) from None


def _listed(limit: ET.Element, used: tuple[str, ...]) -> Listed:
    hard = _text(limit, "hard_limit")
    return Listed(sum(int(_text(limit, name)) for name in used), None if hard == _UNLIMITED else int(hard))


def _text(limit: ET.Element, name: str) -> str:
    text = limit.findtext(name)
    if not text:
        raise ValueError(name)
    return text.strip()


def volume_of(source: str) -> tuple[str, str]:
    """The volume that was mounted, and which directory of it: ``host:/volume/below`` or ``host:volume``."""
    volume, _, below = source.rpartition(":")[2].strip("/").partition("/")
    if not volume:
        raise EngineFailed(f"no volume of GlusterFS is mounted there, but {source}")
    return volume, f"/{below}" if below else ""


@dataclass(frozen=True, slots=True)
class GlusterFs(Directories):
    name: str = "glusterfs"
    tried: bool = True

    def start(self) -> None:
        tools.find(_TOOL, _PACKAGE)
        self._listed("list", "used_space")

    def mark(self, uid: Uid) -> None:
        """It counts below each directory that has a limit."""

    def account(self, uid: Uid) -> Account:
        (account,) = self._accounts([uid])
        return account

    def accounts(self) -> list[Account]:
        return self._accounts(self.realms.uids())

    def _accounts(self, uids: list[Uid]) -> list[Account]:
        held = self._listed("list", "used_space")
        files = self._listed("list-objects", "file_count", "dir_count")
        return [_account(uid, held.get(self._path(uid)), files.get(self._path(uid))) for uid in uids]

    def check(self, limits: Limits) -> None:
        if limits.bytes.soft is not None or limits.files.soft is not None:
            raise Unsupported("GlusterFS has no soft limits that end: give a hard one")

    def limit(self, uid: Uid, limits: Limits) -> None:
        path, files = self._path(uid), limits.files.hard
        if limits.bytes.hard is not None:
            self._quota("limit-usage", path, str(max(1, limits.bytes.hard)))
        elif path in self._listed("list", "used_space"):
            self._quota("remove", path)
        if files is not None:
            self._quota("limit-objects", path, str(max(1, files)))
        elif path in self._listed("list-objects", "file_count", "dir_count"):
            self._quota("remove-objects", path)

    def _path(self, uid: Uid) -> str:
        """In the volume."""
        _, below = volume_of(self.realms.mounted.source)
        users = os.readlink(self.realms.top).removeprefix(self.realms.mounted.point.rstrip("/"))
        return f"{below}{users}/{uid}"

    def _listed(self, command: str, *used: str) -> dict[str, Listed]:
        return parse(self._quota(command, "--xml"), *used)

    def _quota(self, command: str, *arguments: str) -> str:
        volume, _ = volume_of(self.realms.mounted.source)
        return tools.run(_TOOL, _PACKAGE, ["--mode=script", "volume", "quota", volume, command, *arguments])


def _account(uid: Uid, held: Listed | None, files: Listed | None) -> Account:
    """Of a directory without a limit it does not say what it holds."""
    used = Amount(0 if held is None else held.used, 0 if files is None else files.used)
    of_bytes = Limit(hard=None if held is None else held.hard)
    return Account(
        uid, used, limits=Limits(of_bytes, Limit(hard=None if files is None else files.hard), None)
    )
