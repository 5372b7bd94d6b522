"""A store that keeps all that ckfs needs: nothing is wrong with it, and nothing is left in it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loops import ext4
from tests.support.mounting import make_store, run_ckfs
from tests.support.selftests import Report, left_in, selftest

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

CHECKS = [
    "store.scratch",
    "store.left_overs",
    "peers.reached",
    "identity.owner",
    "identity.threads",
    "identity.closed",
    "identity.handle",
    "root.squash",
    "root.keeper",
    "root.chown",
    "attributes.user",
    "attributes.size",
    "attributes.create",
    "names.create",
    "names.mkdir",
    "names.symlink",
    "names.link",
    "names.rename",
    "rename.over",
    "rename.unlinked",
    "rename.noreplace",
    "rename.exchange",
    "fsync.file",
    "fsync.directory",
    "locks.flock",
    "coherence.new_name",
    "coherence.listing",
    "coherence.removed_name",
    "coherence.replaced_name",
    "coherence.size",
    "coherence.mode",
    "coherence.attribute",
    "coherence.data",
    "coherence.open_data",
    "coherence.locks",
    "quota.limit",
    "quota.enforced",
    "late.errors",
    "speed.write",
    "speed.read",
    "speed.names",
    "store.nothing_left",
]
"""In this order: programs read the document."""
NOT_TRIED = {"quota.limit", "quota.enforced", "late.errors"}


@pytest.fixture(scope="module")
def disk(module_workdir: Path) -> Iterator[Path]:
    """A file system of a host's own, below a directory that users cannot enter."""
    private = module_workdir / "private"
    private.mkdir(mode=0o700)
    with ext4(private, 512 << 20, 4096) as top:
        top.chmod(0o755)
        yield top


@pytest.fixture(scope="module")
def again(disk: Path) -> Iterator[Path]:
    """Another mount of it, which is as coherent as can be."""
    other = disk.parent / "again"
    other.mkdir()
    subprocess.run(["mount", "--bind", disk, other], check=True)
    yield other
    subprocess.run(["umount", other], check=True)


@pytest.fixture(scope="module")
def report(disk: Path, again: Path) -> Report:
    return selftest(disk, "--other", again)


def test_all_is_well_but_what_nobody_named(report: Report) -> None:
    assert report.of("fail") == {}
    assert report.of("warn") == {}
    assert report.of("not tried").keys() == NOT_TRIED
    assert report.status == 0


def test_nothing_is_left(report: Report, disk: Path) -> None:
    assert report.rows["store.nothing_left"].verdict == "ok"
    assert left_in(disk) == []


def test_names_are_fought_for_on_both_mounts(report: Report) -> None:
    for check in (
        "names.create",
        "names.mkdir",
        "names.symlink",
        "names.link",
        "names.rename",
        "attributes.create",
    ):
        assert report.rows[check].figures == {"contenders": 8, "mounts": 2, "names": 40}


def test_the_document_has_what_the_manual_says(report: Report, disk: Path, again: Path) -> None:
    document = report.document
    assert list(document) == [
        "version",
        "node",
        "store",
        "file_system",
        "peers",
        "verdict",
        "counts",
        "checks",
    ]
    assert (document["store"], document["peers"], document["verdict"]) == (str(disk), [str(again)], "ok")
    assert document["file_system"]["kind"] == "ext4"
    assert [row["check"] for row in document["checks"]] == CHECKS
    assert document["counts"] == {
        "ok": len(CHECKS) - len(NOT_TRIED),
        "warn": 0,
        "fail": 0,
        "not tried": len(NOT_TRIED),
    }
    assert all(list(row) == ["check", "verdict", "says", "mend", "figures"] for row in document["checks"])


def test_figures_have_their_units(report: Report) -> None:
    rows = report.rows
    assert rows["attributes.size"].figures["largest_bytes"] >= 2560
    assert rows["fsync.file"].figures["median_s"] > 0
    assert rows["speed.write"].figures["bytes_per_s"] > 0
    assert rows["speed.names"].figures["files_per_s"] > 0
    assert rows["coherence.size"].figures == {"delay_s": 0.0}


def test_the_table_has_a_line_for_each_check(disk: Path) -> None:
    done = run_ckfs("selftest", disk, timeout=600)
    first, *lines, last = done.stdout.splitlines()
    assert str(disk) in first
    assert [
        line.removeprefix("not tried").split()[0 if line.startswith("not tried") else 1] for line in lines
    ] == CHECKS
    assert last.startswith("ok: ")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_store_in_use_is_left_as_it_was(disk: Path) -> None:
    store = make_store(disk)
    before = sorted(path.relative_to(store) for path in store.rglob("*"))
    report = selftest(store)
    assert report.status == 0
    assert "a store" in report.rows["store.scratch"].says
    assert sorted(path.relative_to(store) for path in store.rglob("*")) == before
    assert json.loads(run_ckfs("fsck", store, "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give the store's directory"),
        (("/nowhere/at/all",), "No such file or directory"),
        (("/dev/null",), "Not a directory"),
        (("/", "--hosts=-oProxyCommand=x"), "not the name of a host"),
        (("/", "--timeout", "0"), "1 to 3600 seconds"),
        (("/", "--users", "root,daemon"), "two different users who are not root"),
        (("/", "--users", "nobody-of-that-name,daemon"), "no such user"),
        (("/", "--engine", "paper"), "invalid choice"),
        (("/", "--only", "luck"), "there are peers, identity,"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = run_ckfs("selftest", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
