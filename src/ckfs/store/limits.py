"""``limits.toml``: a copy, in the store, of what was said about how much everybody may have.

The ledger decides. A ledger that was lost is made anew from the store, which says who has how much, and from this, which says
who may have how much.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields

from ckfs.errors import StoreUnusable
from ckfs.model import Owner
from ckfs.names import Uid, shown
from ckfs.policy.quota import Said, Setting, Settings
from ckfs.store import texts
from ckfs.store.identity import acting_as
from ckfs.store.texts import Root

LIMITS_FILE = b"limits.toml"
_FORMAT = 1
_HEAD = """\
# A copy of the limits that 'ckfs quota' has set, from which they are taken if the ledger should be lost. It is written
# anew at every change: use 'ckfs quota' instead of changing it. Bytes, numbers of files, seconds.
"""
_OTHERS, _OWNERS = "default", "owners"
_KEYS = tuple(field.name for field in fields(Settings))
_UID = re.compile(r"0|[1-9][0-9]{0,9}")
_LARGEST_UID = (1 << 32) - 2
_LARGEST = 1 << 62
_DAMAGED = "remove it, and set the limits again with 'ckfs quota'"

Limits = Mapping[Uid | None, Settings]
"""Of owners, and of all others (None)."""


def encode(limits: Limits) -> str:
    """Who has nothing of his own is left out."""
    parts = [f"{_HEAD}format = {_FORMAT}"]
    for uid in sorted(limits, key=lambda uid: -1 if uid is None else uid):
        if lines := _lines(limits[uid]):
            head = f"[{_OTHERS}]" if uid is None else f"[{_OWNERS}.{uid}]"
            parts.append("\n".join([head, *lines]))
    return "\n\n".join(parts) + "\n"


def _lines(settings: Settings) -> list[str]:
    lines = []
    for key in _KEYS:
        value: Setting = getattr(settings, key)
        if value is not Said.DEFAULT:
            lines.append(f'{key} = "{value.value}"' if isinstance(value, Said) else f"{key} = {value}")
    return lines


def decode(text: str, path: str) -> dict[Uid | None, Settings]:
    """StoreUnusable, naming the rule, for what nobody can have meant."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(path, f"is not valid TOML ({shown(str(error))})") from None
    version = table.pop("format", None)
    if isinstance(version, int) and version > _FORMAT:
        raise StoreUnusable(f"{shown(path)}: its limits.toml is of a later version of ckfs: update ckfs")
    if version != _FORMAT or not table.keys() <= {_OTHERS, _OWNERS}:
        raise _wrong(path, f"has other keys than format, {_OTHERS} and {_OWNERS}")
    limits: dict[Uid | None, Settings] = {}
    if _OTHERS in table:
        limits[None] = _settings(table[_OTHERS], path)
    owners = table.get(_OWNERS, {})
    if not isinstance(owners, dict):
        raise _wrong(path, f"has something else than a table for {_OWNERS}")
    for text_uid, said in owners.items():
        if not _UID.fullmatch(text_uid) or int(text_uid) > _LARGEST_UID:
            raise _wrong(path, f"names {shown(text_uid)}, which is no uid")
        limits[Uid(int(text_uid))] = _settings(said, path)
    return limits


def _settings(said: object, path: str) -> Settings:
    if not isinstance(said, dict) or not said.keys() <= set(_KEYS):
        raise _wrong(path, f"says something else of an owner than {', '.join(_KEYS)}")
    return Settings(**{key: _setting(value, path) for key, value in said.items()})


def _setting(value: object, path: str) -> Setting:
    if value == Said.NONE.value:
        return Said.NONE
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise _wrong(path, 'has a limit that is neither a whole number from 0 nor "none"')
    return value


def _wrong(path: str, why: str) -> StoreUnusable:
    return StoreUnusable(f"{shown(path)}: its limits.toml {why}: {_DAMAGED}")


def read(where: str | Root) -> dict[Uid | None, Settings]:
    """Of the store there; nothing if there is no copy. Raises StoreUnusable."""
    with texts.unusable(where), texts.root_of(where) as root:
        try:
            return decode(texts.read_text(root.fd, LIMITS_FILE, root.path), root.path)
        except FileNotFoundError:
            return {}


def write(where: str | Root, service: Owner, limits: Limits) -> None:
    """The whole copy anew, unless it says that already. Raises OSError as the store does."""
    text = encode(limits)
    with texts.root_of(where) as root:
        try:
            if texts.read_text(root.fd, LIMITS_FILE, root.path) == text:
                return
        except StoreUnusable:
            pass
        except FileNotFoundError:
            if not any(map(_lines, limits.values())):
                return
        with acting_as(service):
            texts.write_text(root.fd, LIMITS_FILE, text)
