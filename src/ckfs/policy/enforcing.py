"""Who sees to it that nobody has more than he may: the ``[quota]`` table of ``policy.toml``."""

from __future__ import annotations

import contextlib
import enum
import errno
import re
from dataclasses import dataclass
from urllib.parse import unquote

from ckfs.errors import UsageError
from ckfs.policy import sizes

EMBEDDED = "embedded"
"""The ledger is in a file of the host."""
AUTO = "auto"
ENGINES = ("btrfs", "xfs", "ext4", "lustre", "cephfs", "glusterfs", "statvfs")


class QuotaMode(enum.Enum):
    LEDGER = "ledger"
    """ckfs counts, and enforces exactly."""
    ENGINE = "engine"
    """The store's own file system does both."""
    NONE = "none"


class Away(enum.Enum):
    """What a write gets while the ledger cannot be reached and what was granted is used up."""

    EDQUOT = "EDQUOT"
    EIO = "EIO"

    @property
    def errno(self) -> int:
        return errno.EDQUOT if self is Away.EDQUOT else errno.EIO


@dataclass(frozen=True, slots=True)
class Reserve:
    """The last of the store, for root and for images that are being written already: an amount, or a part (of 1) of it."""

    bytes: int = 0
    part: float = 0.0

    def bytes_of(self, total_bytes: int) -> int:
        """Of a store of *total_bytes*; never more than these."""
        return min(total_bytes, self.bytes + int(self.part * total_bytes))


DEFAULT_RESERVE = Reserve(part=0.05)


@dataclass(frozen=True, slots=True)
class QuotaPolicy:
    """*ledger* is EMBEDDED or how PostgreSQL is reached, as libpq takes it; *engine* is AUTO or one of ENGINES."""

    mode: QuotaMode = QuotaMode.LEDGER
    ledger: str = EMBEDDED
    away: Away = Away.EIO
    engine: str = AUTO
    reserve: Reserve = DEFAULT_RESERVE

    @property
    def place(self) -> tuple[QuotaMode, str, str]:
        """What a mount cannot change while it runs."""
        return self.mode, self.ledger, self.engine


_URI = re.compile(r"postgres(?:ql)?://", re.IGNORECASE)
_KEYWORD = re.compile(r"\s*[a-z_]+\s*=", re.IGNORECASE)
_PASSWORD = re.compile(r"(?:^|[\s?&'])(?:ssl)?password\s*=", re.IGNORECASE)
_URI_WITH_PASSWORD = re.compile(r"postgres(?:ql)?://[^@/:]*:[^@/]*@", re.IGNORECASE)


def is_connection(text: str) -> bool:
    """Whether *text* has one of the two forms in which libpq takes how a database is reached."""
    return bool(_URI.match(text) or _KEYWORD.match(text))


def has_password(connection: str) -> bool:
    """Whether there is a password in it, which every host that mounts the store could read."""
    plain = unquote(connection)
    return bool(_PASSWORD.search(plain) or _URI_WITH_PASSWORD.match(connection))


_PART = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)
_LARGEST_PART = 0.9


def reserve_of(text: str) -> Reserve | None:
    """``5%`` or ``20G``; None if it is neither, or more than nine tenths."""
    match = _PART.fullmatch(text)
    if match is None:
        with contextlib.suppress(UsageError):
            return Reserve(bytes=sizes.size_of(text))
        return None
    part = float(match[1]) / 100
    return Reserve(part=part) if part <= _LARGEST_PART else None
