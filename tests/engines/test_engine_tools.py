"""How drivers call their engines' tools: by programs in their place that note what they are called with.

These say what ckfs asks for, as the tools' manual pages have it; only the real tool could say whether it does it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.engines import tools
from ckfs.engines.driven import Driven
from ckfs.engines.engine import Driver, MountedOn, Realms
from ckfs.engines.glusterfs import GlusterFs
from ckfs.engines.lustre import Lustre
from ckfs.engines.projects import Ext4, Xfs
from ckfs.errors import EngineFailed, Unsupported
from ckfs.names import Uid
from ckfs.policy.quota import Limit, Limits, Settings
from tests.engines.test_engine_outputs import GLUSTER, LFS, REPQUOTA

ALICE = Uid(2101)
MIB = 1 << 20
LIMITS = Limits(Limit(3 * MIB, 4 * MIB + 1), Limit(None, 1000))


class Bench:
    """A directory of tools, and ``users/`` of a store for a driver."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tools, self.users = directory / "tools", directory / "store" / "users"
        self.tools.mkdir()
        self.users.mkdir(parents=True)
        monkeypatch.setattr(tools, "PATH", f"{self.tools}:/usr/bin:/bin")
        self.fd = os.open(self.users, os.O_RDONLY | os.O_DIRECTORY)
        self.realms = Realms(self.fd, MountedOn("fuse.glusterfs", "server:/gv0", str(directory)))

    def put(self, tool: str, script: str) -> None:
        path = self.tools / tool
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {self.tools}/calls\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def prints(self, tool: str, text: str) -> None:
        (self.tools / f"{tool}.text").write_text(text)
        self.put(tool, f"cat {self.tools}/{tool}.text")

    @property
    def calls(self) -> list[str]:
        return [re.sub(r"/proc/self/fd/\d+", "REALM", call) for call in self._calls()]

    def _calls(self) -> list[str]:
        path = self.tools / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    yield made
    os.close(made.fd)


def test_a_missing_tool_is_named_with_its_package(bench: Bench) -> None:
    with pytest.raises(EngineFailed, match=r"'setquota'.*install the package quota"):
        Xfs(bench.realms).start()
    with pytest.raises(EngineFailed, match=r"'lfs'.*install the package lustre-client-utils"):
        Lustre(bench.realms).start()
    with pytest.raises(EngineFailed, match=r"'gluster'.*install the package glusterfs-server"):
        GlusterFs(bench.realms).start()


def test_a_tool_that_fails_is_one_line_with_its_words(bench: Bench) -> None:
    bench.put("lfs", "echo 'lfs: no' >&2; echo 'such file' >&2; exit 3")
    with pytest.raises(EngineFailed, match=r"^'lfs setquota -p' failed: lfs: no; such file$"):
        Lustre(bench.realms).limit(ALICE, LIMITS)


def test_a_tool_that_hangs_is_ended(bench: Bench) -> None:
    bench.put("lfs", "exec sleep 600")
    with pytest.raises(EngineFailed, match=r"did not end within 0\.2 s"):
        tools.run("lfs", "lustre-client-utils", ["quota"], timeout_s=0.2)


def test_a_tool_sees_nothing_of_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SECRET", "x")
    bench.put("lfs", "env")
    seen = tools.run("lfs", "lustre-client-utils", [])
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert names <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD"}


def test_limits_of_projects_are_whole_kib_and_never_more_than_said(bench: Bench) -> None:
    bench.put("setquota", "")
    point = bench.realms.mounted.point
    Ext4(bench.realms).limit(ALICE, LIMITS)
    Ext4(bench.realms).limit(ALICE, Limits())
    Ext4(bench.realms).limit(ALICE, Limits(Limit(hard=1), Limit(hard=0)))
    assert bench.calls == [
        f"-P 2101 3072 4096 0 1000 {point}",
        f"-P 2101 0 0 0 0 {point}",
        f"-P 2101 0 1 0 1 {point}",  # to the tool 0 is no limit
    ]


