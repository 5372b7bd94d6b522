"""CRIU dumps a process twice into the same directory: outside batch sets it can, and the first dump is brought back from
the trash and restored; in a batch set it fails, and the first dump stays whole.

CRIU is had as for ``ckfs demo``: the distribution's, else Debian 13's, unpacked beside the system.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckfs.demo import counting as counting_module
from ckfs.demo.checkpointers import ByCriu, make_set, round_trip
from ckfs.demo.counting import COUNTS_TO_SEE, Counting, python_for
from ckfs.demo.criu import candidates
from ckfs.demo.nodes import CommandFailed, DemoFailed, Node
from ckfs.model import Owner
from ckfs.names import Gid, Uid
from tests.support.mounting import make_store, run_ckfs
from tests.support.users import ALICE

pytestmark = pytest.mark.root

USER = Owner(Uid(ALICE), Gid(ALICE))
_CAP_SYS_RESOURCE = 24


@dataclass
class Nodes:
    """Two nodes with a mount each, at one path that only they see."""

    source: Node
    target: Node
    way: ByCriu
    mountpoint: str
    store: Path
    work: Path

    def counting(self, name: str) -> Counting:
        return Counting(python_for(USER), str(self.work / "counter.py"), USER, str(self.work / name))


def _has_sys_resource() -> bool:
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    effective = next(line for line in lines if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


@pytest.fixture(scope="module")
def nodes(root_and_fuse: None, module_workdir: Path) -> Iterator[Nodes]:
    private, work, mountpoint = (module_workdir / name for name in ("private", "work", "checkpoint"))
    for path, mode in ((private, 0o700), (work, 0o755), (mountpoint, 0o755)):
        path.mkdir()
        path.chmod(mode)
    shutil.copy(Path(counting_module.__file__).parent / "counter.py", work)
    store = make_store(private)
    with contextlib.ExitStack() as stack:
        source, target = Node("nodea", 1000, str(private)), Node("nodeb", 3000, str(private))
        for node in (source, target):
            stack.callback(node.close)
            node.start()
        way = _working(source, work)
        for node in (source, target):
            node.mount(str(store), str(mountpoint))
        yield Nodes(source, target, way, str(mountpoint), store, work)
        for node in (source, target):
            node.unmount()


def _working(node: Node, work: Path) -> ByCriu:
    """A CRIU that moves a process where no ckfs is involved; skips if there is none."""
    complaints: list[str] = []
    for number, criu in enumerate(candidates(complaints.append, complaints)):
        logs = work / f"criu-logs-{number}"
        logs.mkdir()
        os.chown(logs, USER.uid, USER.gid)
        way = ByCriu(criu, str(logs), dump_as_user=not _has_sys_resource())
        counting = Counting(python_for(USER), str(work / "counter.py"), USER, str(work / f"trial-{number}"))
        try:
            criu.check(node)
            round_trip(way, counting, node, node, f"{counting.workdir}/images")
        except DemoFailed as error:
            complaints.append(f"{criu.origin}: {error}")
        else:
            return way
    pytest.skip(f"no CRIU works here: {'; '.join(complaints)}")


@dataclass(frozen=True)
class Dump:
    """A dump was made at this *count*, when the process's own *files* held this; *when* is between it and the next."""

    count: int
    files: dict[str, bytes]
    when: str


def _dump(nodes: Nodes, counting: Counting, images: str) -> Dump:
    """The process goes on afterwards."""
    counting.await_count(counting.last_count() + COUNTS_TO_SEE)
    count = nodes.way.checkpoint(nodes.source, counting, images)
    files = {name: Path(counting.workdir, name).read_bytes() for name in ("count", "log")}
    counting.signal(nodes.source, "CONT")
    return Dump(count, files, dt.datetime.fromtimestamp(time.time(), tz=dt.UTC).isoformat())


def _restore(nodes: Nodes, counting: Counting, dump: Dump, images: str) -> None:
    """On the other node; what the process has written since did not happen."""
    for name, content in dump.files.items():
        Path(counting.workdir, name).write_bytes(content)
    nodes.way.restore(nodes.target, counting, images)
    counting.await_count(dump.count + COUNTS_TO_SEE)
    counting.check_counted_on(dump.count)
    counting.kill(nodes.target)


def _sums(node: Node, images: str) -> str:
    """The names and contents of a dump, as a node sees them."""
    return node.run(["sh", "-c", 'cd "$1" && sha256sum *', "sh", images])


def test_each_of_three_dumps_into_one_directory_can_be_brought_back(nodes: Nodes) -> None:
    images, counting = f"{nodes.mountpoint}/dumps", nodes.counting("three")
    counting.start(nodes.source, "start", f"{counting.workdir}/state")
    make_set(nodes.source, counting, images)
    dumps, sums = [], []
    for _ in range(3):
        dumps.append(_dump(nodes, counting, images))
        sums.append(_sums(nodes.target, images))
    counting.kill(nodes.source)
    assert len(set(sums)) == 3
    assert _sums(nodes.target, images) == sums[2]
    for number, when in enumerate(((), ("--since", dumps[1].when))):
        # Each went to the trash while the next was made.
        until = () if number else ("--before", dumps[1].when)
        name = f"brought-back-{number}"
        done = run_ckfs(
            "trash", "restore", "--store", nodes.store, "--set", "dumps", "--to", name, *when, *until
        )
        assert done.returncode == 0, done.stderr
        back = f"{nodes.mountpoint}/{name}"
        assert _sums(nodes.source, back) == _sums(nodes.target, back) == sums[number]
        _restore(nodes, counting, dumps[number], back)
    _restore(nodes, counting, dumps[2], images)


def test_in_a_batch_set_the_second_dump_fails_and_the_first_stays_whole(nodes: Nodes) -> None:
    path, counting = f"{nodes.mountpoint}/1.server.CK", nodes.counting("batch")
    counting.start(nodes.source, "start", f"{counting.workdir}/state")
    nodes.source.run(["mkdir", path])
    nodes.source.run(["chown", f"{USER.uid}:{USER.gid}", path])
    images = f"{path}/dump"
    make_set(nodes.source, counting, images)
    first = _dump(nodes, counting, images)
    before = _sums(nodes.target, images)
    with pytest.raises(DemoFailed, match="Permission denied"):
        _dump(nodes, counting, images)
    for node in (nodes.source, nodes.target):
        for line in before.splitlines():
            assert line in _sums(node, images).splitlines()
        with pytest.raises(CommandFailed, match="Permission denied"):
            node.run(["rm", f"{images}/{nodes.way.main_image}"])
    counting.signal(nodes.source, "CONT")
    beside = f"{path}/dump2"
    make_set(nodes.source, counting, beside)
    second = _dump(nodes, counting, beside)
    counting.kill(nodes.source)
    _restore(nodes, counting, second, beside)
    _restore(nodes, counting, first, images)
