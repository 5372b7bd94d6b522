"""The checkpoints in batch sets, as the store has them at the moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from ckfs.errors import Stale
from ckfs.model import Checkpoint, Image, Keep, Record, State
from ckfs.names import SetName
from ckfs.policy import lifecycle
from ckfs.store.door import Door, Found, Spot
from ckfs.store.setnames import SetEntry, SetNames

IsFinal = Callable[[bytes], bool]
"""Whether an image of that name is meant to keep it."""


def checkpoints(names: SetNames, door: Door, sets: Iterable[SetName], is_final: IsFinal) -> list[Checkpoint]:
    """Those of all *sets* that exist. Blocking; looks at every file in them."""
    found: list[Checkpoint] = []
    for name in sets:
        with contextlib.suppress(FileNotFoundError, Stale):
            found += _of_set(door, name, *names.examine(name), is_final)
    return found


def _of_set(door: Door, name: SetName, entry: SetEntry, top: Found, is_final: IsFinal) -> list[Checkpoint]:
    if top.record.is_regular:
        record = _meant(door, entry.spot, name, top, is_final)
        return [Checkpoint(name, b"", record.keep, (Image(b"", record),))]
    if not top.record.is_directory:
        return []
    return [
        Checkpoint(name, inner, _keep(found, top), tuple(_images(door, entry, inner, found, is_final)))
        for inner, found in door.entries(entry.spot)
    ]


def _keep(found: Found, top: Found) -> Keep:
    return top.record.keep if found.record.keep is Keep.BY_RULE else found.record.keep


def _images(door: Door, entry: SetEntry, name: bytes, found: Found, is_final: IsFinal) -> Iterable[Image]:
    spot = Spot(entry.stored, (*entry.spot.components, name))
    if found.record.is_regular:
        yield Image(name, _meant(door, spot, name, found, is_final))
    elif found.record.is_directory:
        for path, below in door.files_below(spot):
            *_, last = components = path.split(b"/")
            inner = Spot(spot.identity, (*spot.components, *components))
            yield Image(name + b"/" + path, _meant(door, inner, last, below, is_final))


def _meant(door: Door, spot: Spot, name: bytes, found: Found, is_final: IsFinal) -> Record:
    """The image's record; see :func:`lifecycle.closed_unsaid`."""
    if found.record.state is not State.WRITING or not is_final(name):
        return found.record
    try:
        marked = bool(door.writers(spot, found.record.ino))
    except (FileNotFoundError, Stale):
        return found.record
    return lifecycle.closed_unsaid(
        found.record, is_final=True, marked=marked, size=found.stat.st_size, ctime_ns=found.stat.st_ctime_ns
    )
