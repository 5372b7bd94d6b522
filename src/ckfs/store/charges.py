"""What one set is charged with, for when it is given to another owner."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from dataclasses import dataclass

from ckfs.errors import Stale
from ckfs.names import Inode
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store.copying import everything
from ckfs.store.door import Door
from ckfs.store.spots import Spot


@dataclass(frozen=True, slots=True)
class Charges:
    """*of* has some of the files by themselves, too."""

    total: Amount
    of: dict[Inode, Amount]


def charges_of_set(door: Door, top: Spot, apart: Container[Inode]) -> Charges:
    """What is at *top* and below it, each file once; and of the files *apart* what each is charged with. Blocking."""
    total, of, seen = NOTHING, dict[Inode, Amount](), set[Inode]()
    for path, found in everything(door, top):
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
