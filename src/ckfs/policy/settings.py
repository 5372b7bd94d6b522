"""The cluster-wide policy, as read from ``policy.toml`` at the store's root.

All mounts of a store read the same file and take changes up while they run; what differs per host is a mount option.
"""

from __future__ import annotations

import enum
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate

from ckfs.errors import StoreUnusable
from ckfs.names import shown
from ckfs.policy import enforcing, further
from ckfs.policy.enforcing import Away, QuotaMode, QuotaPolicy, Reserve
from ckfs.policy.further import FurtherStore

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
# Older complete ones go to the trash by themselves so many days after they were completed; 0 for only when room is needed.
superseded_days = 30.0
# Where server and mom share a host (role=both), root removes them only by these programs, named by path or last component.
removers = ["pbs_server"]
# What these programs of root's, named so too, are refused is routine: counted by itself, and summed up in the log.
moms = ["pbs_mom"]

[trash]
# Complete images that were removed, replaced or overwritten can be restored for so many days; 0 for no trash.
retention_days = 7.0
# When less than this part of the store is free, what is in the trash goes for good, the oldest first; 0 for not before a
# write finds no room.
keep_free_percent = 5.0

[gc]
# What "ckfs gc" takes for left behind. With true, the mount that keeps house moves it to the trash every few hours.
automatic = false
# Temporary files in batch sets that nobody has written to for so many hours; 0 for never.
temporary_hours = 24.0
# Batch sets that still belong to nobody, in which nothing has changed for so many days; 0 for never.
unclaimed_days = 7.0
# Batch sets whose job is gone, as a resolver says, in which nothing has changed for so many days; 0 for never.
job_gone_days = 14.0

[quota]
# Who sees to it that nobody has more than he may. A change of mode, ledger or engine takes effect with the next mount.
# "ledger": ckfs counts, and enforces exactly. "engine": the store's own file system does. "none": nobody does.
mode = "ledger"
# Where the ledger is: "embedded" in a file of this host (then no other host may mount the store), or how PostgreSQL is
# reached, as libpq takes it, such as "host=db1 dbname=ckfs". Passwords belong into root's ~/.pgpass or a service file.
ledger = "embedded"
# What a write gets while the ledger cannot be reached and what was granted before is used up: "EDQUOT" or "EIO".
away = "EIO"
# The file system with mode "engine": "auto" or one of btrfs, xfs, ext4, lustre, cephfs, glusterfs, statvfs.
engine = "auto"
# This much of the store is for root and for images that are being written already: a part ("5%") or an amount ("20G").
reserve = "5%"

[liveness]
# A mount that has shown no sign of life for so many seconds is taken for dead: what it was writing is partial until it returns.
lease = 60.0
# After so many hours it is dead for good: what it was writing is settled, and its writers get errors if it should return.
fence_hours = 24.0

[resolvers]
# Who is a job's owner? Asked on the host where a batch set is made or used; the first answer counts.
# TORQUE's home, for its job files in server_priv/jobs and mom_priv/jobs; "" to ask no job files.
torque_home = "/var/spool/torque"
# A command that gets the job id as its last argument and prints the owner's name or uid; [] for none. It ends with
# status 44 if there is no such job any more.
command = []
# Seconds that the command may take.
command_timeout = 5.0