def test_what_projects_have_is_asked_by_number_and_raw(bench: Bench) -> None:
    bench.prints("repquota", REPQUOTA)
    (bench.users / "2101").mkdir()
    (account,) = Xfs(bench.realms).accounts()
    assert account.used.files == 412
    assert bench.calls == [f"-P -n -p -v -O csv {bench.realms.mounted.point}"]


def test_only_xfs_says_that_the_store_is_full_to_one_over_his_limit(bench: Bench) -> None:
    says = {
        driver(bench.realms).name: driver(bench.realms).says_full for driver in (Xfs, Ext4, Lustre, GlusterFs)
    }
    assert says == {"xfs": True, "ext4": False, "lustre": False, "glusterfs": False}


def test_lustre_is_asked_and_told_by_project(bench: Bench) -> None:
    bench.prints("lfs", LFS)
    driver = Lustre(bench.realms)
    assert driver.account(ALICE).used.files == 714982
    driver.limit(ALICE, LIMITS)
    point = bench.realms.mounted.point
    assert bench.calls == [
        f"quota -p 2101 {point}",
        f"setquota -p 2101 -b 3072 -B 4096 -i 0 -I 1000 {point}",
    ]


def test_lustre_gives_an_empty_realm_its_project_and_refuses_one_with_something_in_it(bench: Bench) -> None:
    bench.prints("lfs", "    0 - USERS/2101\n")
    (bench.users / "2101").mkdir()
    driver = Lustre(bench.realms)
    driver.mark(ALICE)
    assert bench.calls == ["project -d REALM", "project -p 2101 -s REALM"]
    (bench.users / "2101" / "set").mkdir()
    with pytest.raises(EngineFailed, match=r"users/2101 holds .* 'lfs project -r -p 2101 -s users/2101'"):
        driver.mark(ALICE)


def test_gluster_is_told_paths_of_its_volume(bench: Bench) -> None:
    bench.prints("gluster", GLUSTER)
    driver = GlusterFs(bench.realms)
    assert driver._path(ALICE) == "/store/users/2101"
    driver.limit(ALICE, Limits(Limit(hard=5 * MIB), Limit(hard=10)))
    driver.limit(ALICE, Limits(Limit(), Limit(hard=10)))
    assert bench.calls == [
        "--mode=script volume quota gv0 limit-usage /store/users/2101 5242880",
        "--mode=script volume quota gv0 limit-objects /store/users/2101 10",
        "--mode=script volume quota gv0 list --xml",
        "--mode=script volume quota gv0 remove /store/users/2101",
        "--mode=script volume quota gv0 limit-objects /store/users/2101 10",
    ]


def test_soft_limits_that_an_engine_has_not_are_refused(bench: Bench) -> None:
    with pytest.raises(Unsupported, match="no soft limits"):
        GlusterFs(bench.realms).check(LIMITS)


@pytest.mark.parametrize("driver", [Xfs, Ext4, Lustre])
def test_a_driver_that_was_not_tried_says_so_once_when_it_is_opened(
    bench: Bench, driver: Callable[[Realms], Driver], caplog: pytest.LogCaptureFixture
) -> None:
    for tool, text in (("setquota", ""), ("repquota", REPQUOTA), ("lfs", LFS), ("gluster", GLUSTER)):
        bench.prints(tool, text)
    made = driver(bench.realms)
    Driven(made, bench.realms).start()
    (warning,) = [line.message for line in caplog.records if line.levelname == "WARNING"]
    assert warning.startswith(f"quotas by {made.name}: this driver was not yet tried on a real one")
    assert "ckfs selftest" in warning


def test_what_was_said_of_a_user_is_kept_though_the_engine_knows_numbers_alone(bench: Bench) -> None:
    bench.prints("lfs", LFS)
    (bench.users / "2101").mkdir()
    engine = Driven(Lustre(bench.realms), bench.realms)
    engine.set_limits(ALICE, Settings(hard_bytes=5 * MIB))
    assert engine.all_settings() == {ALICE: Settings(hard_bytes=5 * MIB)}
