"""What can be asked through a control socket: a function and a row of :data:`OPERATIONS` each.

An operation runs in the event loop. It reads what it was asked by type, checks that this is all that was asked, goes to
the store through the gate, and tells its answer part by part. What it raises ends the answer: a CkfsError with its exit
status, an FsError or OSError with that of what it means.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

from ckfs.control.protocol import Asked, Malformed, Values
from ckfs.control.quotas import QuotaDesk, uid_asked
from ckfs.control.status import status_of
from ckfs.control.trash import TrashDesk
from ckfs.errors import CkfsError, NotPermitted
from ckfs.fs.filesystem import Filesystem
from ckfs.fs.relocating import Relocating
from ckfs.fs.superseded import Superseded
from ckfs.model import Caller
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.owners.processes import Process, login_uid_of
from ckfs.policy import limits
from ckfs.store.choosing import Choice

Tell = Callable[[Values], Awaitable[None]]

_STORE_CALLS = 8
"""How many requests may have a thread of the store at once: the rest is for the file system's calls."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What operations are about. *path* is the mount point, *transport* what carries the kernel's requests, *state* the directory in
    which this host keeps its ledgers."""

    fs: Filesystem
    path: str
    transport: str
    state: str = ""
    store_calls: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_STORE_CALLS))


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks. *process* is None if it is of another pid namespace, or has gone."""

    uid: Uid
    gid: Gid
    process: Process | None

    @property
    def caller(self) -> Caller:
        return Caller(self.uid, self.gid, 0, 0o077)


Operation = Callable[[Mount, Peer, Asked, Tell], Awaitable[None]]


async def status(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    asked.only()
    await tell(status_of(mount.fs, mount.path, mount.transport, peer.uid))


async def state(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    """Where the ledger is in which this mount counts, for root's commands that work on the store itself: nothing if it counts in none.
    From memory, too."""
    asked.only()
    if not peer.caller.is_root:
        raise NotPermitted("only root is told where ledgers are")
    if mount.fs.core.ledger is not None:
        await tell({"store_id": mount.fs.core.store.id, "directory": mount.state})


async def read_partial(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    """Let the process that asks open an image once, soon, even if it is partial. The kernel checks the open as any."""
    asked.only("ino")
    ino = asked.number("ino")
    if ino is None:
        raise Malformed("which file?")
    if peer.process is None:
        raise CkfsError(
            "from another pid namespace partial images are read only on a mount with the option partial"
        )
    mount.fs.core.permits.give(peer.process, Inode(ino), peer.uid)


async def move(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    """Bring a set to another store: says how far it has come, and at the end whether it had to be moved at all."""
    asked.only("set_name", "store")
    name, store = asked.text("set_name"), asked.text("store")
    if not name or not store:
        raise Malformed("which set, and where to?")

    async def progress(done_bytes: int, of_bytes: int) -> None:
        await tell({"done_mib": min(done_bytes, of_bytes) >> 20, "of_mib": of_bytes >> 20})

    relocating = Relocating(mount.fs.core, mount.fs.sets.following)
    moved = await relocating.move(SetName(os.fsencode(name)), store, peer.caller, progress)
    await tell({"moved": moved})


async def trash_ls(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    asked.only(*_CHOICE)
    await _desk(mount, peer).ls(_choice(asked), tell)


async def trash_restore(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    asked.only(*_CHOICE, "to")
    await _desk(mount, peer).restore(_choice(asked), asked.text("to"), tell)


async def trash_purge(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    asked.only(*_CHOICE, "all")
    await _desk(mount, peer).purge(_choice(asked), asked.flag("all"), tell)


_CHOICE = ("set_name", "uid", "since_ns", "before_ns", "tokens", "image")


def _choice(asked: Asked) -> Choice:
    return Choice(
        asked.text("set_name"),
        asked.number("uid"),
        asked.number("since_ns"),
        asked.number("before_ns"),
        asked.texts("tokens"),
        asked.text("image"),
    )


def _desk(mount: Mount, peer: Peer) -> TrashDesk:
    return TrashDesk(mount.fs.core, peer.caller, mount.store_calls)


async def quota(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    asked.only("uids")
    uids = [uid_asked(text) for text in asked.texts("uids")]
    await _quotas(mount, peer).show(uids, tell)


async def quota_set(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    """Without *uid*, of all of whom nothing is said."""
    asked.only("uid", *limits.FIELDS)
    uid = asked.text("uid")
    said = {name: text for name in limits.FIELDS if (text := asked.text(name)) is not None}
    login_uid = None if peer.process is None else login_uid_of(peer.process.pid)
    await _quotas(mount, peer).set(None if uid is None else uid_asked(uid), said, login_uid, tell)


async def room(mount: Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
    asked.only("uid", "size_bytes")
    size_bytes = asked.number("size_bytes")
    if size_bytes is None or size_bytes < 0:
        raise Malformed("room for how much?")
    superseded = Superseded(mount.fs.core, mount.fs.sets.guard)
    await _quotas(mount, peer).room(uid_asked(asked.text("uid")), size_bytes, superseded, tell)


def _quotas(mount: Mount, peer: Peer) -> QuotaDesk:
    return QuotaDesk(mount.fs.core, peer.uid, mount.store_calls)


OPERATIONS: Mapping[str, Operation] = {
    "status": status,
    "state": state,
    "read-partial": read_partial,
    "quota": quota,
    "quota-set": quota_set,
    "room": room,
    "move": move,
    "trash-ls": trash_ls,
    "trash-restore": trash_restore,
    "trash-purge": trash_purge,
}
