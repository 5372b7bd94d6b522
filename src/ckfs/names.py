"""The words of ckfs as types, and how names of hostile users are shown.

Names are bytes everywhere: a user may call a file anything but ``/`` and NUL. They become text only here,
in :func:`shown`, for a log line, a message or a listing. So do times.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import NewType

Inode = NewType("Inode", int)
"""A number of ckfs's own, made once and kept with the file; the mount's root is 1."""
FileHandle = NewType("FileHandle", int)
Uid = NewType("Uid", int)
Gid = NewType("Gid", int)
SetName = NewType("SetName", bytes)
"""The name of a top-level entry of the mount."""
MountId = NewType("MountId", bytes)
"""What tells one run of a mount from all others: 16 hexadecimal digits, made at random when it registers."""
JobId = NewType("JobId", str)
"""A batch system's job identifier, for example ``12.server`` or ``12[3].server``."""

ROOT_INODE = Inode(1)
ROOT_UID = Uid(0)
NAME_MAX = 255


def shown(name: bytes | str) -> str:
    """*name* as one printable line: no control characters, no terminal escapes, no broken encodings.

    Bytes that are not printable UTF-8 become ``\\xNN``, and so does a backslash, so that two names never look alike.
    """
    text = (os.fsencode(name) if isinstance(name, str) else name).decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in text)


def iso_time(when_ns: int) -> str:
    """A time in ns since the epoch as ISO 8601 in UTC, to the second; ``-`` if no calendar has it."""
    try:
        return dt.datetime.fromtimestamp(when_ns // 1_000_000_000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OSError, OverflowError, ValueError):
        return "-"


def _escaped(character: str) -> str:
    raw = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in raw)
