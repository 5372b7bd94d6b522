"""Quotas as root sets them and asks for them, by commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.mounting import run_ckfs


def set_quota(where: Path, uid: int, *limits: str) -> None:
    done = run_ckfs("quota", "set", str(uid), *limits, "--store", where)
    assert done.returncode == 0, done.stderr


def set_default(where: Path, *limits: str) -> None:
    done = run_ckfs("quota", "default", *limits, "--store", where)
    assert done.returncode == 0, done.stderr


def standing(where: Path, uid: int) -> dict[str, Any]:
    """How *uid* stands, as ``ckfs quota --json`` says."""
    done = run_ckfs("quota", str(uid), "--json", "--store", where)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["owners"]
    assert row["uid"] == uid
    return dict(row)


def count_anew(store: Path) -> None:
    """Let the ledger say what is in the store, whatever it said before."""
    done = run_ckfs("quota", "check", "--repair", "--store", store)
    assert done.returncode == 0, done.stdout + done.stderr
