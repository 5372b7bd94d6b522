"""When TORQUE's files say that a job is gone: only its server's, and only where they are really there."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.names import JobId
from ckfs.owners.accounts import Account, Accounts
from ckfs.owners.resolver import Gone, Known, Resolution, Unknown
from ckfs.owners.torque import TorqueJobs
from tests.support.jobfiles import EXEC, Job, put_private, server_home, xml

ON_SERVER = Job(union_type=EXEC)
OTHER = dataclasses.replace(ON_SERVER, job_id="13.server", file_prefix="13.server")
JOBS, DATABASE = "server_priv/jobs", "server_priv/serverdb"


class NoNames:
    def by_uid(self, uid: int) -> Account | None:
        return None

    def by_name(self, name: str) -> Account | None:
        return None


class Host:
    def __init__(self, home: Path, accounts: Accounts) -> None:
        self.home = home
        self.resolver = TorqueJobs(os.fsencode(home), accounts, writer=os.getuid())

    def says(self, job: str = "12.server") -> Resolution:
        return self.resolver.resolve(JobId(job))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A server with one job, 13.server."""
    accounts = Accounts(10, names=NoNames())
    before = len(os.listdir("/proc/self/fd"))
    yield Host(server_home(tmp_path / "torque", OTHER), accounts)
    assert len(os.listdir("/proc/self/fd")) == before
    accounts.close()


def test_the_server_has_no_file_of_it(host: Host) -> None:
    assert host.says() == Gone()
    assert host.resolver.why_never_gone() is None


def test_a_server_without_any_job_says_so_too(host: Host) -> None:
    shutil.rmtree(host.home / JOBS)
    (host.home / JOBS).mkdir()
    assert host.says() == Gone()


def test_a_job_that_is_there_is_not_gone(host: Host) -> None:
    put_private(host.home / JOBS / "12.server.JB", xml(ON_SERVER))
    assert not isinstance(host.says(), Gone)
    assert not isinstance(host.says("13.server"), Gone)


@pytest.mark.parametrize("suffix", [".JB", ".JC", ".SC", ".TA", ".BD"])
@pytest.mark.parametrize("content", [b"", b"cut sho"])
@pytest.mark.parametrize("directory", [JOBS, f"{JOBS}/2"])
def test_nor_is_one_of_which_any_file_is_left(
    host: Host, suffix: str, content: bytes, directory: str
) -> None:
    put_private(host.home / directory / f"12.server{suffix}", content)
    assert isinstance(host.says(), Unknown)


def test_sub_jobs_of_arrays_have_other_names(host: Host) -> None:
    assert host.says("12[3].server") == Gone()
    put_private(host.home / JOBS / "12-3.server.SC", b"#!/bin/sh")
    assert isinstance(host.says("12[3].server"), Unknown)
    assert isinstance(host.says("12-3.server"), Unknown)


def test_files_of_long_ids_have_cut_names(host: Host) -> None:
    job = "12." + "s" * 80
    assert host.says(job) == Gone()
    put_private(host.home / JOBS / f"{job[:61]}.SC", b"#!/bin/sh")
    assert isinstance(host.says(job), Unknown)


def unmounted(home: Path) -> None:
    shutil.rmtree(home / "server_priv")
    (home / "server_priv").mkdir()


def without_database(home: Path) -> None:
    (home / DATABASE).unlink()


def without_jobs(home: Path) -> None:
    shutil.rmtree(home / JOBS)


def empty_database(home: Path) -> None:
    (home / DATABASE).write_bytes(b"")


def database_of_others(home: Path) -> None:
    (home / DATABASE).chmod(0o666)


def database_by_link(home: Path) -> None:
    (home / DATABASE).rename(home / "elsewhere")
    (home / DATABASE).symlink_to(home / "elsewhere")


def jobs_of_others(home: Path) -> None:
    (home / JOBS).chmod(0o777)


def nothing(home: Path) -> None:
    shutil.rmtree(home)


WAYS = [
    unmounted,
    without_database,
    without_jobs,
    empty_database,
    database_of_others,
    database_by_link,
    jobs_of_others,
    nothing,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_without_a_server_that_is_really_there_nobody_knows(host: Host, way: Callable[[Path], None]) -> None:
    way(host.home)
    assert isinstance(host.says(), Unknown)
    assert host.resolver.why_never_gone()


def test_a_node_alone_never_says_gone(host: Host) -> None:
    shutil.rmtree(host.home / "server_priv")
    (host.home / "mom_priv/jobs").mkdir(parents=True)
    assert isinstance(host.says(), Unknown)
    assert "server_priv" in (host.resolver.why_never_gone() or "")


def test_a_mom_of_the_same_host_that_has_the_job_is_believed(host: Host) -> None:
    put_private(host.home / "mom_priv/jobs/12.server.JB", xml(Job()))
    assert isinstance(host.says(), Known)


def test_a_mom_of_the_same_host_that_does_not_know_its_user_yet_is_not_passed_over(host: Host) -> None:
    put_private(host.home / "mom_priv/jobs/12.server.JB", xml(dataclasses.replace(Job(), uid=0, gid=0)))
    assert isinstance(host.says(), Unknown)


@pytest.mark.parametrize("job", ["../13.server", "server.12", "", "12/3"])
def test_what_is_no_job_is_not_gone(host: Host, job: str) -> None:
    assert isinstance(host.says(job), Unknown)
