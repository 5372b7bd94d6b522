"""``ckfs selftest`` on a GlusterFS volume that is mounted twice: as it is by default, as docs/torque.md says, and with root squashed.

``python -m tests.support.gluster_selftest DIRECTORY`` runs as root in new namespaces (:func:`run`) and prints the three documents.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import gluster_node
from tests.support.selftests import Report, selftest

KEEPER = 1
_OPTIONS = "direct-io-mode=enable,attribute-timeout=0,entry-timeout=0,gid-timeout=0"
_SWITCHED_OFF = (
    "quick-read",
    "io-cache",
    "stat-prefetch",
    "read-ahead",
    "write-behind",
    "open-behind",
    "readdir-ahead",
)


def run(directory: Path) -> dict[str, Report]:
    """By how the volume was mounted: ``default``, ``coherent``, ``squashed``."""
    namespaces = ["unshare", "-m", "-n", "-u", "-p", "--fork", "--mount-proc", "--kill-child"]
    program = [sys.executable, "-m", "tests.support.gluster_selftest", str(directory)]
    done = subprocess.run([*namespaces, *program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return {how: Report(status, document) for how, (status, document) in said.items()}


def _call(*arguments: str | Path) -> None:
    subprocess.run(list(map(str, arguments)), check=True, stdout=subprocess.DEVNULL)


def _volume(*words: str) -> None:
    _call("gluster", "--mode=script", "volume", "set", gluster_node.VOLUME, *words)


def _mount(*places: Path, options: str = "") -> None:
    source = f"{gluster_node.HOST}:/{gluster_node.VOLUME}"
    for place in places:
        place.mkdir(exist_ok=True)
        _call("mount", "-t", "glusterfs", *(["-o", options] if options else []), source, place)


def scenario(directory: Path) -> dict[str, Report]:
    volume = gluster_node.prepare(directory)
    again = directory / "again"
    (volume / "store").mkdir()
    os.chown(volume / "store", KEEPER, KEEPER)
    _mount(again)
    reports = {"default": selftest(volume / "store", "--other", again / "store", "--only", "coherence")}
    _call("umount", volume)
    _call("umount", again)
    for what in _SWITCHED_OFF:
        _volume(f"performance.{what}", "off")
    _mount(volume, again, options=_OPTIONS)
    reports["coherent"] = selftest(volume / "store", "--other", again / "store", "--only", "coherence,names")
    _volume("server.root-squash", "on")
    squashed = "identity,root,attributes,names,rename,fsync,locks"
    reports["squashed"] = selftest(volume / "store", "--other", again / "store", "--only", squashed)
    _call("umount", volume)
    _call("umount", again)
    return reports


if __name__ == "__main__":
    print(
        json.dumps(
            {how: (report.status, report.document) for how, report in scenario(Path(sys.argv[1])).items()}
        )
    )
