"""For how long the kernel may take for true what it is told: of a directory for the call that looked it up, of the mount's root as long, of all else not at all."""

from __future__ import annotations

import struct
from pathlib import Path

import pyfuse3
import pytest

from ckfs.names import ROOT_INODE, Inode
from ckfs.transport.handlers import Granted, Handlers
from ckfs.transport.pyfuse import Operations
from ckfs.transport.under_way import UnderWay
from ckfs.transport.wire.abi import Opcode
from ckfs.transport.wire.requests import Getattr, Header, Lookup
from tests.fs.cores import Mount, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]

_AT_MOST_S = 0.001
"""The kernel makes a tick of its clock of it, which has a thousand a second at most."""


class ByWire:
    """What the kernel transport answers: fuse_entry_out and fuse_attr_out begin with these times."""

    def __init__(self, mount: Mount) -> None:
        self._by_opcode = Handlers(mount.fs, UnderWay()).by_opcode()

    async def lookup(self, parent: Inode, name: bytes) -> tuple[float, float]:
        answer = await self._by_opcode[Opcode.LOOKUP](_header(Opcode.LOOKUP, parent), Lookup(name))
        assert isinstance(answer, Granted)
        _, _, entry, attributes, entry_ns, attributes_ns = struct.unpack_from("=QQQQII", answer.body)
        return entry + entry_ns / 1e9, attributes + attributes_ns / 1e9

    async def getattr(self, ino: Inode) -> float:
        body = await self._by_opcode[Opcode.GETATTR](_header(Opcode.GETATTR, ino), Getattr(None))
        assert isinstance(body, bytes)
        seconds, ns = struct.unpack_from("=QI", body)
        return float(seconds + ns / 1e9)


class ByPyfuse:
    """As :class:`ByWire`, of the pyfuse3 transport."""

    def __init__(self, mount: Mount) -> None:
        self._operations = Operations(mount.fs, UnderWay())

    async def lookup(self, parent: Inode, name: bytes) -> tuple[float, float]:
        entry = await self._operations.lookup(
            pyfuse3.InodeT(parent), pyfuse3.FileNameT(name), pyfuse3.RequestContext()
        )
        return entry.entry_timeout, entry.attr_timeout

    async def getattr(self, ino: Inode) -> float:
        entry = await self._operations.getattr(pyfuse3.InodeT(ino), pyfuse3.RequestContext())
        return float(entry.attr_timeout)


def _header(opcode: Opcode, ino: Inode) -> Header:
    return Header(length=0, opcode=opcode, unique=1, nodeid=ino, uid=0, gid=0, pid=0, extensions_length=0)


@pytest.mark.parametrize("transport", [ByWire, ByPyfuse])
async def test_a_directory_on_a_calls_way_is_asked_for_once(
    store: Path, transport: type[ByWire | ByPyfuse]
) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("set")
        await mount.alice.mkdir("set/directory")
        told = transport(mount)
        async with mount.alice.at("set") as inside:
            for parent, name in [(ROOT_INODE, b"set"), (inside, b"directory")]:
                entry_s, attributes_s = await told.lookup(parent, name)
                assert entry_s == 0
                assert 0 < attributes_s <= _AT_MOST_S
        assert 0 < await told.getattr(ROOT_INODE) <= _AT_MOST_S


@pytest.mark.parametrize("transport", [ByWire, ByPyfuse])
async def test_nothing_else_holds(store: Path, transport: type[ByWire | ByPyfuse]) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("set")
        await mount.alice.save("set/image", b"content")
        told = transport(mount)
        async with mount.alice.at("set") as inside, mount.alice.at("set/image") as image:
            assert await told.lookup(inside, b"image") == (0, 0)
            assert (await told.getattr(inside), await told.getattr(image)) == (0, 0)
