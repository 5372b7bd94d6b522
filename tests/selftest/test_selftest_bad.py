"""Each kind of store that must not be trusted, or not like this, is found out, and the way out is named."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faultfs import FaultStore, fault_store
from tests.support.loops import tmpfs
from tests.support.loosefs import loose_store
from tests.support.selftests import left_in, selftest

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

LIMIT_S = "12"
KEEPER = pwd.getpwnam("daemon")
MIB = 1 << 20


@pytest.fixture
def faulty(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        yield running


@pytest.fixture
def squashed(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir, squash=True) as running:
        yield running


def test_what_a_plain_fuse_store_lacks_is_a_warning(faulty: FaultStore) -> None:
    """It knows no flags of rename: ckfs does without, and says how."""
    report = selftest(faulty.path)
    assert report.of("fail") == {}
    assert report.of("warn").keys() == {"rename.noreplace", "rename.exchange"}
    assert "ckfs makes a link" in report.rows["rename.noreplace"].says
    assert report.status == 0
    assert left_in(faulty.backing) == []


# Root


def test_squashed_root_needs_the_account_that_owns_the_directory(squashed: FaultStore) -> None:
    os.chown(squashed.backing, KEEPER.pw_uid, KEEPER.pw_gid)
    report = selftest(squashed.path, "--only", "identity,root,attributes,rename")
    assert report.of("fail") == {}
    rows = report.rows
    assert "root is squashed" in rows["root.squash"].says
    assert "--service-user daemon" in rows["root.keeper"].says
    assert "are copied" in rows["root.chown"].says
    assert left_in(squashed.backing) == []


def test_squashed_root_in_a_directory_that_all_may_write(squashed: FaultStore) -> None:
    """Then root can make something, but it is not his."""
    os.chown(squashed.backing, KEEPER.pw_uid, KEEPER.pw_gid)
    squashed.backing.chmod(0o1777)
    report = selftest(squashed.path, "--only", "identity,root,attributes,rename")
    assert report.of("fail") == {}
    assert "uid 65534" in report.rows["root.squash"].says
    assert left_in(squashed.backing) == []


def test_squashed_root_and_a_directory_of_roots_is_refused(squashed: FaultStore) -> None:
    report = selftest(squashed.path)
    row = report.rows["store.scratch"]
    assert row.verdict == "fail"
    assert "chown" in row.mend
    assert report.of("ok") == {}
    assert report.status == 1


# Attributes


def test_no_attributes(workdir: Path) -> None:
    top = workdir / "ramfs"
    top.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", top], check=True)
    try:
        report = selftest(top, "--only", "attributes")
    finally:
        subprocess.run(["umount", top], check=True)
    assert report.of("fail").keys() == {"attributes.user"}
    assert "user.*" in report.rows["attributes.user"].mend
    assert report.of("not tried").keys() >= {"attributes.size", "attributes.create"}
    assert report.status == 1


def test_attributes_that_are_too_small(workdir: Path) -> None:
    with loose_store(workdir, "--value=1000") as (store,):
        row = selftest(store.path, "--only", "attributes").rows["attributes.size"]
    assert (row.verdict, row.figures) == ("fail", {"largest_bytes": 1000})


# Names


def test_a_store_on_which_several_get_a_name(workdir: Path) -> None:
    with loose_store(workdir, "--shared", clients=2) as (one, other):
        for store in (one, other):  # so that both have looked before either has made it
            store.slow("create", 0.1, path="wanted")
        row = selftest(one.path, "--other", other.path, "--only", "names.create").rows["names.create"]
    assert row.verdict == "fail"
    assert "given to several of 8 processes" in row.says


# What other mounts see


def test_clients_that_keep_what_they_know(workdir: Path) -> None:
    with loose_store(workdir, "--kept=3600", clients=2) as (one, other):
        report = selftest(one.path, "--other", other.path, "--only", "coherence", "--timeout", LIMIT_S)
        assert left_in(one.backing) == []
    late = report.of("fail")
    for check in ("new_name", "removed_name", "size", "mode", "open_data"):
        assert "not seen within 4 s" in late[f"coherence.{check}"]
        assert "on every host" in report.rows[f"coherence.{check}"].mend
    assert report.rows["coherence.listing"].verdict == "ok"  # the kernel does not keep those
    assert report.status == 1


def test_locks_that_each_mount_has_for_itself(workdir: Path) -> None:
    with loose_store(workdir, clients=2) as (one, other):
        row = selftest(one.path, "--other", other.path, "--only", "coherence").rows["coherence.locks"]
    assert row.verdict == "warn"
    assert "locked by" in row.says


def test_another_file_system_at_the_other_path(faulty: FaultStore, workdir: Path) -> None:
    report = selftest(faulty.path, "--other", workdir, "--only", "names,coherence")
    assert report.of("fail").keys() == {"peers.reached"}
    assert report.rows["coherence.size"].verdict == "not tried"
    assert report.rows["names.create"].verdict == "ok"


# Errors that come late


def test_a_limit_that_is_told_at_close(workdir: Path) -> None:
    with loose_store(workdir, f"--largest={8 * MIB}") as (store,):
        row = selftest(store.path, "--limited", "bin", "--only", "late").rows["late.errors"]
        assert left_in(store.backing) == []
    assert row.verdict == "warn"
    assert row.figures["told_at"] == "close"
    assert row.figures["error"] == "EDQUOT"


def test_a_limit_that_nobody_is_told(workdir: Path) -> None:
    with loose_store(workdir, f"--largest={8 * MIB}", "--silent") as (store,):
        report = selftest(store.path, "--limited", "bin", "--only", "late")
    assert report.rows["late.errors"].verdict == "fail"
    assert "nobody was told" in report.rows["late.errors"].says
    assert report.status == 1


def test_a_limit_that_is_told_at_once(workdir: Path) -> None:
    with tmpfs(workdir, 64 * MIB, 1000) as top:
        row = selftest(top, "--limited", "bin", "--only", "late").rows["late.errors"]
    assert (row.verdict, row.figures["told_at"], row.figures["error"]) == ("ok", "write", "ENOSPC")


# Stores that do nothing


def fill(path: Path) -> None:
    """Until there is no room at all."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_store_that_is_full(workdir: Path) -> None:
    with tmpfs(workdir, 1 * MIB, 1000) as top:
        fill(top / "filler")
        report = selftest(top)
        assert os.listdir(top) == ["filler"]
    row = report.rows["store.scratch"]
    assert (row.verdict, row.mend) == ("fail", "make room")
    assert "No space left" in row.says
    assert report.status == 1


