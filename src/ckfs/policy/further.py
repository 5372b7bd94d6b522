"""Further stores: what the policy says of file systems that only some hosts reach, in which files of sets may lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate

from ckfs.errors import StoreUnusable
from ckfs.names import shown

HOME_NAME = "home"
"""What the store that is mounted is called where further ones are."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_KEYS = ("name", "path", "id", "hosts")


@dataclass(frozen=True, slots=True)
class FurtherStore:
    """*path* is where hosts have it that do not say otherwise, *id* as ``ckfs init`` printed, *hosts* patterns of the names of nodes
    that reach it."""

    name: str
    path: str
    id: str
    hosts: tuple[str, ...] = ("*",)

    def is_reached_by(self, node: str) -> bool:
        """Whether the node of that name is to look for it."""
        return any(re.fullmatch(translate(pattern), node) for pattern in self.hosts)


def parse(value: object) -> tuple[FurtherStore, ...]:
    """The value of ``stores`` in a policy, in its order. Raises StoreUnusable, naming the key and the rule."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise StoreUnusable("policy.toml: stores must be tables, each written [[stores]]")
    stores = tuple(_store(table) for table in value)
    for what, said in (("name", [store.name for store in stores]), ("id", [store.id for store in stores])):
        twice = next((one for one in said if said.count(one) > 1), None)
        if twice is not None:
            raise StoreUnusable(f"policy.toml: two stores have the {what} {shown(twice)}")
    return stores


def _store(table: Mapping[str, object]) -> FurtherStore:
    for key in table:
        if key not in _KEYS:
            raise StoreUnusable(
                f"policy.toml: unknown key stores.{shown(key)}; known here: {', '.join(_KEYS)}"
            )
    name, path, identifier = (_said(table, key) for key in ("name", "path", "id"))
    if not _NAME.fullmatch(name) or name == HOME_NAME:
        raise StoreUnusable(
            f'policy.toml: stores.name must be up to 32 letters, digits, dots, dashes or underscores, and not "{HOME_NAME}"'
        )
    if not path.startswith("/"):
        raise StoreUnusable("policy.toml: stores.path must be a path from the root directory")
    if not _ID.fullmatch(identifier):
        raise StoreUnusable("policy.toml: stores.id must be the id that 'ckfs init --for' printed")
    return FurtherStore(name, path, identifier, _hosts(table.get("hosts", ["*"])))


def _said(table: Mapping[str, object], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise StoreUnusable(f"policy.toml: each of the stores needs {key}, a non-empty string")
    return value


def _hosts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise StoreUnusable("policy.toml: stores.hosts must be a list of non-empty strings")
    return tuple(value)
