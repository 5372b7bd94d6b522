"""docs/faults.md promises a test for each row: they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "faults.md").read_text("utf-8")
ROWS = [
    line
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| fault ") and not line.startswith("|--")
]
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", TABLE)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_a_test_that_the_table_names_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_row_names_a_test_in_its_last_column(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5
    assert re.fullmatch(r"`tests/\S+\.py::\w+`", cells[-1])
