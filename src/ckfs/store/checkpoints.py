"""The checkpoints in batch sets, as the store has them at the moment."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable

from ckfs.errors import Stale, Unreached
from ckfs.model import Checkpoint, Image, Keep, Record, State
from ckfs.names import SetName
from ckfs.policy import lifecycle
from ckfs.store import walks
from ckfs.store.door import Door
from ckfs.store.setnames import SetNames
from ckfs.store.spots import Spot

IsFinal = Callable[[bytes], bool]
"""Whether an image of that name is meant to keep it."""


def checkpoints(names: SetNames, door: Door, sets: Iterable[SetName], is_final: IsFinal) -> list[Checkpoint]:
    """Those of all *sets* that exist and that this host reaches: who knows of fewer protects more. Blocking; looks at every file in
    them."""
    found: list[Checkpoint] = []
    for name in sets:
        with contextlib.suppress(FileNotFoundError, Stale, Unreached):
            spot, records = _records(names, door, name)
            found += _of_set(
                name, [(path, _meant(door, spot, name, path, one, is_final)) for path, one in records]
            )
    return found


def _records(names: SetNames, door: Door, name: SetName) -> tuple[Spot, list[tuple[bytes, Record]]]:
    """Where the set is, and the records of its top, whose path is empty, and of all below it."""
    spot = names.read(name).spot
    door.volumes.check(spot.volume)
    try:
        return spot, walks.records(door, spot)
    except (OSError, Stale):  # it is a file, or just on its way
        entry, top = names.examine(name)
        records = walks.records(door, entry.spot) if top.record.is_directory else [(b"", top.record)]
        return entry.spot, records


def _meant(door: Door, spot: Spot, name: SetName, path: bytes, record: Record, is_final: IsFinal) -> Record:
    """The image's record; see :func:`lifecycle.closed_unsaid`."""
    if record.state is not State.WRITING or not record.is_regular:
        return record
    *_, last = components = (name, *filter(None, path.split(b"/")))
    if not is_final(last):
        return record
    image = spot.below(*components[1:])
    try:
        found = door.examine(image, record.ino)
        marked = bool(door.writers(image, record.ino))
    except (FileNotFoundError, Stale):
        return record
    return lifecycle.closed_unsaid(
        found.record, is_final=True, marked=marked, size=found.stat.st_size, ctime_ns=found.stat.st_ctime_ns
    )


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
