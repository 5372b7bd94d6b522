"""``ckfs selftest`` as a site runs it, and what it says."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.mounting import run_ckfs

LIMIT_S = 600.0
"""Seconds after which a selftest itself counts as hanging."""


@dataclass(frozen=True)
class Row:
    verdict: str
    says: str
    mend: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Report:
    status: int
    document: dict[str, Any]

    @property
    def rows(self) -> dict[str, Row]:
        return {
            row["check"]: Row(row["verdict"], row["says"], row["mend"], row["figures"])
            for row in self.document["checks"]
        }

    def of(self, verdict: str) -> dict[str, str]:
        """What those say that have this verdict."""
        return {check: row.says for check, row in self.rows.items() if row.verdict == verdict}


def selftest(store: Path, *options: str | Path) -> Report:
    """With ``--json``. Nothing but its document is on standard output, and nothing on standard error."""
    done = run_ckfs("selftest", store, "--json", *options, timeout=LIMIT_S)
    assert done.stderr == ""
    return Report(done.returncode, json.loads(done.stdout))


def left_in(directory: Path) -> list[str]:
    """What a selftest has left there."""
    return [name for name in os.listdir(directory) if name.startswith(".ckfs-selftest-")]
