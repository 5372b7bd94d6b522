"""Who keeps the ledger of a store's quotas: ``ledger.toml``, a small file right in the store.

Each of two ledgers of one store would grant everybody all that he may have. So the first mount that counts says here where it
does, and whoever counts elsewhere is refused (:mod:`ckfs.fs.ledgers`). *id* is that of the ledger itself, which says the same
id once everything in the store has been counted in it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
import tomllib
from dataclasses import dataclass

from ckfs.errors import StoreUnusable
from ckfs.model import Owner
from ckfs.names import shown
from ckfs.store import texts
from ckfs.store.identity import acting_as
from ckfs.store.texts import Root

BINDING_FILE = b"ledger.toml"
_FORMAT = 1
_HEAD = """\
# Where the ledger of this store's quotas is. Written by ckfs; docs/quotas.md says what it means, and how it is changed.
"""
_DAMAGED = (
    "is damaged: remove it when the store is mounted nowhere, and the next mount counts everything anew"
)


class Kept(enum.Enum):
    """Where a ledger is."""

    EMBEDDED = "embedded"
    """In a file of one host."""
    POSTGRESQL = "postgresql"


@dataclass(frozen=True, slots=True)
class Binding:
    """*host* tells that host from all others, *node* is its name for people; both are empty unless the ledger is embedded."""

    kept: Kept
    id: str
    host: str = ""
    node: str = ""


def encode(binding: Binding) -> str:
    lines = [f"format = {_FORMAT}", f'kept = "{binding.kept.value}"', f"id = {json.dumps(binding.id)}"]
    if binding.kept is Kept.EMBEDDED:
        lines += [f"host = {json.dumps(binding.host)}", f"node = {json.dumps(binding.node)}"]
    return _HEAD + "\n".join(lines) + "\n"


def decode(text: str, path: str) -> Binding:
    """What *text* says of the store at *path*; StoreUnusable if it cannot be understood."""
    try:
        table = tomllib.loads(text)
        if isinstance(table["format"], int) and table["format"] > _FORMAT:
            raise StoreUnusable(f"{shown(path)}: its ledger.toml is of a later version of ckfs: update ckfs")
        kept = Kept(table["kept"])
        words = [table["id"], *([table["host"], table["node"]] if kept is Kept.EMBEDDED else [])]
    except (tomllib.TOMLDecodeError, RecursionError, KeyError, ValueError):
        raise StoreUnusable(f"{shown(path)}: its ledger.toml {_DAMAGED}") from None
    if not all(isinstance(word, str) and word for word in words):
        raise StoreUnusable(f"{shown(path)}: its ledger.toml {_DAMAGED}")
    return Binding(kept, *words)


def read(where: str | Root) -> Binding | None:
    """Who keeps the ledger of the store there; None if nobody does yet. Raises StoreUnusable."""
    with texts.unusable(where), texts.root_of(where) as root:
        return _read(root)


def bind(where: str | Root, service: Owner, binding: Binding, instead_of: Binding | None) -> None:
    """Let *binding* hold from now on for the store there, *instead_of* what was read before. StoreUnusable if another host
    has been quicker; of several exactly one succeeds."""
    with texts.unusable(where), texts.root_of(where) as root, acting_as(service):
        if instead_of is not None:
            _take_away(root, instead_of)
        try:
            texts.write_new(root.fd, BINDING_FILE, encode(binding))
        except FileExistsError:
            raise _changed(root) from None


def unbind(where: str | Root, service: Owner, binding: Binding) -> None:
    """Nobody keeps the ledger any more that *binding* says. StoreUnusable if that is not what holds now."""
    with texts.unusable(where), texts.root_of(where) as root, acting_as(service):
        _take_away(root, binding)


def _take_away(root: Root, expected: Binding) -> None:
    """In one step, then a look whether it was the one that was meant: if not, it is put back."""
    aside = texts.unfinished(BINDING_FILE) + secrets.token_hex(8).encode()
    try:
        os.rename(BINDING_FILE, aside, src_dir_fd=root.fd, dst_dir_fd=root.fd)
    except FileNotFoundError:
        raise _changed(root) from None
    try:
        if decode(texts.read_text(root.fd, aside, root.path), root.path) != expected:
            with contextlib.suppress(FileExistsError):
                os.link(aside, BINDING_FILE, src_dir_fd=root.fd, dst_dir_fd=root.fd, follow_symlinks=False)
            raise _changed(root)
    finally:
        os.unlink(aside, dir_fd=root.fd)


def _changed(root: Root) -> StoreUnusable:
    return StoreUnusable(
        f"{shown(root.path)}: another host has just taken over, or given up, the ledger of its quotas: try again"
    )


def _read(root: Root) -> Binding | None:
    try:
        return decode(texts.read_text(root.fd, BINDING_FILE, root.path), root.path)
    except FileNotFoundError:
        return None
