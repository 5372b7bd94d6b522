"""A host of GlusterFS in namespaces of its own: glusterd, a volume with quotas, and a mount of it.

``python -m tests.support.gluster_node DIRECTORY`` runs as root in new namespaces (:func:`run`), works the engine under a store
that is to be, and prints what it met as one JSON object. Everything ends with the namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ckfs.engines.opening import open_engine
from ckfs.names import Gid, Uid
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.quota import Settings
from tests.support.inherited import leave_mounts_to_the_host

ALICE, BOB = Uid(2101), Uid(2102)
MIB = 1 << 20
LIMIT = 10 * MIB
VOLUME = "gv0"
HOST = "gluster-node"
_PATIENCE_S = 30.0


def run(directory: Path) -> dict[str, object]:
    """What the scenario met."""
    namespaces = ["unshare", "-m", "-n", "-u", "-p", "--fork", "--mount-proc", "--kill-child"]
    program = [sys.executable, "-m", "tests.support.gluster_node", str(directory)]
    done = subprocess.run([*namespaces, *program], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _call(*arguments: str | Path) -> None:
    subprocess.run(list(map(str, arguments)), check=True, stdout=subprocess.DEVNULL)


def prepare(directory: Path) -> Path:
    """Where the volume is mounted."""
    leave_mounts_to_the_host()
    _call("ip", "link", "set", "lo", "up")
    _call("hostname", HOST)
    for name, text in (("hosts", f"127.0.0.1 localhost {HOST}\n"), ("nsswitch.conf", "hosts: files\n")):
        (directory / name).write_text(text)
        _call("mount", "--bind", directory / name, f"/etc/{name}")
    for place in ("/run", "/var/lib/glusterd", "/var/log/glusterfs"):
        Path(place).mkdir(parents=True, exist_ok=True)
        _call("mount", "-t", "tmpfs", "none", place)
    Path("/run/gluster").mkdir()
    brick, mountpoint = directory / "brick", directory / "volume"
    disk = directory / "disk"
    with disk.open("wb") as file:
        file.truncate(300 * MIB)
    _call("mkfs.ext4", "-q", "-b", "4096", disk)  # whose attributes have a block
    brick.mkdir()
    mountpoint.mkdir()
    _call("mount", "-o", "loop", disk, brick)
    _call("glusterd")
    deadline = time.monotonic() + _PATIENCE_S
    while not Path("/run/glusterd.socket").is_socket():
        assert time.monotonic() < deadline, "glusterd does not come up"
        time.sleep(0.05)
    for words in (
        f"create {VOLUME} {HOST}:{brick}/data force",
        f"start {VOLUME}",
        f"quota {VOLUME} enable",
        f"set {VOLUME} features.hard-timeout 0",
        f"set {VOLUME} features.soft-timeout 0",
    ):
        _call("gluster", "--mode=script", "volume", *words.split())
    _call("mount", "-t", "glusterfs", f"{HOST}:/{VOLUME}", mountpoint)
    return mountpoint


def _fill(path: Path, most_bytes: int) -> tuple[int, int]:
    written = 0
    with path.open("wb", buffering=0) as file:
        try:
            while written < most_bytes:
                written += file.write(os.urandom(64 << 10))
        except OSError as error:
            return written, error.errno or 0
    return written, 0


def _fill_or_close(path: Path, most_bytes: int) -> tuple[int, int]:
    try:
        return _fill(path, most_bytes)
    except OSError as error:  # close tells, too
        return path.stat().st_size, error.errno or 0


def _make_files(directory: Path) -> int:
    for number in range(100):
        try:
            (directory / str(number)).touch()
        except OSError as error:
            return error.errno or 0
    return 0


def scenario(directory: Path) -> dict[str, object]:
    users = prepare(directory) / "store" / "users"
    users.mkdir(parents=True)
    users.chmod(0o1777)
    facts: dict[str, object] = {}
    fd = os.open(users, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.closing(open_engine(fd, QuotaPolicy(mode=QuotaMode.ENGINE))) as engine:
        facts["name"] = engine.name
        engine.set_limits(None, Settings(hard_bytes=LIMIT))
        for uid in (ALICE, BOB):
            engine.prepare(uid, Gid(uid))
        facts["default"] = [account.limits.bytes.hard for account in engine.accounts()]
        engine.set_limits(BOB, Settings(hard_bytes=100 * MIB))
        facts["taken"], facts["refusal"] = _fill_or_close(users / "2101" / "image", 4 * LIMIT)
        facts["others"], facts["others_refusal"] = _fill_or_close(users / "2102" / "image", 2 * LIMIT)
        facts["used"] = engine.account(ALICE).used.bytes
        (users / "2101" / "image").unlink()
        engine.set_limits(ALICE, Settings(hard_files=5))
        facts["files_refusal"] = _make_files(users / "2101")
        facts["files"] = engine.account(ALICE).used.files
        engine.set_limits(ALICE, Settings(hard_bytes=0))
        engine.set_limits(None, Settings())
        engine.set_limits(ALICE, Settings())
        facts["lifted"] = engine.account(ALICE).limits.bytes.hard
    _call("umount", users.parent.parent)
    return facts


if __name__ == "__main__":
    print(json.dumps(scenario(Path(sys.argv[1]))))
