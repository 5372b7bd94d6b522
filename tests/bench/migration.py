"""``python -m tests.bench.migration``: from hold to restart of one image on two hosts, by ckfs and in TORQUE's ways.

The cluster of ``tests/support/gluster_cluster.py``: a volume of three copies that squashes root, mounted by three hosts with a network each.
*Hold* ends when the image is where a restart looks for it: by ckfs when it is written and renamed; in TORQUE's ways when what was
written to the node's own disk is copied to the server. *Restart* begins there, on the other node, and ends when all of the image is read
and compared: by ckfs from the mount; in TORQUE's ways from the node's own disk, after a copy from the server. Own disks and bricks are memory, cables
have no limit but the processors that all machines of the cluster share.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.places import scratch_in
from tests.support.gluster_cluster import Cluster, Host, running
from tests.support.machines import wait_until
from tests.support.users import ALICE, as_user

MIB = 1 << 20
_BLOCK = bytes(range(256)) * (MIB // 256)
_SET, _IMAGE = "1.server.CK", "ckpt.1"
_PORT = 2222
_COPIED_WITHIN_S = 900.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way from hold to restart. *hold* and *restart* return the seconds that they took; *clear* removes what they left."""

    title: str
    hold: Callable[[], float]
    restart: Callable[[], float]
    clear: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds."""

    hold: float
    restart: float

    @property
    def whole(self) -> float:
        return self.hold + self.restart


def dump(path: str, count: int) -> float:
    """Write an image of *count* MiB as BLCR does: a temporary name, fsync, rename."""
    begun = time.monotonic()
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(count):
            rest = memoryview(_BLOCK)
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.rename(temporary, path)
        os.fsync(fd)
    finally:
        os.close(fd)
    return time.monotonic() - begun


def read(path: str, count: int) -> float:
    """Read all of it. AssertionError if that is not what was written."""
    begun = time.monotonic()
    with open(path, "rb", buffering=0) as image:
        for number in range(count):
            block = b""
            while len(block) < MIB and (piece := image.read(MIB - len(block))):
                block = piece if not block else block + piece
            assert block == _BLOCK, f"MiB {number} of {path} is not what was written"
        assert image.read(1) == b""
    return time.monotonic() - begun


def by_ckfs(mounts: dict[str, str], count: int) -> Way:
    """It is one path for both nodes."""
    made, seen = (f"{mounts[node]}/{_SET}" for node in ("node1", "node2"))

    def hold() -> float:
        begun = time.monotonic()
        os.mkdir(made)
        os.chown(made, ALICE, ALICE)
        as_user(ALICE, dump, f"{made}/{_IMAGE}", count)
        return time.monotonic() - begun

    def restart() -> float:
        return as_user(ALICE, read, f"{seen}/{_IMAGE}", count)

    def clear() -> None:
        pass  # the newest two stay; the sets of each round have their own names

    return Way("ckfs", hold, restart, clear)


def by_copies(
    title: str,
    disks: dict[str, Path],
    count: int,
    put: Callable[[Path], None],
    get: Callable[[Path], None],
    kept: Path,
) -> Way:
    """*put* copies a node's file to the server, where it is *kept*, and *get* another node's from there."""
    ours, theirs = disks["node1"] / _IMAGE, disks["node2"] / _IMAGE

    def hold() -> float:
        begun = time.monotonic()
        as_user(ALICE, dump, str(ours), count)
        put(ours)
        return time.monotonic() - begun

    def restart() -> float:
        begun = time.monotonic()
        get(theirs)
        os.chown(theirs, ALICE, ALICE)
        as_user(ALICE, read, str(theirs), count)
        return time.monotonic() - begun

    def clear() -> None:
        for path in (ours, theirs, kept):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    return Way(title, hold, restart, clear)


class Copier:
    """scp between the nodes and the server, with a daemon and keys of its own."""

    def __init__(self, server: Host, scratch: Path) -> None:
        self._server = server
        self._scratch = scratch
        self._key = scratch / "key"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        host_key = self._scratch / "host-key"
        for key in (self._key, host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(self._key.with_suffix(".pub"), self._scratch / "authorized")
        said = {
            "Port": _PORT,
            "HostKey": host_key,
            "AuthorizedKeysFile": self._scratch / "authorized",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
            "Subsystem": "sftp internal-sftp",
        }
        settings = self._scratch / "sshd_config"
        settings.write_text("".join(f"{name} {value}\n" for name, value in said.items()))
        Path("/run/sshd").mkdir(exist_ok=True)
        log = self._scratch / "sshd.log"
        daemon = self._server.machine.spawn("/usr/sbin/sshd", "-D", "-e", "-f", settings, log=log)
        try:
            wait_until(lambda: "listening" in log.read_text(), "sshd listens")
            yield
        finally:
            daemon.terminate()
            daemon.wait()

    def copy(self, node: Host, source: str, target: str) -> None:
        """As pbs_mom calls it."""
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ]
        words = [word for option in options for word in ("-o", option)]
        command = ["scp", "-rpB", "-i", str(self._key), "-P", str(_PORT), *words, source, target]
        subprocess.run([*node.machine.enter, *command], check=True, timeout=_COPIED_WITHIN_S)

    def named(self, path: Path) -> str:
        return f"root@{self._server.machine.address}:{path}"


def ways(
    cluster: Cluster, mounts: dict[str, str], copier: Copier, scratch: Path, count: int
) -> Sequence[Way]:
    _, node1, node2 = cluster.hosts
    disks = {name: _directory(scratch / name) for name in ("server", "node1", "node2")}
    cluster.make_directory("plain", ALICE, ALICE, 0o1777)

    def through(kept: Path) -> tuple[Callable[[Path], None], Callable[[Path], None], Path]:
        return (
            lambda source: copier.copy(node1, str(source), copier.named(kept)),
            lambda target: copier.copy(node2, copier.named(kept), str(target)),
            kept,
        )

    shared = {host.name: host.volume / "plain" / _IMAGE for host in cluster.hosts}
    on_volume = shared[cluster.hosts[0].name]
    own = disks["server"] / _IMAGE
    return [
        by_ckfs(mounts, count),
        by_copies("scp, the server keeps it on the volume", disks, count, *through(on_volume)),
        by_copies("scp, the server keeps it on its own disk", disks, count, *through(own)),
        by_copies(
            "cp to the volume, and from it",
            disks,
            count,
            lambda source: _cp(source, shared[node1.name]),
            lambda target: _cp(shared[node2.name], target),
            on_volume,
        ),
    ]


def _directory(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o1777)
    return path


def _cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--", source, target], check=True, timeout=_COPIED_WITHIN_S)


def measure(count: int, rounds: int) -> dict[str, list[Took]]:
    """Each way once in each round, with images of *count* MiB. pytest's Skipped if no cluster comes up."""
    took: dict[str, list[Took]] = {}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running())
        scratch = stack.enter_context(scratch_in("/dev/shm"))
        copier = Copier(cluster.hosts[0], scratch)
        stack.enter_context(copier.serving())
        for number in range(rounds):
            with contextlib.ExitStack() as turn:
                place = _directory(scratch / f"turn{number}")
                store = cluster.make_store("--quota", "none")
                nodes = ("server", "node1", "node2")
                mounts = turn.enter_context(cluster.mounted_on(store, place, nodes, server="server"))
                for way in ways(cluster, mounts, copier, _directory(place / "disks"), count):
                    took.setdefault(way.title, []).append(Took(way.hold(), way.restart()))
                    way.clear()
                    print(f"{way.title}: {took[way.title][-1]}", file=sys.stderr, flush=True)
            subprocess.run(["rm", "-rf", cluster.kept / store, cluster.kept / "plain"], check=True)
            shutil.rmtree(place)
    return took


def text(took: dict[str, list[Took]]) -> str:
    """As a table of Markdown: medians of seconds, and of the ratios to ckfs of each round."""
    lines = ["| way | hold, s | restart, s | both, s | ÷ ckfs |", "|---|---:|---:|---:|---:|"]
    for title, rounds in took.items():
        ratios = [one.whole / ours.whole for one, ours in zip(rounds, took["ckfs"], strict=True)]
        columns = zip(*((one.hold, one.restart, one.whole) for one in rounds), strict=True)
        medians = [statistics.median(column) for column in columns]
        lines.append(
            f"| {title} | {' | '.join(f'{value:.1f}' for value in medians)} | {statistics.median(ratios):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.migration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--mib", type=int, default=2048, metavar="N", help="size of the image (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if not shutil.which("sshd", path="/usr/sbin:/sbin"):
        print("sshd is not installed (Debian: openssh-server)", file=sys.stderr)
        return 1
    try:
        took = measure(options.mib, options.rounds)
    except pytest.skip.Exception as reason:
        print(reason, file=sys.stderr)
        return 1
    print(text(took))
    return 0


if __name__ == "__main__":
    sys.exit(main())
