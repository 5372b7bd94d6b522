"""A meter that adds up what it hears, and what of it must agree with a count of the store."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store.charges import charge_of
from ckfs.store.counting import count, payers
from ckfs.store.layout import Store
from ckfs.store.metering import Ended
from ckfs.store.nameless import Left
from ckfs.store.spots import OpenFile


@dataclass
class Sums:
    """A meter. *elsewhere* are other mounts that live, and settle what they have marked."""

    charged: defaultdict[Uid, Amount] = field(default_factory=lambda: defaultdict(Amount))
    elsewhere: set[MountId] = field(default_factory=set)
    calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def made(self, payer: Uid, charge: Amount) -> None:
        self._add(payer, charge)

    def gone(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        self._add(payer, -charge)

    @property
    def keeps(self) -> bool:
        return False

    def left_open(self, left: Left, fd: int) -> None:
        """It keeps nothing, and so is told of nothing."""
        os.close(fd)

    def changed(self, payer: Uid, written: Inode | None, by_bytes: int) -> None:
        self._add(payer, Amount(by_bytes))

    def ended(self, ended: Ended) -> None:
        """What was written is taken as it is."""

    def held(self, ino: Inode) -> Amount | None:
        return None

    @property
    def mount(self) -> MountId | None:
        return None

    def lives(self, mount: MountId) -> bool:
        return mount in self.elsewhere

    def _add(self, payer: Uid, amount: Amount) -> None:
        with self._lock:
            self.calls += 1
            self.charged[payer] += amount

    @contextlib.contextmanager
    def written(self, store: Store, fd: int, payer: Uid) -> Iterator[None]:
        """What is written through descriptors in the block is not the door's to tell: it is taken as it is."""
        file = OpenFile(fd)
        before = charge_of(store.door, file)
        yield
        if os.fstat(fd).st_nlink:
            self._add(payer, Amount(charge_of(store.door, file).bytes - before.bytes))

    def check(self, store: Store) -> None:
        """What was heard of everybody is what is there."""
        for uid in payers(store) | set(self.charged):
            assert self.charged.get(uid, NOTHING) == count(store, uid, store.door.unit), f"of uid {uid}"
