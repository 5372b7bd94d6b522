"""mount.ckfs on its own: what it hands to ``ckfs mount``, what it keeps to itself, what it refuses, and how it ends.

A stand-in for ckfs records its arguments. The same with mount(8), root and a real mount: tests/mounted.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ckfs.daemon.options import KNOWN

HELPER = Path(__file__).resolve().parents[2] / "mount-helpers" / "mount.ckfs"
IGNORED = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "nousers",
    "noowner",
    "nogroup",
    "x-systemd.automount",
    "x-systemd.requires-mounts-for=/srv",
    "x-anything",
    "X-mount.mkdir",
    "comment=mine",
    "silent",
    "loud",
    "rw",
    "nosuid",
    "nodev",
    "exec",
    "async",
    "nomand",
    "noiversion",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
]
REFUSED = [
    "suid",
    "dev",
    "noexec",
    "sync",
    "dirsync",
    "mand",
    "iversion",
    "user",
    "user=alice",
    "users",
    "owner",
    "group",
    "remount",
]
OURS = [
    "role=server",
    "node=n17",
    "store_id=0d6f3a8e-2b1c-4c55-9a37-5e1f60c7d9b4",
    "service_user=ckfs",
    "op_timeout=5",
    "io_timeout=60",
    "log=/var/log/ckfs",
    "state=/var/lib/ckfs",
    "transport=kernel",
    "passthrough=off",
    "request_timeout=1200",
    "ro",
    "partial",
]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The file that the stand-in writes its arguments to, each ended by NUL."""
    return tmp_path / "recorded"


