"""What an admin has said of limits, kept with what it is said of: an attribute of a realm, or of ``users/`` for the default.

The engine knows what it enforces, but not whether that was said of this user or of all.
"""

from __future__ import annotations

import errno
import os
from dataclasses import fields

from ckfs.errors import EngineFailed
from ckfs.policy.quota import Said, Setting, Settings

ATTRIBUTE = "user.ckfs.limits"
_KEYS = tuple(field.name for field in fields(Settings))


def encode(settings: Settings) -> bytes:
    """``hard_bytes=500 grace_s=none``; what follows the default is left out."""
    said = {key: getattr(settings, key) for key in _KEYS}
    return " ".join(
        f"{key}={value.value if isinstance(value, Said) else value}"
        for key, value in said.items()
        if value is not Said.DEFAULT
    ).encode()


def decode(raw: bytes) -> Settings:
    """ValueError if *raw* is not what :func:`encode` makes."""
    values: dict[str, Setting] = {}
    for word in raw.decode("ascii").split():
        key, _, value = word.partition("=")
        if key not in _KEYS or key in values:
            raise ValueError(key)
        values[key] = Said.NONE if value == Said.NONE.value else _number(value)
    return Settings(**values)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(text)
    return int(text)


def read(fd: int) -> Settings:
    """What was said of the open directory *fd*."""
    try:
        return decode(os.getxattr(fd, ATTRIBUTE))
    except ValueError:
        raise EngineFailed(f"the attribute {ATTRIBUTE} is damaged: say the limits again") from None
    except OSError as error:
        if error.errno == errno.ENODATA:
            return Settings()
        raise EngineFailed(f"the attribute {ATTRIBUTE} cannot be read: {error.strerror}") from None


def write(fd: int, settings: Settings) -> None:
    try:
        os.setxattr(fd, ATTRIBUTE, encode(settings))
    except OSError as error:
        raise EngineFailed(f"the attribute {ATTRIBUTE} cannot be set: {error.strerror}") from None
