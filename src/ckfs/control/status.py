"""What a mount says of itself: all from memory, in one turn of the event loop, so that it is said while the store hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from ckfs import __version__
from ckfs.control.protocol import Values
from ckfs.errors import Stale
from ckfs.fs.core import Core
from ckfs.fs.filesystem import Filesystem
from ckfs.fs.inodes import Handle
from ckfs.ledger.ledger import Ledger
from ckfs.model import Role
from ckfs.names import ROOT_UID, SetName, Uid, shown
from ckfs.store.trouble import Trouble
from ckfs.store.volumes import Volume

_MOST_SETS = 1000
"""That are named at once: a line of the answer has its limit."""


def status_of(fs: Filesystem, mountpoint: str, transport: str, asker: Uid) -> Values:
    """For *asker*, who hears of others' sets only if he is root. Waits for nothing."""
    core = fs.core
    gate, figures = core.gate, core.figures
    return {
        "version": __version__,
        "role": core.role.value,
        "node": shown(core.node_name),
        "transport": transport,
        "passthrough": fs.passing.is_on,
        "mountpoint": shown(mountpoint),
        "read_only": core.member is None,
        "store": shown(core.store.path),
        "store_id": core.store.id,
        "store_up": gate.is_up,
        "store_since_ns": gate.since_ns,
        "hung_threads": gate.overdue,
        "further_stores": [_further(volume) for volume in core.store.volumes.all()],
        **_last_error(core, asker),
        **_quotas(core),
        "coherence": None if core.seen is None else asdict(core.seen),
        "protection": _protection(core),
        "keep": core.policy.keep,
        "retention_s": core.policy.retention_s,
        "open_handles": len(core.handles),
        "open_writers": sum(handle.writable for handle in core.handles.all()),
        "writing": _written_now(core, asker),
        "sets_written": figures.traffic.written,
        "sets_read": figures.traffic.read,
        "bytes_written": figures.traffic.bytes_written,
        "bytes_read": figures.traffic.bytes_read,
        **asdict(figures.read()),
    }


def _further(volume: Volume) -> Values:
    """A further store, in the order in which new sets go to them, and whether this host reaches it."""
    reached = volume.reached
    return {
        "name": volume.said.name,
        "id": volume.said.id,
        "path": None if volume.path is None else shown(volume.path),
        "reached": volume.is_usable,
        "why": None if volume.is_usable else shown("it does not answer" if volume.is_silent else volume.why),
        "free_bytes": None if reached is None else reached.free_bytes,
    }


def _last_error(core: Core, asker: Uid) -> Values:
    """The last of the store's and of the ledger's. What the ledger's database said is for root: it may name a role, or a host."""
    troubles = [core.gate.trouble]
    failed = None if core.ledger is None else core.ledger.last_failure
    if failed is not None:
        why = f": {shown(failed.failure)}" if asker == ROOT_UID else ""
        troubles.append(Trouble(f"the ledger of quotas cannot be reached{why}", failed.since_ns))
    last = max((one for one in troubles if one is not None), key=lambda one: one.when_ns, default=None)
    if last is None:
        return {"last_error": None, "last_error_ns": None}
    return {"last_error": last.what, "last_error_ns": last.when_ns}


def _quotas(core: Core) -> Values:
    ledger = core.ledger
    if ledger is None:
        engine = None if core.engine is None else core.engine.name
        return {"quotas": "none" if engine is None else "engine", "engine": engine, "ledger": None}
    return {"quotas": "ledger", "engine": None, "ledger": _ledger(ledger)}


def _ledger(ledger: Ledger) -> Values:
    reach = ledger.reach
    return {
        "kind": ledger.kind,
        "reachable": reach.is_there,
        "since_ns": reach.since_ns,
        "asked_ns": ledger.asked_ns,
    }


def _protection(core: Core) -> str:
    """From whom what is protected is kept on this mount."""
    if not core.policy.keep:
        return "off"
    return {Role.NODE: "everybody", Role.SERVER: "all but root", Role.BOTH: "all but removers"}[core.role]


def _written_now(core: Core, asker: Uid) -> list[Values]:
    """The sets of which files are open for writing, with their owners and how many descriptors: of others, root hears alone."""
    writers: Counter[tuple[SetName, Uid]] = Counter(_writers(core))
    seen = [one for one in sorted(writers.items()) if asker in (ROOT_UID, one[0][1])]
    return [
        {"set": shown(name), "uid": uid, "open_writers": count} for (name, uid), count in seen[:_MOST_SETS]
    ]


def _writers(core: Core) -> Iterator[tuple[SetName, Uid]]:
    for handle in core.handles.all():
        if handle.writable and (of := _set_of(handle, core)) is not None:
            yield of


def _set_of(handle: Handle, core: Core) -> tuple[SetName, Uid] | None:
    """None for a file that has no name any more."""
    try:
        owner = handle.node.set_entry.owner
        return handle.node.set_name, core.stored_as(owner).uid if owner is None else owner.uid
    except Stale:
        return None
