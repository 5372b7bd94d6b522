"""What the engine under a store, which enforces quotas by itself, is to the rest of ckfs; and what each driver has to know.

In such a store everything of a user lies in his *realm*, ``users/<uid>/``, and the engine limits that directory: as a
subvolume, by a project's number, or by an attribute. ckfs sets realms up, says their limits, and reads what they hold. It
never counts, and never stands between a write and the engine: EDQUOT is the engine's.

All calls block, may be made by any thread, and end within seconds. They raise EngineFailed if the engine, or its tool, does not
do what it should, Unsupported for what it cannot do at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ckfs.ledger.ledger import Quotas
from ckfs.names import Gid, Uid
from ckfs.policy.quota import Account, Limits, Room

REALM_MODE = 0o700


class Engine(Quotas, Protocol):
    """The engine of one store. What an account has *claimed* is nothing here: the engine settles at once."""

    @property
    def name(self) -> str:
        """As ``policy.toml`` calls it."""

    @property
    def tried(self) -> bool:
        """Whether the driver has been run against a real engine of its kind: by ckfs's own tests, or by ``ckfs selftest`` on this store
        (:mod:`ckfs.engines.proven`)."""

    def prepare(self, uid: Uid, gid: Gid) -> None:
        """Have the realm of *uid*, empty or as it is, set up so that the engine counts what is in it, with the default limits
        if it is new. Quick once this process has done it. It is repeated by every process, and so finishes what one that died began."""

    def forget(self, uid: Uid) -> None:
        """Remove the realm of *uid*, which is empty, and what the engine keeps of it beside limits."""

    def recent(self, uid: Uid) -> Account:
        """As :meth:`account`, as the engine says it by itself, or said it at most a second ago (btrfs counts what was written when it
        commits): cheap enough for what users may ask as often as they like."""

    def room(self, uid: Uid) -> Room:
        """What *uid* may have yet, by :meth:`recent`."""

    def is_at_limit(self, uid: Uid) -> bool:
        """Whether it is *uid*'s own limit, rather than the end of the store, that a write which found no room has met; as of at most a
        second ago. For engines that say the same of both (:attr:`says_full`)."""

    @property
    def says_full(self) -> bool:
        """It answers ENOSPC, not EDQUOT, to one who is over his limit."""

    @property
    def refuses_notes(self) -> bool:
        """To one at his limit it refuses even what takes no room to speak of: renames, attributes."""

    def headroom(self, uid: Uid) -> AbstractContextManager[None]:
        """In the block *uid* has a little more than his limit, for what ckfs itself has to note. For engines with
        :attr:`refuses_notes`."""

    def close(self) -> None: ...


def path_of(fd: int) -> str:
    """A path that leads to what is open as *fd* and nowhere else, whatever names are by now."""
    return f"/proc/self/fd/{fd}"


@dataclass(frozen=True, slots=True)
class MountedOn:
    """Where the store's file system is mounted: *kind* and *source* as the kernel lists them, *point* the mount point, *options* the
    mount's and the file system's."""

    kind: str
    source: str
    point: str
    options: str = ""


@dataclass(frozen=True, slots=True)
class Realms:
    """``users/`` of a store, open. No path of it is followed by string: tools are given the descriptor."""

    fd: int
    mounted: MountedOn

    @property
    def top(self) -> str:
        """A path to ``users/``, for this process and those that inherit the descriptor."""
        return path_of(self.fd)

    def uids(self) -> list[Uid]:
        """Whose realms there are, by number."""
        # Opened anew: btrfs lists by a descriptor what there was when that was opened.
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            names = [name for name in os.listdir(listing) if name.isascii() and name.isdigit()]
        finally:
            os.close(listing)
        return sorted(Uid(int(name)) for name in names if name == str(int(name)) and int(name) < 1 << 32)

    @contextmanager
    def opened(self, uid: Uid) -> Iterator[int]:
        """As :meth:`open`, for the time of the block."""
        fd = self.open(uid)
        try:
            yield fd
        finally:
            os.close(fd)

    def open(self, uid: Uid) -> int:
        """A descriptor of the realm, which its owner must close; FileNotFoundError if there is none."""
        return os.open(str(uid), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)


class Driver(Protocol):
    """What is peculiar to one engine. :class:`ckfs.engines.driven.Driven` makes an Engine of it."""

    @property
    def name(self) -> str: ...

    @property
    def tried(self) -> bool: ...

    @property
    def says_full(self) -> bool: ...

    @property
    def refuses_notes(self) -> bool: ...

    def set_bytes(self, uid: Uid, limit_bytes: int) -> None:
        """As :meth:`limit`, of bytes alone and in no time; for engines with :attr:`refuses_notes`."""

    def start(self) -> None:
        """Once, before anything else. EngineFailed if it could never work: no tool, quotas switched off."""

    def make(self, uid: Uid) -> None:
        """Make the directory of the realm, which is not there (FileExistsError: another process was faster)."""

    def mark(self, uid: Uid) -> None:
        """Let the engine count what the realm holds. Repeated without harm."""

    def remove(self, uid: Uid) -> None:
        """As :meth:`Engine.forget`. Raises OSError."""

    def settle(self) -> None:
        """Have the engine take what was written into account, if it does so later by itself."""

    def account(self, uid: Uid) -> Account:
        """What the engine says of a realm that is there."""

    def accounts(self) -> list[Account]:
        """Of all realms that there are."""

    def check(self, limits: Limits) -> None:
        """Unsupported if the engine has no such limits."""

    def limit(self, uid: Uid, limits: Limits) -> None:
        """Have the engine enforce *limits*, which were checked, from now on."""