def test_a_store_that_is_read_only(workdir: Path) -> None:
    with tmpfs(workdir, 1 * MIB, 1000) as top:
        subprocess.run(["mount", "-o", "remount,ro", top], check=True)
        report = selftest(top)
    row = report.rows["store.scratch"]
    assert (row.verdict, row.mend) == ("fail", "mount it for writing")
    assert "Read-only" in row.says
    assert report.status == 1


def test_a_store_that_hangs_from_the_beginning(faulty: FaultStore) -> None:
    faulty.hang("*", killable=False)
    report = selftest(faulty.path, "--timeout", "2")
    assert report.rows["store.scratch"].says == "no answer within 2 s"
    assert set(report.rows) - {"store.scratch"} == set(report.of("not tried"))
    assert report.status == 1


def test_one_call_that_hangs_ends_its_check_alone(faulty: FaultStore) -> None:
    faulty.hang("fsync", path="/synced$")
    report = selftest(faulty.path, "--only", "fsync,locks", "--timeout", LIMIT_S)
    assert report.rows["fsync.file"].says == "no answer within 12 s"
    assert report.of("fail").keys() == {"fsync.file"}
    assert report.rows["fsync.directory"].verdict == "ok"
    assert left_in(faulty.backing) == []


def test_what_cannot_be_removed_since_it_hangs_is_said_and_left_to_the_next(faulty: FaultStore) -> None:
    """A process that cannot even be killed keeps its file."""
    faulty.hang("fsync", path="/synced$", killable=False)
    report = selftest(faulty.path, "--only", "fsync", "--timeout", "5")
    assert report.rows["fsync.file"].verdict == "fail"
    row = report.rows["store.nothing_left"]
    assert row.verdict == "fail"
    assert "the next selftest removes it" in row.mend
    faulty.release()
    assert selftest(faulty.path, "--only", "root").rows["store.left_overs"].figures == {"removed": 1}
    assert left_in(faulty.backing) == []


def test_once_the_store_is_silent_nothing_more_is_asked(faulty: FaultStore) -> None:
    faulty.hang("mkdir", path=r"selftest[^/]*/[^/]*/.")
    report = selftest(faulty.path, "--only", "identity", "--timeout", LIMIT_S)
    assert report.rows["identity.owner"].says == "no answer within 12 s"
    assert report.rows["identity.threads"].says == "the store does not answer any more"
    assert report.of("ok").keys() == {"store.scratch", "store.left_overs", "store.nothing_left"}
    assert left_in(faulty.backing) == []
