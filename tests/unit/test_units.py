"""The unit files, as ``systemd-analyze verify`` sees them once installed, and the few lines that must not get lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ckfs.daemon import options
from ckfs.errors import NotPermitted, UsageError
from ckfs.model import Role

HELPERS = Path(__file__).resolve().parents[2] / "mount-helpers"
BATCH_UNITS = {
    "pbs_mom.service",
    "pbs_server.service",
    "torque-mom.service",
    "torque-server.service",
    "pbs.service",
}
EXAMPLE = "var-spool-torque-checkpoint.mount"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A directory of units as ``install`` leaves them, with a pbs_mom to be dropped in to."""
    options = ["--prefix", "/opt/x", "--ckfs", "/bin/true", "--torque", "/var/spool/torque"]
    subprocess.run(
        [HELPERS / "install", "--destdir", tmp_path / "root", *options], check=True, capture_output=True
    )
    made = tmp_path / "root/etc/systemd/system"
    shutil.copy(HELPERS / EXAMPLE, made)
    unit = made / "ckfs@.service"
    unit.write_text(unit.read_text().replace("/opt/x/bin/ckfs", "/bin/true"))  # the command is looked for
    (made / "pbs_mom.service").write_text("[Service]\nType=forking\nExecStart=/bin/true\n")
    for path in made.glob("*.*"):
        if path.is_file():
            path.chmod(0o644)  # systemd complains of units that others may write
    return made


@pytest.mark.parametrize(
    "name", ["ckfs@var-spool-torque\\x20x-checkpoint.service", EXAMPLE, "pbs_mom.service"]
)
def test_systemd_has_nothing_against_it(units: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze, of the package systemd")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", name],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(units) in line or name in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("name", ["ckfs@.service", EXAMPLE])
def test_the_mount_comes_before_the_batch_system(name: str) -> None:
    before = re.findall(r"(?m)^Before=(.*)$", (HELPERS / name).read_text())
    assert {unit for line in before for unit in line.split()} == BATCH_UNITS


def test_the_mount_is_not_hidden_in_a_name_space() -> None:
    lines = re.sub(r"(?m)^#.*$", "", (HELPERS / "ckfs@.service").read_text())
    hiding = r"(?m)^(Private|Protect|Restrict|ReadOnly|ReadWrite|Inaccessible|Bind|Temporary|Root|Mount|Dynamic)\w*="
    assert re.findall(hiding, lines) == []


def test_a_crash_of_ckfs_does_not_end_the_batch_system() -> None:
    lines = (HELPERS / "pbs-ckfs.conf").read_text()
    assert re.findall(r"(?m)^(BindsTo|PartOf|Requires|Requisite)=", lines) == []


def test_the_template_asks_for_what_ckfs_offers() -> None:
    lines = (HELPERS / "ckfs@.service").read_text()
    assert "\nType=notify\n" in lines
    assert "\nExecStart=@CKFS@ mount -f -o ${OPTIONS} ${STORE} %f\n" in lines
    (default,) = re.findall(r"(?m)^Environment=OPTIONS=(.*)$", lines)
    assert options.parse([default]).role is Role.NODE


def test_what_does_not_get_better_by_itself_is_not_started_again() -> None:
    (statuses,) = re.findall(r"(?m)^RestartPreventExitStatus=(.*)$", (HELPERS / "ckfs@.service").read_text())
    assert statuses.split() == [str(error.exit_status) for error in (UsageError, NotPermitted)]
