"""The cluster-wide policy, as read from ``policy.toml`` at the store's root.

All mounts of a store read the same file and take changes up while they run; what differs per host is a mount option.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate

from ckfs.errors import StoreUnusable
from ckfs.names import shown

DEFAULT_TEXT = """\
# The policy of this ckfs store. Every mount of the store reads it, and takes changes up within seconds.
# A mistake in it is logged and refused: the mounts go on with the last good policy.

[sets]
# Names of batch sets: top-level entries that a batch system manages. Only root makes them, or the job's owner.
batch = ["*.CK", "*.CK.old"]

[images]
# Names that are not final: an image under such a name is still being written, even when nobody has it open.
temporary = [".*", "*.tmp", "*.temp", "*.part"]

[protection]
# In each batch set the newest complete checkpoints are kept from removal and change, this many of them; 0 for none.
keep = 2
# Where server and mom share a host (role=both), root removes them only by these programs, named by path or last component.
removers = ["pbs_server"]
# What these programs of root's, named so too, are refused is routine: counted by itself, and summed up in the log.
moms = ["pbs_mom"]

[trash]
# Complete images that were removed, replaced or overwritten can be restored for so many days; 0 for no trash.
retention_days = 7.0

[resolvers]
# Who is a job's owner? Asked on the host where a batch set is made or used; the first answer counts.
# TORQUE's home, for its job files in server_priv/jobs and mom_priv/jobs; "" to ask no job files.
torque_home = "/var/spool/torque"
# A command that gets the job id as its last argument and prints the owner's name or uid; [] for none.
command = []
# Seconds that the command may take.
command_timeout = 5.0
"""

_TABLES = ("sets", "images", "protection", "trash", "resolvers")
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Patterns are compiled shell patterns over whole names, case-sensitive, in bytes."""

    batch: tuple[re.Pattern[bytes], ...]
    temporary: tuple[re.Pattern[bytes], ...]
    keep: int
    removers: tuple[str, ...]
    moms: tuple[str, ...]
    retention_s: float
    torque_home: str
    resolver_command: tuple[str, ...]
    resolver_command_timeout_s: float

    def is_batch(self, set_name: bytes) -> bool:
        """A batch system manages sets of this name."""
        return any(pattern.fullmatch(set_name) for pattern in self.batch)

    def is_final(self, name: bytes) -> bool:
        """An image of this name is meant to stay under it."""
        return not any(pattern.fullmatch(name) for pattern in self.temporary)


def parse(text: str) -> Policy:
    """The policy in *text*. Raises StoreUnusable, naming the key and the rule, for anything that it does not know."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StoreUnusable(f"policy.toml is not valid TOML: {shown(str(error))}") from None
    _check_keys("", tables, _TABLES)
    sets, images, protection, trash, resolvers = (_table(tables, name) for name in _TABLES)
    _check_keys("sets.", sets, ("batch",))
    _check_keys("images.", images, ("temporary",))
    _check_keys("protection.", protection, ("keep", "removers", "moms"))
    _check_keys("trash.", trash, ("retention_days",))
    _check_keys("resolvers.", resolvers, ("torque_home", "command", "command_timeout"))
    return Policy(
        batch=_patterns("sets.batch", sets.get("batch", ["*.CK", "*.CK.old"])),
        temporary=_patterns("images.temporary", images.get("temporary", [".*", "*.tmp", "*.temp", "*.part"])),
        keep=_count("protection.keep", protection.get("keep", 2)),
        removers=_texts("protection.removers", protection.get("removers", ["pbs_server"])),
        moms=_texts("protection.moms", protection.get("moms", ["pbs_mom"])),
        retention_s=_days("trash.retention_days", trash.get("retention_days", 7.0)),
        torque_home=_text("resolvers.torque_home", resolvers.get("torque_home", "")),
        resolver_command=_texts("resolvers.command", resolvers.get("command", [])),
        resolver_command_timeout_s=_seconds(
            "resolvers.command_timeout", resolvers.get("command_timeout", 5.0)
        ),
    )


def _check_keys(prefix: str, table: Mapping[str, object], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise StoreUnusable(
                f"policy.toml: unknown key {prefix}{shown(key)}; known here: {', '.join(known)}"
            )


def _table(tables: Mapping[str, object], name: str) -> Mapping[str, object]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise StoreUnusable(f"policy.toml: {name} must be a table, written [{name}]")
    return table


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise StoreUnusable(f"policy.toml: {key} must be a list of non-empty strings")
    return tuple(value)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise StoreUnusable(f"policy.toml: {key} must be a string")
    return value


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise StoreUnusable(f"policy.toml: {key} must be a number of seconds above 0 and up to 3600")
    return float(value)


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        raise StoreUnusable(f"policy.toml: {key} must be a whole number from 0 to 1000")
    return value


def _days(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3650:
        raise StoreUnusable(f"policy.toml: {key} must be a number of days from 0 to 3650")
    return value * _DAY_S


def _patterns(key: str, value: object) -> tuple[re.Pattern[bytes], ...]:
    return tuple(re.compile(translate(text).encode(), re.DOTALL) for text in _texts(key, value))
