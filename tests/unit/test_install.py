"""mount-helpers/install below a directory of its own: what it puts where, twice, over foreign files, and away again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HELPERS = Path(__file__).resolve().parents[2] / "mount-helpers"
LINK = "usr/local/bin/ckfs"
UNIT = "usr/local/lib/systemd/system/ckfs@.service"
RECORD = "usr/local/share/ckfs/installed"
DROPINS = [
    f"etc/systemd/system/{unit}.service.d/50-ckfs.conf"
    for unit in ("pbs_mom", "pbs_server", "torque-mom", "torque-server")
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A staged system with merged /usr, as Debian 12 and later are."""
    staged = tmp_path / "root"
    (staged / "usr/sbin").mkdir(parents=True)
    (staged / "sbin").symlink_to("usr/sbin")
    return staged


@pytest.fixture
def command(tmp_path: Path) -> Path:
    made = tmp_path / "with blank" / "ckfs"
    made.parent.mkdir()
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    return made


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HELPERS / "install", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def content_of(path: Path) -> str:
    return f"-> {path.readlink()}" if path.is_symlink() else path.read_text()


def files_below(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): content_of(path)
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_everything_is_where_it_is_looked_for(root: Path, command: Path) -> None:
    before = set(files_below(root))
    assert run("--destdir", root, "--ckfs", command).returncode == 0
    assert set(files_below(root)) - before == {LINK, "usr/sbin/mount.ckfs", UNIT, RECORD}
    assert (root / LINK).readlink() == command
    assert os.access(root / "usr/sbin/mount.ckfs", os.X_OK)
    assert (root / UNIT).stat().st_mode & 0o7777 == 0o644


def test_the_installed_command_is_written_into_what_calls_it(root: Path, command: Path) -> None:
    run("--destdir", root, "--ckfs", command)
    assert "\nckfs='/usr/local/bin/ckfs' #" in (root / "usr/sbin/mount.ckfs").read_text()
    assert "\nExecStart=/usr/local/bin/ckfs mount " in (root / UNIT).read_text()
    assert not [path for path, content in files_below(root).items() if "@CKFS@" in content]


def test_a_second_time_changes_nothing(root: Path, command: Path) -> None:
    run("--destdir", root, "--ckfs", command, "--torque", "/var/spool/torque")
    first = files_below(root)
    assert run("--destdir", root, "--ckfs", command, "--torque", "/var/spool/torque").returncode == 0
    again = files_below(root)
    assert sorted(again.pop(RECORD).splitlines()) == sorted(first.pop(RECORD).splitlines())
    assert again == first


def test_remove_leaves_what_was_there_before(root: Path, command: Path) -> None:
    (root / "usr/local/bin").mkdir(parents=True)
    before = sorted(root.rglob("*"))
    run("--destdir", root, "--ckfs", command, "--torque", "/var/spool/torque")
    assert run("--destdir", root, "--remove").returncode == 0
    assert sorted(root.rglob("*")) == before


def test_remove_twice_is_no_error(root: Path, command: Path) -> None:
    run("--destdir", root, "--ckfs", command)
    run("--destdir", root, "--remove")
    assert run("--destdir", root, "--remove").returncode == 0


def test_remove_takes_what_an_earlier_run_installed(root: Path, command: Path) -> None:
    run("--destdir", root, "--ckfs", command, "--torque", "/var/spool/torque")
    run("--destdir", root, "--ckfs", command)
    run("--destdir", root, "--remove")
    assert files_below(root) == {"sbin": "-> usr/sbin"}


@pytest.mark.parametrize("path", [LINK, "usr/sbin/mount.ckfs", UNIT])
def test_a_foreign_file_is_named_and_nothing_is_installed(root: Path, command: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("somebody else's")
    before = files_below(root)
    done = run("--destdir", root, "--ckfs", command)
    assert (done.returncode, f"/{path} is there" in done.stderr) == (1, True)
    assert files_below(root) == before


def test_a_changed_file_is_neither_replaced_nor_removed(root: Path, command: Path) -> None:
    run("--destdir", root, "--ckfs", command)
    (root / UNIT).write_text("changed")
    assert run("--destdir", root, "--ckfs", command).returncode == 1
    done = run("--destdir", root, "--remove")
    assert (done.returncode, f"kept /{UNIT}" in done.stderr) == (1, True)
    assert set(files_below(root)) == {"sbin", UNIT, RECORD}


def test_an_update_replaces_what_ckfs_installed(root: Path, command: Path, tmp_path: Path) -> None:
    run("--destdir", root, "--ckfs", command)
    other = tmp_path / "ckfs-2"
    other.write_bytes(command.read_bytes())
    other.chmod(0o755)
    assert run("--destdir", root, "--ckfs", other).returncode == 0
    assert (root / LINK).readlink() == other
    run("--destdir", root, "--remove")
    assert files_below(root) == {"sbin": "-> usr/sbin"}


def test_a_system_with_its_own_sbin(tmp_path: Path, command: Path) -> None:
    (tmp_path / "old/sbin").mkdir(parents=True)
    run("--destdir", tmp_path / "old", "--ckfs", command)
    assert (tmp_path / "old/sbin/mount.ckfs").is_file()


def test_links_out_of_the_staged_system_are_not_followed(tmp_path: Path, command: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/sbin").symlink_to(outside)
    run("--destdir", tmp_path / "root", "--ckfs", command)
    assert list(outside.iterdir()) == []
    assert (tmp_path / "root/usr/sbin/mount.ckfs").is_file()


@pytest.mark.parametrize(
    ("prefix", "unit"),
    [("/usr", "usr/lib/systemd/system/ckfs@.service"), ("/opt/ckfs/", "etc/systemd/system/ckfs@.service")],
)
def test_units_go_where_systemd_looks(root: Path, command: Path, prefix: str, unit: str) -> None:
    run("--destdir", root, "--ckfs", command, "--prefix", prefix)
    assert f"ExecStart={prefix.rstrip('/')}/bin/ckfs " in (root / unit).read_text()


def test_torque_asks_for_the_drop_ins(root: Path, command: Path) -> None:
    run("--destdir", root, "--ckfs", command, "--torque", "/var/spool/torque/")
    for path in DROPINS:
        assert "\nAssertPathIsMountPoint=/var/spool/torque/checkpoint\n" in (root / path).read_text()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--prefix", "usr/local"], 2),
        (["--prefix", "/usr/local;id"], 2),
        (["--torque", "/var/spool/tor que"], 2),
        (["--ckfs", "/no/such/ckfs"], 1),
        (["--wrong"], 2),
        (["--prefix"], 2),
    ],
)
def test_a_wrong_call_installs_nothing(root: Path, command: Path, arguments: list[str], status: int) -> None:
    done = run("--destdir", root, "--ckfs", command, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert files_below(root) == {"sbin": "-> usr/sbin"}