# Further stores, which only some hosts reach: a new set goes to the first of these that its host reaches and that has room, else
# to this store. Made by "ckfs init PATH --for THIS_STORE", which prints the id; see docs/stores.md. For each:
# [[stores]]
# name = "fast"
# path = "/fastnfsstorage/ckfs"
# id = "..."
# hosts = ["node*"]
"""

_MODE_LINE = '\nmode = "{}"\n'


def default_text(mode: QuotaMode) -> str:
    """The policy of a new store."""
    return DEFAULT_TEXT.replace(_MODE_LINE.format("ledger"), _MODE_LINE.format(mode.value), 1)


_TABLES = ("sets", "images", "protection", "trash", "gc", "quota", "liveness", "resolvers")
_STORES = "stores"
_HOUR_S = 3600.0
_DAY_S = 86_400.0
_LEASES_BEFORE_FENCE = 4


@dataclass(frozen=True, slots=True)
class Collecting:
    """When something counts as left behind, in seconds without a change; 0 for never."""

    automatic: bool
    temporary_s: float
    unclaimed_s: float
    job_gone_s: float


@dataclass(frozen=True, slots=True)
class Policy:
    """Patterns are compiled shell patterns over whole names, case-sensitive, in bytes."""

    batch: tuple[re.Pattern[bytes], ...]
    temporary: tuple[re.Pattern[bytes], ...]
    keep: int
    superseded_s: float
    """From when it was completed, until a superseded checkpoint goes by itself; 0 for never."""
    removers: tuple[str, ...]
    moms: tuple[str, ...]
    retention_s: float
    keep_free: float
    """The part of the store (of 1) that the trash leaves free."""
    gc: Collecting
    quota: QuotaPolicy
    lease_s: float
    fence_s: float
    torque_home: str
    resolver_command: tuple[str, ...]
    resolver_command_timeout_s: float
    stores: tuple[FurtherStore, ...] = ()
    """Further ones, in the order in which new sets go there."""

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
    _check_keys("", tables, (*_TABLES, _STORES))
    sets, images, protection, trash, gc, quota, liveness, resolvers = (
        _table(tables, name) for name in _TABLES
    )
    _check_keys("sets.", sets, ("batch",))
    _check_keys("images.", images, ("temporary",))
    _check_keys("protection.", protection, ("keep", "superseded_days", "removers", "moms"))
    _check_keys("trash.", trash, ("retention_days", "keep_free_percent"))
    _check_keys("gc.", gc, ("automatic", "temporary_hours", "unclaimed_days", "job_gone_days"))
    _check_keys("quota.", quota, ("mode", "ledger", "away", "engine", "reserve"))
    _check_keys("liveness.", liveness, ("lease", "fence_hours"))
    _check_keys("resolvers.", resolvers, ("torque_home", "command", "command_timeout"))
    lease_s = _seconds("liveness.lease", liveness.get("lease", 60.0))
    return Policy(
        batch=_patterns("sets.batch", sets.get("batch", ["*.CK", "*.CK.old"])),
        temporary=_patterns("images.temporary", images.get("temporary", [".*", "*.tmp", "*.temp", "*.part"])),
        keep=_count("protection.keep", protection.get("keep", 2)),
        superseded_s=_days("protection.superseded_days", protection.get("superseded_days", 30.0)),
        removers=_texts("protection.removers", protection.get("removers", ["pbs_server"])),
        moms=_texts("protection.moms", protection.get("moms", ["pbs_mom"])),
        retention_s=_days("trash.retention_days", trash.get("retention_days", 7.0)),
        keep_free=_percent("trash.keep_free_percent", trash.get("keep_free_percent", 5.0)),
        gc=Collecting(
            automatic=_switch("gc.automatic", gc.get("automatic", False)),
            temporary_s=_hours("gc.temporary_hours", gc.get("temporary_hours", 24.0)),
            unclaimed_s=_days("gc.unclaimed_days", gc.get("unclaimed_days", 7.0)),
            job_gone_s=_days("gc.job_gone_days", gc.get("job_gone_days", 14.0)),
        ),
        quota=QuotaPolicy(
            mode=QuotaMode(_choice("quota.mode", quota.get("mode", "ledger"), _names(QuotaMode))),
            ledger=_ledger("quota.ledger", quota.get("ledger", enforcing.EMBEDDED)),
            away=Away(_choice("quota.away", quota.get("away", "EIO"), _names(Away))),
            engine=_choice(
                "quota.engine",
                quota.get("engine", enforcing.AUTO),
                (enforcing.AUTO, *enforcing.ENGINES),
            ),
            reserve=_reserve("quota.reserve", quota.get("reserve", "5%")),
        ),
        lease_s=lease_s,
        fence_s=_fence_s("liveness.fence_hours", liveness.get("fence_hours", 24.0), lease_s),
        torque_home=_text("resolvers.torque_home", resolvers.get("torque_home", "")),
        resolver_command=_texts("resolvers.command", resolvers.get("command", [])),
        resolver_command_timeout_s=_seconds(
            "resolvers.command_timeout", resolvers.get("command_timeout", 5.0)
        ),
        stores=further.parse(tables.get(_STORES, [])),
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


def _fence_s(key: str, value: object, lease_s: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 8760:
        raise StoreUnusable(f"policy.toml: {key} must be a number of hours above 0 and up to 8760")
    if value * 3600.0 < _LEASES_BEFORE_FENCE * lease_s:
        raise StoreUnusable(
            f"policy.toml: {key} must be at least {_LEASES_BEFORE_FENCE} times liveness.lease"
        )
    return value * 3600.0


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        raise StoreUnusable(f"policy.toml: {key} must be a whole number from 0 to 1000")
    return value


def _days(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3650:
        raise StoreUnusable(f"policy.toml: {key} must be a number of days from 0 to 3650")
    return value * _DAY_S


def _hours(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 87_600:
        raise StoreUnusable(f"policy.toml: {key} must be a number of hours from 0 to 87600")
    return value * _HOUR_S


def _percent(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 90:
        raise StoreUnusable(f"policy.toml: {key} must be a number from 0 to 90")
    return value / 100


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise StoreUnusable(f"policy.toml: {key} must be true or false")
    return value


def _names(kinds: type[enum.Enum]) -> tuple[str, ...]:
    return tuple(kind.value for kind in kinds)


def _choice(key: str, value: object, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise StoreUnusable(f"policy.toml: {key} must be one of {', '.join(known)}")
    return value


def _ledger(key: str, value: object) -> str:
    if not isinstance(value, str) or not (value == enforcing.EMBEDDED or enforcing.is_connection(value)):
        raise StoreUnusable(
            f'policy.toml: {key} must be "{enforcing.EMBEDDED}", or how PostgreSQL is reached, such as "host=db1 dbname=ckfs"'
        )
    if enforcing.has_password(value):
        raise StoreUnusable(
            f"policy.toml: {key} must not have a password, since every host reads it here: put it into root's ~/.pgpass"
            " or a service file on the hosts"
        )
    return value


def _reserve(key: str, value: object) -> Reserve:
    reserve = enforcing.reserve_of(value) if isinstance(value, str) else None
    if reserve is None:
        raise StoreUnusable(
            f'policy.toml: {key} must be a part of the store from "0%" to "90%", or an amount such as "20G"'
        )
    return reserve


def _patterns(key: str, value: object) -> tuple[re.Pattern[bytes], ...]:
    return tuple(re.compile(translate(text).encode(), re.DOTALL) for text in _texts(key, value))
