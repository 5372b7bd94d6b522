"""``ckfs status``: what a mount says of itself, from its memory, so that it answers while its store does not."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from dataclasses import asdict, dataclass

from ckfs.cli.mounted import mount_at
from ckfs.control.client import ask
from ckfs.control.protocol import Values
from ckfs.errors import CkfsError
from ckfs.names import shown


@dataclass(frozen=True, slots=True)
class Status:
    """As ``--json`` shows it. *store_since*: since when the store is up, or down (ISO 8601 with zone). Counts are since
    the mount began; refused are removals and changes of what is protected."""

    mountpoint: str
    version: str
    role: str
    node: str
    store: str
    store_up: bool
    store_since: str
    keep: int
    retention_days: float
    open_writers: int
    refused_to_moms: int
    refused_to_others: int
    trashed: int


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="a mount, or something on it")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    print_status(arguments.mountpoint, as_json=arguments.json)
    return 0


def print_status(path: str, *, as_json: bool) -> None:
    """Print the status of the mount at *path*. Raises CkfsError."""
    status = _status_of(path)
    if as_json:
        print(json.dumps(asdict(status), indent=1))
        return
    up = "up" if status.store_up else "down: calls fail until it answers"
    lines = {
        "mountpoint": status.mountpoint,
        "ckfs": f"{status.version}, as {status.role} {status.node}",
        "store": status.store,
        "store is": f"{up}, since {status.store_since}",
        "protected": f"the newest {status.keep} complete checkpoints of a batch set",
        "trash": f"kept for {status.retention_days:g} days; {status.trashed} items put there by this mount",
        "open writers": str(status.open_writers),
        "refused": f"{status.refused_to_others}, and {status.refused_to_moms} times to the batch system's mom, as usual",
    }
    for name, text in lines.items():
        print(f"{name + ':':<14}{text}")


def _status_of(path: str) -> Status:
    said: dict[str, object] = {}
    for values in ask(mount_at(path).device, "status", {}):
        said.update(values)
    return _understood(said, path)


def _understood(said: Values, path: str) -> Status:
    """What later versions say besides is passed over."""
    try:
        since_s = int(str(said["store_since_ns"])) // 1_000_000_000
        return Status(
            mountpoint=str(said["mountpoint"]),
            version=str(said["version"]),
            role=str(said["role"]),
            node=str(said["node"]),
            store=str(said["store"]),
            store_up=said["store_up"] is True,
            store_since=dt.datetime.fromtimestamp(since_s).astimezone().isoformat(),
            keep=int(str(said["keep"])),
            retention_days=float(str(said["retention_s"])) / 86_400,
            open_writers=int(str(said["open_writers"])),
            refused_to_moms=int(str(said["refused_to_moms"])),
            refused_to_others=int(str(said["refused_to_others"])),
            trashed=int(str(said["trashed"])),
        )
    except (KeyError, ValueError):
        raise CkfsError(f"{shown(path)}: the mount's daemon is of another version of ckfs") from None
