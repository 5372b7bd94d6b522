"""The checkpoints in batch sets, as the store has them at the moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ckfs.errors import Stale
from ckfs.model import Checkpoint, Image, Keep
from ckfs.names import SetName
from ckfs.store.door import Door, Found, Spot
from ckfs.store.setnames import SetEntry, SetNames


def checkpoints(names: SetNames, door: Door, sets: Iterable[SetName]) -> list[Checkpoint]:
    """Those of all *sets* that exist. Blocking; looks at every file in them."""
    found: list[Checkpoint] = []
    for name in sets:
        with contextlib.suppress(FileNotFoundError, Stale):
            found += _of_set(door, name, *names.examine(name))
    return found


def _of_set(door: Door, name: SetName, entry: SetEntry, top: Found) -> list[Checkpoint]:
    if top.record.is_regular:
        return [Checkpoint(name, b"", top.record.keep, (Image(b"", top.record),))]
    if not top.record.is_directory:
        return []
    return [
        Checkpoint(name, inner, _keep(found, top), tuple(_images(door, entry, inner, found)))
        for inner, found in door.entries(entry.spot)
    ]


def _keep(found: Found, top: Found) -> Keep:
    return top.record.keep if found.record.keep is Keep.BY_RULE else found.record.keep


def _images(door: Door, entry: SetEntry, name: bytes, found: Found) -> Iterable[Image]:
    if found.record.is_regular:
        yield Image(name, found.record)
    elif found.record.is_directory:
        spot = Spot(entry.stored, (*entry.spot.components, name))
        for path, below in door.files_below(spot):
            yield Image(name + b"/" + path, below.record)
