"""What one set is charged with, for when it is given to another owner."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from dataclasses import dataclass

from ckfs.errors import Stale
from ckfs.names import Inode
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import walks
from ckfs.store.door import Door
from ckfs.store.spots import Found, Spot


@dataclass(frozen=True, slots=True)
class Charges:
    """*of* has some of the files by themselves, too."""

    total: Amount
    of: dict[Inode, Amount]


def charges_of_set(door: Door, top: Spot, apart: Container[Inode]) -> Charges:
    """What is at *top* and below it, each file once; and of the files *apart* what each is charged with. Blocking."""
    total, of, seen = NOTHING, dict[Inode, Amount](), set[Inode]()
    for path, found in _everything(door, top):
        ino = found.record.ino
        if ino in seen:
            continue
        if found.stat.st_nlink > 1:
            seen.add(ino)
        with contextlib.suppress(FileNotFoundError, Stale):
            charge = door.charge_of(top.below(*path.split(b"/")) if path else top)
            total += charge
            if ino in apart:
                of[ino] = charge
    return Charges(total, of)


def _everything(door: Door, top: Spot) -> Iterator[tuple[bytes, Found]]:
    """*top*, whose path is empty, and all below it. A chown leaves the atime alone, and so does what is looked at for it."""
    found = door.examine(top)
    yield b"", found
    if found.record.is_directory:
        yield from walks.everything(door, top, unseen=True)
