"""Mount options: what differs per host."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from ckfs.errors import UsageError
from ckfs.model import Role
from ckfs.names import shown
from ckfs.policy import passing
from ckfs.store.volumes import NOT_HERE
from ckfs.transport.choosing import Wish

_LONGEST_NODE_NAME = 64
_LONGEST_REQUEST_S = 65_535

E = TypeVar("E", bound=Enum)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Timeouts in seconds. *service_user* None is root itself; *log_file* None is syslog, or stderr in front."""

    role: Role = Role.NODE
    node: str = field(default_factory=socket.gethostname)
    service_user: str | None = None
    op_timeout_s: float = 10.0
    io_timeout_s: float = 600.0
    read_only: bool = False
    reads_partial: bool = False
    log_file: str | None = None
    store_id: str | None = None
    """The one store that may be mounted; None is whichever lies there."""
    further: Mapping[str, str] = field(default_factory=dict)
    """Where this host has further stores, by name, if not where the policy says; "none": not at all."""
    state: str | None = None
    """The directory in which the host keeps its ledgers; None is the usual one."""
    transport: Wish = Wish.AUTO
    passthrough: passing.Wish = passing.Wish.AUTO
    request_timeout_s: int = 0
    """After which the kernel ends the mount if the daemon has not answered; 0 for never."""


KNOWN = (
    "role",
    "node",
    "store_id",
    "service_user",
    "op_timeout",
    "io_timeout",
    "ro",
    "rw",
    "partial",
    "log",
    "state",
    "transport",
    "passthrough",
    "request_timeout",
)
_FLAGS = ("ro", "rw", "partial")
_AT = "at."
"""Begins the option that says where this host has the further store whose name follows."""


def parse(given: list[str]) -> MountOptions:
    """Options as given with ``-o``, each a comma-separated list. Raises UsageError, naming the option and the rule."""
    values: dict[str, str] = {}
    for item in (item for text in given for item in text.split(",") if item):
        key, equals, value = item.partition("=")
        if key not in KNOWN and not key.startswith(_AT):
            raise UsageError(f"unknown mount option {shown(key)}; known are {', '.join(KNOWN)}, at.STORE")
        if bool(equals) == (key in _FLAGS):
            raise UsageError(
                f"mount option {key} takes no value"
                if equals
                else f"mount option {key} needs a value: {key}=VALUE"
            )
        values[key] = value
        if key in ("ro", "rw"):
            values.pop("rw" if key == "ro" else "ro", None)
    return MountOptions(
        role=_role(values.get("role", Role.NODE.value)),
        node=_node(values.get("node", socket.gethostname())),
        service_user=values.get("service_user"),
        op_timeout_s=_seconds("op_timeout", values.get("op_timeout", "10")),
        io_timeout_s=_seconds("io_timeout", values.get("io_timeout", "600")),
        read_only="ro" in values,
        reads_partial="partial" in values,
        log_file=values.get("log"),
        store_id=values.get("store_id"),
        further=_further(values),
        state=_directory("state", values.get("state")),
        transport=_wish(Wish, "transport", values.get("transport", "auto")),
        passthrough=_passthrough(values),
        request_timeout_s=_request_timeout(values),
    )


def _further(values: Mapping[str, str]) -> dict[str, str]:
    paths = {key.removeprefix(_AT): path for key, path in values.items() if key.startswith(_AT)}
    for name, path in paths.items():
        if path != NOT_HERE:
            _directory(_AT + name, path)
    return paths


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise UsageError(f"mount option role={shown(text)}: must be node, server or both") from None


def _passthrough(values: Mapping[str, str]) -> passing.Wish:
    wish = _wish(passing.Wish, "passthrough", values.get("passthrough", "auto"))
    if wish is passing.Wish.ON and values.get("transport") == Wish.PYFUSE3.value:
        raise UsageError(
            "mount option passthrough=on: needs transport=kernel or auto: pyfuse3 cannot pass through"
        )
    return wish


def _request_timeout(values: Mapping[str, str]) -> int:
    text, io_timeout = values.get("request_timeout", "0"), values.get("io_timeout", "600")
    seconds = int(text) if text.isascii() and text.isdecimal() else -1
    if seconds and not float(io_timeout) < seconds <= _LONGEST_REQUEST_S:
        raise UsageError(
            f"mount option request_timeout={shown(text)}: must be 0, for never, or a whole number of seconds"
            f" above io_timeout ({shown(io_timeout)}) and up to {_LONGEST_REQUEST_S}"
        )
    return seconds


def _wish(kind: type[E], key: str, text: str) -> E:
    try:
        return kind(text)
    except ValueError:
        *others, last = (wish.value for wish in kind)
        raise UsageError(f"mount option {key}={shown(text)}: must be {', '.join(others)} or {last}") from None


def _node(text: str) -> str:
    if not 0 < len(text) <= _LONGEST_NODE_NAME or not all(c.isalnum() or c in "._-" for c in text):
        raise UsageError(
            f"mount option node={shown(text)}: must be 1 to {_LONGEST_NODE_NAME} letters, digits, dots, dashes or underscores"
        )
    return text


def _directory(key: str, text: str | None) -> str | None:
    if text is not None and not text.startswith("/"):
        raise UsageError(f"mount option {key}={shown(text)}: must be a path from the root directory")
    return text


def _seconds(key: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise UsageError(
            f"mount option {key}={shown(text)}: must be a number of seconds above 0 and up to 86400"
        )
    return seconds
