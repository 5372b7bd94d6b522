"""Images go from the node that made them to the store, and from there to the node that restarts: the host of TORQUE's server moves none
of their bytes, counted on the cable of each host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.torque import HOSTS, NODE_A, NODE_B, SERVER, SetUp, Torque
from tests.support.gluster_cluster import Cluster

pytestmark = [pytest.mark.root, pytest.mark.cluster]

MIB = 1 << 20
SIZES = [pytest.param(32, id="32 MiB"), pytest.param(1024, id="1 GiB", marks=pytest.mark.long_on_cluster)]
TALK_BYTES = 4 * MIB
"""What the server's host may say and hear besides: names, attributes, what the client of the volume and its ckfs ask."""


@pytest.mark.parametrize("size_mib", SIZES)
def test_the_servers_host_moves_no_byte_of_an_image(gluster: Cluster, workdir: Path, size_mib: int) -> None:
    store, image_bytes = gluster.make_store("--quota", "none"), size_mib * MIB
    machines = {node: host.machine for node, host in zip(HOSTS, gluster.hosts, strict=True)}
    with gluster.mounted_on(store, workdir, HOSTS, server=SERVER) as mounts:
        job = Torque(mounts, SetUp.REMOTE, "17.server", image_bytes=image_bytes)
        before = {node: machine.moved_bytes for node, machine in machines.items()}
        job.hold(NODE_A)
        assert job.restart(NODE_B) == job.images[job.newest]
        moved = {node: machine.moved_bytes - before[node] for node, machine in machines.items()}
    print({node: f"{count / MIB:.1f} MiB" for node, count in moved.items()})
    assert moved[NODE_A] >= image_bytes, "the image went into the store"
    assert moved[NODE_A] < 3.5 * image_bytes, "to three bricks, and nothing of it came back for its digest"
    assert moved[NODE_B] >= image_bytes, "the image came from the store"
    assert moved[SERVER] < TALK_BYTES