@pytest.fixture
def run(tmp_path: Path, recorded: Path) -> Run:
    """Runs the helper with the stand-in in PATH; *status* is what the stand-in ends with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_in = programs / "ckfs"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$RECORDED"\nexit "$STATUS"\n')
    stand_in.chmod(0o755)

    def helper(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RECORDED": str(recorded),
            "STATUS": str(status),
        }
        return subprocess.run(
            [HELPER, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )

    return helper


def arguments_in(recorded: Path) -> list[str]:
    return recorded.read_text().split("\0")[:-1]


def test_store_and_mount_point_are_handed_on(run: Run, recorded: Path) -> None:
    assert run("/srv/ckfs", "/mnt").returncode == 0
    assert arguments_in(recorded) == ["mount", "/srv/ckfs", "/mnt"]


@pytest.mark.parametrize(
    "odd", ["a b", "  two ", "tab\there", "new\nline\n", "$HOME `id` $(id)", "*", "'\"\\", "ü", "a,b"]
)
def test_odd_names_arrive_unchanged(run: Run, recorded: Path, odd: str) -> None:
    assert run(f"/srv/{odd}", f"/mnt/{odd}", "-o", "rw").returncode == 0
    assert arguments_in(recorded) == ["mount", f"/srv/{odd}", f"/mnt/{odd}"]


def test_a_name_that_starts_with_a_dash_is_no_option(run: Run, recorded: Path) -> None:
    assert run("--", "-store", "/mnt").returncode == 0
    assert arguments_in(recorded) == ["mount", "./-store", "/mnt"]


@pytest.mark.parametrize("option", OURS)
def test_an_option_of_ckfs_is_handed_on(run: Run, recorded: Path, option: str) -> None:
    assert run("/s", "/m", "-o", f"rw,{option},nofail").returncode == 0
    assert arguments_in(recorded) == ["mount", "/s", "/m", "-o", option]


def test_every_option_of_ckfs_is_tried_here() -> None:
    assert {option.partition("=")[0] for option in OURS} == set(KNOWN) - {"rw"}


@pytest.mark.parametrize("option", OURS)
def test_sloppy_knows_the_options_of_ckfs(run: Run, recorded: Path, option: str) -> None:
    assert run("/s", "/m", "-s", "-o", option).returncode == 0
    assert arguments_in(recorded)[-1] == option


@pytest.mark.parametrize("option", IGNORED)
def test_an_option_for_others_is_left_out(run: Run, recorded: Path, option: str) -> None:
    assert run("/s", "/m", "-o", f"{option},role=node").returncode == 0
    assert arguments_in(recorded) == ["mount", "/s", "/m", "-o", "role=node"]


@pytest.mark.parametrize("sloppy", [[], ["-s"]])
@pytest.mark.parametrize("option", REFUSED)
def test_a_promise_that_would_not_be_kept_is_refused(
    run: Run, recorded: Path, option: str, sloppy: list[str]
) -> None:
    done = run("/s", "/m", *sloppy, "-o", f"role=node,{option}")
    assert done.returncode == 1
    assert option.partition("=")[0] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not recorded.exists()


def test_an_unknown_option_is_for_ckfs_to_refuse(run: Run, recorded: Path) -> None:
    assert run("/s", "/m", "-o", "wrong=1,role=node", status=2).returncode == 1
    assert arguments_in(recorded)[-1] == "wrong=1,role=node"


def test_sloppy_leaves_unknown_options_out(run: Run, recorded: Path) -> None:
    done = run("/s", "/m", "-sv", "-o", "wrong=1,role=node,other")
    assert done.returncode == 0
    assert arguments_in(recorded)[-1] == "role=node"
    assert "wrong=1" in done.stderr
    assert "other" in done.stderr


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        (["-r"], ["-o", "ro"]),
        (["-w"], []),
        (["-o", "ro,rw"], []),
        (["-o", "rw,ro"], ["-o", "ro"]),
        (["-r", "-o", "rw"], []),
        (["-o", "ro", "-w"], []),
    ],
)
def test_of_ro_and_rw_the_last_counts(
    run: Run, recorded: Path, given: list[str], handed_on: list[str]
) -> None:
    assert run("/s", "/m", *given).returncode == 0
    assert arguments_in(recorded)[3:] == handed_on


def test_several_lists_of_options_are_one(run: Run, recorded: Path) -> None:
    assert run("-o", "role=node", "/s", "-n", "/m", "-o", "node=a,,op_timeout=3,").returncode == 0
    assert arguments_in(recorded) == ["mount", "/s", "/m", "-o", "role=node,node=a,op_timeout=3"]


def test_options_are_no_patterns(run: Run, recorded: Path) -> None:
    assert run("/s", "/m", "-o", "node=*").returncode == 0
    assert arguments_in(recorded)[-1] == "node=*"


def test_as_mount_8_calls_it(run: Run, recorded: Path) -> None:
    done = run("/s", "/m", "-n", "-v", "-o", "rw,role=node", "-t", "ckfs.sub")
    assert done.returncode == 0
    assert arguments_in(recorded) == ["mount", "/s", "/m", "-o", "role=node"]
    assert "running: ckfs mount /s /m -o role=node" in done.stderr


def test_another_name_space_is_entered_first(run: Run, recorded: Path, tmp_path: Path) -> None:
    stand_in = tmp_path / "bin" / "nsenter"
    (tmp_path / "bin" / "ckfs").rename(stand_in)
    (tmp_path / "bin" / "ckfs").symlink_to("/bin/false")
    assert run("/s", "/m", "-N", "/proc/1/ns/mnt").returncode == 0
    assert arguments_in(recorded) == ["--mount=/proc/1/ns/mnt", "--", "ckfs", "mount", "/s", "/m"]


class TestFake:
    def test_mounts_nothing(self, run: Run, recorded: Path, tmp_path: Path) -> None:
        assert run(str(tmp_path), str(tmp_path), "-f", "-o", "role=node").returncode == 0
        assert not recorded.exists()

    def test_misses_a_store(self, run: Run, tmp_path: Path) -> None:
        done = run(str(tmp_path / "no"), str(tmp_path), "-f")
        assert (done.returncode, "no: no such store" in done.stderr) == (32, True)

    def test_misses_a_mount_point(self, run: Run, tmp_path: Path) -> None:
        done = run(str(tmp_path), str(tmp_path / "no"), "-f")
        assert (done.returncode, "no: no such directory" in done.stderr) == (32, True)

    def test_refuses_an_unknown_option(self, run: Run, tmp_path: Path) -> None:
        done = run(str(tmp_path), str(tmp_path), "-f", "-o", "wrong=1")
        assert (done.returncode, "wrong=1" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("status", "answer"),
    [(0, 0), (1, 32), (2, 1), (3, 32), (4, 32), (5, 1), (6, 32), (99, 32), (126, 2), (127, 2), (130, 8)],
)
def test_the_exit_status_is_one_of_mount_8(run: Run, status: int, answer: int) -> None:
    assert run("/s", "/m", status=status).returncode == answer


@pytest.mark.parametrize(
    "arguments", [[], ["/s"], ["/s", ""], ["", "/m"], ["/s", "/m", "/x"], ["/s", "/m", "-q"]]
)
def test_a_wrong_call_is_answered_by_the_usage(run: Run, recorded: Path, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert "usage: mount.ckfs" in done.stderr
    assert not recorded.exists()


def test_a_missing_ckfs_is_named_with_the_way_out(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", HELPER, "/s", "/m"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "mount-helpers/install" in done.stderr) == (2, True)
