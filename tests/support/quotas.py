"""Quotas as root sets them and asks for them, by commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.commands import ckfs_as_root


def set_quota(where: Path, uid: int, *limits: str) -> None:
    ckfs_as_root("quota", "set", str(uid), *limits, "--store", where)


def set_default(where: Path, *limits: str) -> None:
    ckfs_as_root("quota", "default", *limits, "--store", where)


def standing(where: Path, uid: int) -> dict[str, Any]:
    """How *uid* stands, as ``ckfs quota --json`` says."""
    (row,) = json.loads(ckfs_as_root("quota", str(uid), "--json", "--store", where))["owners"]
    assert row["uid"] == uid
    return dict(row)


def count_anew(store: Path) -> None:
    """Let the ledger say what is in the store, whatever it said before."""
    ckfs_as_root("quota", "check", "--repair", "--store", store)
