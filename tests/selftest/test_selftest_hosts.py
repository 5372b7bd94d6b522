"""Peers on other hosts: how ssh is called, and what is said of hosts that cannot take part.

In ssh's place is a program that runs what it is given on this host, or answers as ssh does when it cannot.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.selftests import Report, left_in, selftest

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

RUNS = 'for last; do :; done; exec sh -c "$last"'
"""What sshd does with the command."""
CHECKS = "names.create,coherence"


@pytest.fixture
def store(workdir: Path) -> Path:
    made = workdir / "store"
    made.mkdir()
    return made


def selftest_by_ssh(workdir: Path, store: Path, script: str, *hosts: str) -> Report:
    programs = workdir / "programs"
    programs.mkdir()
    ssh = programs / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {workdir}/calls\n{script}\n')
    ssh.chmod(0o755)
    report = selftest(
        store, "--hosts", ",".join(hosts), "--only", CHECKS, PATH=f"{programs}:{os.environ['PATH']}"
    )
    assert left_in(store) == []
    return report


def test_hosts_take_part_in_all_that_is_for_several(workdir: Path, store: Path) -> None:
    report = selftest_by_ssh(workdir, store, RUNS, "tqn1", "tqn2")
    assert report.of("fail") == {}
    assert report.rows["peers.reached"].says == "2 beside this one: tqn1, tqn2"
    assert report.rows["names.create"].figures == {"contenders": 12, "mounts": 3, "names": 40}
    assert report.rows["coherence.locks"].verdict == "ok"
    assert report.document["peers"] == ["tqn1", "tqn2"]


def test_ssh_asks_nobody_anything(workdir: Path, store: Path) -> None:
    selftest_by_ssh(workdir, store, RUNS, "tqn1")
    for call in (workdir / "calls").read_text().splitlines():
        assert call.startswith("-o BatchMode=yes -o ConnectTimeout=10 -- tqn1 ")
        assert call.endswith(" -P -m ckfs selftest --peer")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'root@tqn1: Permission denied (publickey).' >&2; exit 255", "Permission denied (publickey)."),
        ("echo 'python: No module named ckfs' >&2; exit 1", "No module named ckfs"),
        ("exit 0", "it ended"),
        ("echo 'Welcome to tqn1!'; cat", "what answers there is no ckfs"),
        ('read line; echo \'{"version": "9.9", "proof": ""}\'; cat', "ckfs 9.9 is there"),
        (f'{RUNS} | sed -u \'s/"proof": "[0-9a-f]*/"proof": "other/\'', "another file system than here"),
    ],
)
def test_hosts_that_cannot_take_part_are_named_and_left_out(
    workdir: Path, store: Path, script: str, says: str
) -> None:
    report = selftest_by_ssh(workdir, store, script, "tqn1")
    row = report.rows["peers.reached"]
    assert row.verdict == "fail"
    assert row.says.startswith("tqn1: ")
    assert says in row.says
    assert row.mend
    assert report.rows["coherence.size"].verdict == "not tried"
    assert report.rows["names.create"].figures["mounts"] == 1
    assert report.status == 1
