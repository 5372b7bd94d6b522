"""Extended attributes: the users' own pass through to the store; ``user.ckfs.*`` says what ckfs knows.

ckfs's own are read by name and never listed, so that ``cp -a`` and ``rsync -X`` do not copy them.
"""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from ckfs import __version__
from ckfs.errors import Exists, Invalid, NoAttribute, NotOwner, Unsupported, errno_of
from ckfs.fs import quota_attributes
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Node, place_of, volume_of
from ckfs.fs.left import Left
from ckfs.fs.metadata import Changes, Metadata
from ckfs.fs.quota_attributes import QuotaAttributes
from ckfs.fs.sets import Sets
from ckfs.fs.unseen import Unseen
from ckfs.model import Caller, Keep, State
from ckfs.names import Inode, iso_time
from ckfs.owners.jobs import job_of
from ckfs.policy import lifecycle, ownership
from ckfs.policy.protection import Until
from ckfs.policy.quota import Amount
from ckfs.store import record, rereading, writing
from ckfs.store.charges import charge_of_attributes
from ckfs.store.digests import Digest
from ckfs.store.spots import Target

log = logging.getLogger(__name__)

_USER = b"user."
_OWN = b"user.ckfs"
_OWNER = b"user.ckfs.owner"
_KEEP = b"user.ckfs.keep"
_PATH = b"trusted.ckfs.path"
_UNCLAIMED = b"-"

Value = Callable[[Node], Awaitable[bytes]]


