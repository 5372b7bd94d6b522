"""Further stores for tests: made by the functions behind ``ckfs init --for``, and named in the policy of their home."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store import layout


@dataclass(frozen=True)
class Further:
    """A further store, at *path*."""

    path: Path
    id: str

    def kept(self, uid: int) -> set[str]:
        """The places of that user's sets in it."""
        users = self.path / "users" / str(uid)
        return {place.name for place in users.iterdir()} if users.exists() else set()

    def trashed(self, uid: int) -> list[Path]:
        trash = self.path / "trash" / str(uid)
        return sorted(trash.iterdir()) if trash.exists() else []


def make_further(home: Path, path: Path) -> Further:
    kept = os.stat(home)
    keeper = Owner(Uid(kept.st_uid), Gid(kept.st_gid))
    is_new, identifier = layout.initialise_further(str(path), layout.id_of(str(home)), keeper)
    assert is_new
    return Further(path, identifier)


def name_stores(home: Path, *lines: str) -> None:
    """Let the policy of *home* name the further stores of these tables, and no others."""
    policy = home / "policy.toml"
    text, _, _ = policy.read_text().partition("# named by a test\n")
    policy.write_text(text + "# named by a test\n" + "\n".join(lines))


def table(name: str, further: Further, *, hosts: tuple[str, ...] = ("*",), path: Path | None = None) -> str:
    said = {
        "name": name,
        "path": str(path or further.path),
        "id": further.id,
        "hosts": list(hosts),
    }
    return "[[stores]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items())
