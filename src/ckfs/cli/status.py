"""``ckfs status``: what a mount says of itself, from its memory, so that it answers while its store does not.

Neither the store nor the mount is asked anything here, only the kernel's list of mounts and the daemon.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Iterator

from ckfs.cli.mounted import mount_above
from ckfs.control.client import Unanswered, ask
from ckfs.control.protocol import Values
from ckfs.errors import CkfsError, NotMounted, StoreUnusable
from ckfs.names import shown
from ckfs.policy.sizes import shown_size

_SILENCE_S = 5.0
"""A daemon that lives answers from its memory."""
_PROTECTED_FROM = {
    "off": "nothing",
    "everybody": "from everybody",
    "all but root": "from all but root",
    "all but removers": "from all but root's removers",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="a mount, or something on it")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    return print_status(arguments.mountpoint, as_json=arguments.json)


def print_status(path: str, *, as_json: bool) -> int:
    """Print the status of the mount at *path*; returns the exit status. NotMounted if there is none, or nobody serves it."""
    said = _answer(path)
    try:
        status = dict(_understood(said))
        text = json.dumps(status, indent=1) if as_json else _lines(status)
    except (KeyError, ValueError, TypeError):
        raise CkfsError(f"{shown(path)}: the mount's daemon is of another version of ckfs") from None
    print(text)
    return 0 if is_well(status) else StoreUnusable.exit_status


def is_well(status: Values) -> bool:
    """Whether the store is up, and the ledger there, if there is to be one."""
    ledger = status["ledger"]
    return status["store_up"] is True and (not isinstance(ledger, dict) or ledger["reachable"] is True)


def _answer(path: str) -> Values:
    mount = mount_above(path)
    if mount is None:
        raise NotMounted(f"{shown(path)}: not on a ckfs mount")
    said: dict[str, object] = {}
    try:
        for values in ask(mount.device, "status", {}, silence_s=_SILENCE_S):
            said.update(values)
    except Unanswered as error:
        raise NotMounted(f"{shown(path)}: {error}") from None
    return said


def _understood(said: Values) -> Iterator[tuple[str, object]]:
    """As ``--json`` shows it: times in words (ISO 8601, with zone), retention in days."""
    for key, value in said.items():
        if key == "retention_s":
            yield "retention_days", float(str(value)) / 86_400
        elif key == "last_error_ns":
            yield "last_error_at", None if value is None else _time(value)
        elif key == "ledger" and isinstance(value, dict):
            yield key, dict(_understood(value))
        elif key.endswith("_ns"):
            yield key.removesuffix("_ns"), _time(value)
        else:
            yield key, value


def _time(value: object) -> str:
    return dt.datetime.fromtimestamp(int(str(value)) // 1_000_000_000).astimezone().isoformat()


# For people


def _transport(status: Values) -> str:
    return f"{status['transport']}, with passthrough" if status["passthrough"] else str(status["transport"])


def _lines(status: Values) -> str:
    lines = {
        "mountpoint": f"{status['mountpoint']}{', read-only' if status['read_only'] else ''}",
        "ckfs": f"{status['version']}, as {status['role']} {status['node']}, by {_transport(status)}",
        "store": f"{status['store']} ({status['store_id']})",
        "store is": f"{_up(status)}, since {status['store_since']}",
        "quotas": _quotas(status),
        "other hosts": _others(status),
        "last error": f"{status['last_error']}, {status['last_error_at']}"
        if status["last_error"]
        else "none",
        "protected": _protected(status),
        "trash": f"kept for {status['retention_days']:g} days; {status['trashed']} items put there by this mount",
        "open": f"{status['open_handles']} files, {status['open_writers']} of them for writing",
        "written": f"{shown_size(int(str(status['bytes_written'])))} in {status['sets_written']} sets",
        "read": f"{shown_size(int(str(status['bytes_read'])))} in {status['sets_read']} sets",
        "refused": f"{status['refused_to_others']}, and {status['refused_to_moms']} times to the batch system's mom, as usual",
    }
    further = [("store " + str(one["name"]), _further(one)) for one in _tables(status["further_stores"])]
    return "\n".join(f"{name + ':':<14}{text}" for name, text in (*lines.items(), *further))


def _tables(value: object) -> list[Values]:
    return value if isinstance(value, list) else []


def _further(store: Values) -> str:
    if store["reached"]:
        return f"{store['path']}, reached; {shown_size(int(str(store['free_bytes'])))} free"
    return f"not reached: {store['why']}"


def _up(status: Values) -> str:
    hung = f"; {status['hung_threads']} calls hang in it" if status["hung_threads"] else ""
    return f"{'up' if status['store_up'] else 'down: calls fail until it answers'}{hung}"


def _quotas(status: Values) -> str:
    ledger = status["ledger"]
    if isinstance(ledger, dict):
        there = "reachable" if ledger["reachable"] else "out of reach"
        return f"ledger ({ledger['kind']}), {there}, since {ledger['since']}; asked last {ledger['asked']}"
    return f"by the store's engine, {status['engine']}" if status["engine"] else "none"


def _others(status: Values) -> str:
    """How late this host sees what they do."""
    seen = status["coherence"]
    if not isinstance(seen, dict):
        return "whether what they do is seen at once is not known: no other host's mount has been asked"
    if seen["is_late"]:
        return (
            f"what they do is seen {seen['late_s']:.1f} s late, as tried with {seen['node']}: {seen['mend']}"
        )
    return f"what they do is seen at once, as tried with {seen['node']}"


def _protected(status: Values) -> str:
    whom = _PROTECTED_FROM.get(str(status["protection"]), str(status["protection"]))
    if status["protection"] == "off":
        return whom
    return f"the newest {status['keep']} complete checkpoints of a batch set, {whom}"
