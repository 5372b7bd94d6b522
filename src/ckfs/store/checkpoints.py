"""The checkpoints in batch sets, as the store has them at the moment."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

from ckfs.errors import Stale
from ckfs.model import Checkpoint, Image, Keep, Record
from ckfs.names import SetName
from ckfs.store.door import Door
from ckfs.store.setnames import SetNames


def checkpoints(names: SetNames, door: Door, sets: Iterable[SetName]) -> list[Checkpoint]:
    """Those of all *sets* that exist. Blocking; looks at every file in them."""
    found: list[Checkpoint] = []
    for name in sets:
        with contextlib.suppress(FileNotFoundError, Stale):
            found += _of_set(name, _records(names, door, name))
    return found


def _records(names: SetNames, door: Door, name: SetName) -> list[tuple[bytes, Record]]:
    """Those of the set's top, whose path is empty, and of all below it."""
    spot = names.read(name).spot
    try:
        return door.records_below(spot)
    except (OSError, Stale):  # it is a file, or just on its way
        entry, top = names.examine(name)
        return door.records_below(entry.spot) if top.record.is_directory else [(b"", top.record)]


def _of_set(name: SetName, records: list[tuple[bytes, Record]]) -> list[Checkpoint]:
    (_, top), *below = records
    if top.is_regular:
        return [Checkpoint(name, b"", top.keep, (Image(b"", top),))]
    kept: dict[bytes, Keep] = {}
    images: dict[bytes, list[Image]] = {}
    for path, record in below:
        inner, slash, _ = path.partition(b"/")
        if not slash:
            kept[inner], images[inner] = _keep(record, top), []
        if record.is_regular:
            images[inner].append(Image(path, record))
    return [Checkpoint(name, inner, keep, tuple(images[inner])) for inner, keep in kept.items()]


def _keep(record: Record, top: Record) -> Keep:
    return top.keep if record.keep is Keep.BY_RULE else record.keep


def with_record(of_family: Iterable[Checkpoint], record: Record) -> list[Checkpoint] | None:
    """*of_family* as it is once the image of that number has that *record*; None if there is no such image."""
    found = False

    def changed(image: Image) -> Image:
        nonlocal found
        if image.record.ino != record.ino:
            return image
        found = True
        return dataclasses.replace(image, record=record)

    after = [dataclasses.replace(one, images=tuple(map(changed, one.images))) for one in of_family]
    return after if found else None
