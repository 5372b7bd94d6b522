"""This host, to commands that work on a store itself: where it keeps the store's ledger is what its mounts were told."""

from __future__ import annotations

import contextlib
import os

from ckfs.control.client import ask
from ckfs.daemon.mounting import mounts
from ckfs.errors import CkfsError
from ckfs.fs.ledgers import Host
from ckfs.ledger.state import state_directory
from ckfs.store import binding
from ckfs.store.binding import Kept
from ckfs.store.layout import Store

_SILENCE_S = 5.0
"""How long one daemon may say nothing: it answers from its memory."""


def host_of(store: Store, chosen: str | None = None) -> Host:
    """With the state directory *chosen*; else with that of a mount of *store* that lives here, which all mounts of a host share; else
    as for :func:`state_directory`."""
    if chosen is None and _is_in_a_file(store):
        chosen = _said_by_mounts(store.id)
    return Host.here(state_directory(chosen), os.uname().nodename)


def _is_in_a_file(store: Store) -> bool:
    bound = binding.read(store.root)
    return bound is not None and bound.kept is Kept.EMBEDDED


def _said_by_mounts(store_id: str) -> str | None:
    for device in dict.fromkeys(mount.device for mount in mounts() if mount.is_ckfs):
        # A mount may be dead, hang, or be of an earlier version: another may know.
        with contextlib.suppress(CkfsError):
            for said in ask(device, "state", {}, silence_s=_SILENCE_S):
                if said.get("store_id") == store_id and isinstance(said.get("directory"), str):
                    return str(said["directory"])
    return None
