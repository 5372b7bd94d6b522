"""The benchmarks run: with tiny amounts, and without looking at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import places
from tests.bench.__main__ import main

TABLES = 6


@pytest.mark.root
@pytest.mark.usefixtures("root_and_fuse")
def test_bench_writes_tables(
    workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests that run beside this one are about what the kernel keeps: it must not drop that.
    monkeypatch.setattr(places, "DROP_CACHES", str(workdir / "drop_caches"))
    document = workdir / "performance.md"
    where = str(workdir)
    assert main(["--scale", "tiny", "--on", "disk", "--disk", where, "--write", str(document)]) == 0
    lines = document.read_text("utf-8").splitlines()
    assert sum(line.startswith("|---") for line in lines) == TABLES
    assert sum(line.startswith("| write, 1 MiB calls | time |") for line in lines) == 1
    assert sum(line.startswith("| write, 1 MiB calls |") for line in lines) == 4
    assert sum(line.startswith("| a few images | close |") for line in lines) == 1
    assert where not in document.read_text("utf-8")
    assert "\n".join(lines) in capfd.readouterr().out
