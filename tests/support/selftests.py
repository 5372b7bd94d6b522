"""``ckfs selftest`` as a site runs it, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.mounting import command, environment

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


def selftest(store: Path, *options: str | Path, **variables: str) -> Report:
    """With ``--json``, and *variables* in its environment. Nothing but its document is on standard output, and nothing on standard
    error."""
    done = subprocess.run(
        command("selftest", store, "--json", *options),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stderr == ""
    return Report(done.returncode, json.loads(done.stdout))


def left_in(directory: Path) -> list[str]:
    """What a selftest has left there."""
    return [name for name in os.listdir(directory) if name.startswith(".ckfs-selftest-")]