@dataclass(slots=True)
class Extended:
    core: Core
    metadata: Metadata
    sets: Sets
    guard: Guard
    left: Left
    unseen: Unseen
    _of_root: Mapping[bytes, Value] = field(init=False)
    _of_files: Mapping[bytes, Value] = field(init=False)

    def __post_init__(self) -> None:
        self._of_root = {
            b"user.ckfs.version": self._version,
            b"user.ckfs.role": self._role,
            b"user.ckfs.node": self._node,
        }
        self._of_files = {
            b"user.ckfs.uid": self._uid,
            b"user.ckfs.set": self._set,
            b"user.ckfs.store": self._store,
            b"user.ckfs.state": self._state,
            b"user.ckfs.written_by": self._written_by,
            b"user.ckfs.job": self._job,
            b"user.ckfs.protected": self._protected,
            b"user.ckfs.digest": self._digest,
            b"user.ckfs.completed": self._completed,
            b"user.ckfs.damaged": self._damaged,
            b"user.ckfs.kept_until": self._kept_until,
            _KEEP: self._keep,
            _PATH: self._path,
        }

    async def get(self, ino: Inode, name: bytes, caller: Caller) -> bytes:
        node = self.core.inodes.get(ino)
        if name == _OWNER and not node.is_root:
            return await self._owner(node, caller)
        if name.startswith(quota_attributes.PREFIX):
            return await QuotaAttributes(self.core).get(node, name, caller)
        made_up = (self._of_root if node.is_root else self._of_files).get(name)
        if made_up is not None:
            await self.unseen.until_released(node)
            return await made_up(node)
        _check_supported(name)
        if _is_own(name) or node.is_root:
            raise NoAttribute("there is no such attribute")
        return await self.core.on(node, lambda target: self.core.store.door.get_attribute(target, ino, name))

    async def set(self, ino: Inode, name: bytes, value: bytes, caller: Caller, flags: int = 0) -> None:
        """*flags* as of setxattr(2)."""
        node = self.core.inodes.get(ino)
        if flags:
            await self._check_is_there(ino, name, caller, flags)
        if name == _OWNER and node.entry is not None and caller.is_root:
            await self._give(node, value, caller)
            return
        if name == _KEEP and node.entry is not None:
            await self._set_keep(node, value, caller)
            return
        _check_changeable(name)
        await self.sets.check_change(node, caller)
        if node.is_root:
            raise Unsupported("the mount's root keeps no attributes")
        stored = node.set_entry.stored if place_of(node) is not None else None
        await self.sets.keeping.with_room(stored, lambda: self._put(node, name, value), volume_of(node))

    async def _check_is_there(self, ino: Inode, name: bytes, caller: Caller, flags: int) -> None:
        """Or is not, as *flags* want it."""
        try:
            await self.get(ino, name, caller)
        except (NoAttribute, OSError) as error:
            if not flags & os.XATTR_CREATE or errno_of(error) != errno.ENODATA:
                raise
        else:
            if flags & os.XATTR_CREATE:
                raise Exists("there is such an attribute")

    async def _put(self, node: Node, name: bytes, value: bytes) -> None:
        door = self.core.store.door

        def growth(target: Target) -> int:
            after = charge_of_attributes(door, target, name, len(value))
            return after - charge_of_attributes(door, target)

        cost = Amount(max(0, await self.core.on(node, growth)))
        async with self.core.charging.claimed(self.core.payer_of(node), cost) as hold:
            await self.core.on(
                node, lambda target: door.set_attribute(target, node.ino, name, value), locked=True, hold=hold
            )
        await self.core.charging.told()

    async def remove(self, ino: Inode, name: bytes, caller: Caller) -> None:
        node = self.core.inodes.get(ino)
        _check_changeable(name)
        await self.sets.check_change(node, caller)
        if node.is_root:
            raise NoAttribute("the mount's root keeps no attributes")
        await self.core.on(
            node, lambda target: self.core.store.door.remove_attribute(target, ino, name), locked=True
        )
        await self.core.charging.told()

    async def list(self, ino: Inode) -> list[bytes]:
        node = self.core.inodes.get(ino)
        if node.is_root:
            return []
        names = await self.core.on(node, lambda target: self.core.store.door.list_attributes(target, ino))
        return [name for name in names if name.startswith(_USER) and not _is_own(name)]

    async def _give(self, top: Node, value: bytes, caller: Caller) -> None:
        text = value.decode("utf-8", "replace")
        owner = await self.core.aside.ask(lambda: self.core.lookup.owner_named(text), caller.uid)
        if owner is None:
            raise Invalid("user.ckfs.owner takes the name or number of a user")
        await self.metadata.setattr(top.ino, Changes(uid=owner.uid, gid=owner.gid), None, caller)

    async def _set_keep(self, top: Node, value: bytes, caller: Caller) -> None:
        """``pinned``, ``released`` or nothing, of the whole set, or with ``/NAME`` of the checkpoint NAME in it.

        On the set rather than on the image, which its owner may not be allowed to write.
        """
        text, _, name = value.partition(b"/")
        try:
            keep = Keep(text.decode())
        except ValueError:
            raise Invalid("user.ckfs.keep takes pinned, released or nothing") from None
        if b"/" in name or b"\0" in name or name in (b".", b".."):
            raise Invalid("a checkpoint is named by a direct entry of its set")
        if not self.core.policy.is_batch(top.name):
            raise Invalid("only in batch sets are checkpoints kept")
        ownership.check_keep(keep, top.set_entry.owner, caller)
        place, door = top.place.inside(name) if name else top.place, self.core.store.door

        def work() -> None:
            spot = top.inside(name) if name else top.spot
            found = door.examine(spot)
            writing.say(door, spot, found.record.ino, lambda found: found.record.with_(keep=keep))
            self.guard.recount(place.set_name)

        await self.core.change((top,), work)
        log.info("%s is %s, says uid %d", place, keep.value or "kept by the rule again", caller.uid)

    # What ckfs knows

    async def _version(self, _: Node) -> bytes:
        return __version__.encode()

    async def _role(self, _: Node) -> bytes:
        return self.core.role.value.encode()

    async def _node(self, _: Node) -> bytes:
        return self.core.node_name

    async def _owner(self, node: Node, caller: Caller) -> bytes:
        owner = node.set_entry.owner
        if owner is None:
            return _UNCLAIMED
        name = await self.core.aside.ask(lambda: self.core.lookup.name_of(owner.uid), caller.uid)
        return b"%d" % owner.uid if name is None else name.encode("utf-8", "surrogateescape")

    async def _uid(self, node: Node) -> bytes:
        owner = node.set_entry.owner
        return _UNCLAIMED if owner is None else b"%d" % owner.uid

    async def _set(self, node: Node) -> bytes:
        return node.top.name

    async def _store(self, node: Node) -> bytes:
        return self.core.store.volumes.name_of(volume_of(node)).encode()

    async def _state(self, node: Node) -> bytes:
        found = await self.core.examine(node)
        state: State | None = found.record.state
        if found.record.is_directory:
            # Many files to look at: a matter of the time limit for data.
            state = await self.core.gate.transfer(
                lambda: self.left.worst_state_below(node.spot, node.place), of_set=self.core.set_key(node)
            )
        elif state is State.WRITING and node.removed is None:
            place = node.place
            state = await self.core.on(
                node, lambda target: self.left.state_of(target, found, place), locked=True
            )
        if state is None:
            raise NoAttribute("there is no image in it")
        return state.value.encode()

    async def _written_by(self, node: Node) -> bytes:
        written_by = (await self.core.examine(node)).record.node
        if not written_by:
            raise NoAttribute("nobody knows")
        return written_by

    async def _job(self, node: Node) -> bytes:
        name = node.top.name
        job = job_of(name) if self.core.policy.is_batch(name) else None
        if job is None:
            raise NoAttribute("the set's name is not a job's")
        return job.encode()

    async def _protected(self, node: Node) -> bytes:
        place = node.place
        reason = await self.core.gate.transfer(lambda: self.guard.reason(place))
        return b"no" if reason is None else reason.encode()

    async def _digest(self, node: Node) -> bytes:
        door = self.core.store.door

        def work(target: Target) -> Digest | None:
            return rereading.kept(door, target, door.examine(target, node.ino))

        digest = await self.core.on(node, work)
        if digest is None:
            raise NoAttribute("it has none, or has changed since")
        return str(digest).encode()

    async def _completed(self, node: Node) -> bytes:
        record = (await self.core.examine(node)).record
        return _time(record.completed if lifecycle.is_worth_keeping(record) else 0)

    async def _damaged(self, node: Node) -> bytes:
        return _time((await self.core.examine(node)).record.damaged)

    async def _kept_until(self, node: Node) -> bytes:
        place = node.place
        until = await self.core.gate.transfer(lambda: self.guard.kept_until(place))
        if until is None:
            raise NoAttribute("nothing keeps it")
        return (until.value if isinstance(until, Until) else utc(until)).encode()

    async def _keep(self, node: Node) -> bytes:
        keep = (await self.core.examine(node)).record.keep
        if keep is Keep.BY_RULE:
            raise NoAttribute("nobody has said anything")
        return str(keep.value).encode()

    async def _path(self, node: Node) -> bytes:
        return self.core.store.path_of(node.spot)


def _time(when_ns: int) -> bytes:
    """ISO 8601, in UTC, of a time in ns since the epoch; 0 is none."""
    if not when_ns:
        raise NoAttribute("that has not happened")
    return iso_time(when_ns).encode()


def utc(when_ns: int) -> str:
    """*when_ns*, in ns since the epoch, as ISO 8601 in UTC; the last second there is for what lies beyond it."""
    try:
        when = dt.datetime.fromtimestamp(when_ns // 1_000_000_000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        when = dt.datetime.max
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_own(name: bytes) -> bool:
    return name == record.ATTRIBUTE or name.startswith(_OWN + b".")


def _check_supported(name: bytes) -> None:
    # ACLs and labels that nobody would enforce are refused rather than kept.
    if not name.startswith(_USER) and name != _PATH:
        raise Unsupported("only user attributes are kept")


def _check_changeable(name: bytes) -> None:
    _check_supported(name)
    if _is_own(name) or name == _PATH:
        raise NotOwner("ckfs's own attributes are not for setting")
