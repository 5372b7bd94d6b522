"""The benchmarks run: with tiny amounts, and without looking at any time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.demo.checkpointers import ByCriu
from ckfs.demo.criu import Criu
from ckfs.demo.nodes import DemoFailed, Say
from tests.bench import compare, criu, places
from tests.bench.__main__ import main
from tests.bench.compare import Measured
from tests.bench.criu import BATCH, DUMP, OTHER, PLAIN, RESTORE, Dumped
from tests.bench.markdown import merged
from tests.bench.places import BINDFS, BY_DAEMON, CKFS
from tests.bench.places import PLAIN as PLAIN_PLACE
from tests.bench.targets import Reached, targets
from tests.bench.workloads import AT_ONCE, CYCLE, FILES_S, MIB, WRITE, Step, write

TABLES = 8


@pytest.fixture(autouse=True)
def disturbs_nobody(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run beside this one are about what the kernel keeps: it must not drop that. And no daemon is waited for."""
    monkeypatch.setattr(places, "DROP_CACHES", str(workdir / "drop_caches"))
    for module, name in ((compare, "LOOK_S"), (compare, "DIGESTS_BEGIN_S"), (criu, "DIGESTS_BEGIN_S")):
        monkeypatch.setattr(module, name, 0.01)


def bench(workdir: Path, *arguments: str) -> list[str]:
    """The lines of the document that is written. Nothing else is left."""
    before, document = set(os.listdir(workdir)), workdir / "performance.md"
    where = str(workdir)
    options = ["--scale", "tiny", "--on", "disk", "--disk", where, "--write", str(document)]
    assert main([*options, *arguments]) == 0
    text = document.read_text("utf-8")
    assert where not in text
    assert set(os.listdir(workdir)) - before <= {document.name, "drop_caches"}
    return text.splitlines()


@pytest.mark.root
@pytest.mark.usefixtures("root_and_fuse")
def test_bench_writes_tables(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = bench(workdir, "--only", "speed", "sets", "protection", "ledger")
    assert sum(line.startswith("|---") for line in lines) == TABLES
    assert sum(line.startswith("| write, 1 MiB calls | time |") for line in lines) == 1
    assert sum(line.startswith("| write, 1 MiB calls |") for line in lines) == 6
    assert sum(line.startswith("| a few images | close |") for line in lines) == 1
    assert "\n".join(lines).strip() in capfd.readouterr().out


@pytest.mark.root
@pytest.mark.usefixtures("root_and_fuse")
def test_bench_dumps_and_restores_by_criu(workdir: Path) -> None:
    lines = bench(workdir, "--only", "criu")
    rows = [line for line in lines if line.startswith("| dump and restore |")]
    assert len(rows) == 1 or any(line.startswith("Not measured: none works here") for line in lines)


@pytest.mark.root
@pytest.mark.usefixtures("root_and_fuse")
def test_bench_says_why_criu_is_not_measured(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(say: Say, complaints: list[str]) -> Iterator[Criu]:
        complaints.append("there is none")
        yield from ()

    monkeypatch.setattr(criu, "candidates", none)
    assert "Not measured: none works here (there is none)" in bench(workdir, "--only", "criu")


@pytest.mark.root
@pytest.mark.usefixtures("root_and_fuse")
def test_a_bench_that_fails_leaves_nothing(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DemoFailed("on purpose")

    monkeypatch.setattr(ByCriu, "restore", fail)
    monkeypatch.setattr(compare, "write_out", fail)
    for part in ("criu", "speed"):
        with contextlib.suppress(DemoFailed):  # of CRIU it is what a CRIU that does not work says
            main(["--scale", "tiny", "--on", "disk", "--disk", str(workdir), "--only", part])
        assert set(os.listdir(workdir)) <= {"drop_caches"}
        assert not [
            line for line in Path("/proc/self/mounts").read_text().splitlines() if str(workdir) in line
        ]


# The table of targets


def test_a_target_is_reached_or_missed() -> None:
    stream = Measured(Step(WRITE, write, (), 100.0))
    stream.seconds = {
        PLAIN_PLACE: [1.0, 1.0, 2.0],
        BINDFS: [4.0, 4.0, 4.0],
        CKFS: [1.0, 1.2, 2.0],
        BY_DAEMON: [4.0] * 3,
    }
    at_once = Measured(Step(AT_ONCE, write, (), 100.0), {PLAIN_PLACE: [0.8], CKFS: [1.0]})
    cycle = Measured(Step(CYCLE, write, (), 100.0, FILES_S), {PLAIN_PLACE: [0.1], CKFS: [1.0]})
    rows = cells(targets([Reached("tmpfs", [stream, at_once, cycle])]))
    assert rows[WRITE] == ["≥ 0.95", "**1.00**", "≥ 2", "1.00, missed"]
    assert rows[AT_ONCE] == ["≥ 0.9", "0.80, missed", "≥ 2", "-"]
    assert rows[CYCLE] == ["as close as it gets", "0.10", "≥ 1", "-"]


def test_targets_of_the_daemon_are_of_its_costliest_step_and_of_its_highest_memory() -> None:
    gib = (1 << 30) / 1e6
    steps = [
        Measured(
            Step(title, write, (), gib), {}, {CKFS: [cpu_s]}, {CKFS: [1.0]}, {CKFS: 50 * MIB, BY_DAEMON: peak}
        )
        for title, cpu_s, peak in (
            (WRITE, 0.06, 100 * MIB),
            (AT_ONCE, 0.01, 200 * MIB),
            ("no target", 1.0, MIB),
        )
    ]
    rows = cells(targets([Reached("tmpfs", steps)]))
    assert rows["daemon's CPU seconds for each GiB, at most"] == ["< 0.050", "0.060, missed", "-", "-"]
    assert rows["the same afterwards (digests)"] == ["-", "1.000", "-", "-"]
    assert rows["daemon's resident memory, at most"] == [
        "< 150 MB",
        "**52 MB**",
        "< 150 MB",
        "210 MB, missed",
    ]


def test_the_target_of_criu_is_of_dump_and_restore_together() -> None:
    took = {(DUMP, PLAIN): [2.0], (RESTORE, PLAIN): [1.0], (DUMP, OTHER): [1.0], (RESTORE, OTHER): [2.0]}
    took |= {(DUMP, BATCH): [4.0], (RESTORE, BATCH): [2.0]}
    rows = cells(targets([Reached("tmpfs", dumped=Dumped(MIB, seconds=took)), Reached("disk")]))
    assert rows[f"CRIU, dump and restore, {OTHER}"] == ["≥ 0.9", "**1.00**", "-", "-", "-", "-"]
    assert rows[f"CRIU, dump and restore, {BATCH}"] == ["≥ 0.9", "0.50, missed", "-", "-", "-", "-"]


def test_a_document_keeps_what_was_not_measured() -> None:
    old = "# Old\n\n## One\n\n1\n\n## Two\n\n2\n\n### Of two\n\n## By hand\n\nh\n"
    new = "# New\n\n## Zero\n\n0\n\n## Two\n\n22\n\n## Three\n\n3\n"
    assert (
        merged(old, new)
        == "# New\n\n## Zero\n\n0\n\n## One\n\n1\n\n## Two\n\n22\n\n## Three\n\n3\n\n## By hand\n\nh\n"
    )
    assert merged(old, "## By hand\n\nnew\n") == old.replace("\nh\n", "\nnew\n")
    assert merged("", new) == new


def cells(text: str) -> dict[str, list[str]]:
    """The cells of each row, by the first."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}
