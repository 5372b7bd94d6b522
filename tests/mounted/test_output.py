"""What commands print goes where it can; if it cannot be written, that is said, and it is not the store's fault."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.mounting import Mount, command, environment
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

COMMANDS = {
    "--help": ["--help"],
    "ls": ["ls", "MOUNT"],
    "ls --json": ["ls", "--json", "MOUNT"],
    "verify": ["verify", "MOUNT"],
    "status": ["status", "MOUNT"],
    "pin": ["pin", "MOUNT/7.server.CK/image"],
    "trash": ["trash", "ls", "--store", "STORE"],
    "gc": ["gc", "STORE"],
    "scrub": ["scrub", "STORE"],
    "fsck": ["fsck", "STORE"],
}


@pytest.fixture(scope="module")
def set_of_alice(module_mount: Mount) -> Mount:
    """A mount with a set of hers, and an image in it."""
    top = module_mount.path / "7.server.CK"
    top.mkdir()
    os.chown(top, ALICE, ALICE)
    as_user(ALICE, lambda: (top / "image").write_bytes(b"image") and None)
    return module_mount


def run(mount: Mount, arguments: list[str], stdout: int) -> subprocess.CompletedProcess[str]:
    places = [
        argument.replace("MOUNT", str(mount.path)).replace("STORE", str(mount.store))
        for argument in arguments
    ]
    return subprocess.run(
        command(*places), env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """On standard error, but that this host has no TORQUE."""
    return [line for line in done.stderr.splitlines() if "nobody on this host can tell" not in line]


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_full_disk_behind_standard_output_is_said(set_of_alice: Mount, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(set_of_alice, arguments, full.fileno())
    assert (done.returncode, said(done)) == (1, ["ckfs: standard output: No space left on device"])


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_reader_who_had_enough_is_no_failure(set_of_alice: Mount, arguments: list[str]) -> None:
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        assert reader.stdin is not None
        done = run(set_of_alice, arguments, reader.stdin.fileno())
    assert (done.returncode, said(done)) == (0, [])
