"""Quotas in tests: what an admin says of them and is told, and what users really have in a store.

The latter is counted here by code of its own, from the words of the documentation, so that ckfs does not check itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.support.commands import ckfs_as_root
from tests.support.gluster_cluster import SERVICE, Cluster
from tests.support.ledgers import Policy, rewrite_policy
from tests.support.mounting import Mount, make_store, mounted
from tests.support.users import as_user

UNIT = 4096
"""What the file systems under the tests allocate at a time."""
LIMIT_S = 30.0
"""Seconds for the ledger to hear what has happened: a fraction of one, on a machine that has nothing else to do."""

T = TypeVar("T")
_uids = itertools.count(3001)
_places = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Charge:
    """What somebody is charged with."""

    bytes: int
    files: int

    def __add__(self, other: Charge) -> Charge:
        return Charge(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Charge) -> Charge:
        return Charge(self.bytes - other.bytes, self.files - other.files)


NOTHING = Charge(0, 0)
DIRECTORY = Charge(UNIT, 1)
EMPTY_FILE = Charge(0, 1)


def in_units(size: int) -> int:
    """*size* bytes, rounded up to whole units."""
    return -(-size // UNIT) * UNIT


def charged(store: Path, uid: int) -> Charge:
    """What *uid* has at rest in *store*: in his sets and in his trash."""
    total, seen = NOTHING, set[int]()
    for top in ("users", "trash"):
        for path in _below(store / top / str(uid)):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += _charge_of(path, status)
    return total


def _below(top: Path) -> Iterator[str]:
    for directory, names, files in os.walk(top):
        yield from (os.path.join(directory, name) for name in (*names, *files))


def _charge_of(path: str, status: os.stat_result) -> Charge:
    is_directory = stat.S_ISDIR(status.st_mode)
    content = UNIT if is_directory else min(in_units(status.st_blocks * 512), _data_in(path, status.st_size))
    attributes = 0
    for name in os.listxattr(path, follow_symlinks=False):
        if name.startswith("user.") and name.split(".")[1] != "ckfs":
            attributes += len(os.fsencode(name)) + len(os.getxattr(path, name, follow_symlinks=False))
    return Charge(content + in_units(attributes), 1)


def _data_in(path: str, size: int) -> int:
    """Bytes of the units of a file that are no holes: what is not among its blocks is the file system's own."""
    units, offset = set[int](), 0
    with open(path, "rb") as file, contextlib.suppress(OSError):  # ENXIO: nothing but a hole from there on
        while offset < size:
            begin = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            offset = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            units.update(range(begin // UNIT, in_units(offset) // UNIT))
    return len(units) * UNIT


@dataclass(frozen=True, slots=True)
class Standing:
    """What ``ckfs quota`` says of one owner."""

    used: Charge
    claimed: Charge
    trash_bytes: int
    row: dict[str, Any]

    @property
    def total(self) -> Charge:
        return self.used + self.claimed


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quotas of a store, by the commands of an admin. *at* is what these are told: the store, or a mount of it."""

    store: Path
    at: Path

    def __post_init__(self) -> None:
        assert os.statvfs(self.store).f_frsize == UNIT

    def say(self, *arguments: str | int) -> str:
        """``ckfs quota ARGUMENTS``, which must succeed: what it prints."""
        return ckfs_as_root("quota", *map(str, arguments), "--store", self.at)

    def limit(self, uid: int, **limits: str | int) -> None:
        """As ``ckfs quota set UID --soft … --hard …``."""
        self.say("set", uid, *_options(limits))

    def limit_others(self, **limits: str | int) -> None:
        self.say("default", *_options(limits))

    def standing(self, uid: int) -> Standing:
        (row,) = json.loads(self.say("--json", uid))["owners"]
        return Standing(
            Charge(row["used_bytes"], row["used_files"]),
            Charge(row["claimed_bytes"], row["claimed_files"]),
            row["trash_bytes"],
            row,
        )

    def settled(self, uid: int) -> Charge:
        """What *uid* has, as soon as the ledger says the same as the store."""
        until(
            lambda: self.standing(uid).used == charged(self.store, uid),
            lambda: f"uid {uid} has {charged(self.store, uid)}, and the ledger says {self.standing(uid)}",
        )
        return charged(self.store, uid)

    def all_given_back(self) -> None:
        """Mounts claim nothing any more, as soon as they have had nothing to do for a moment."""
        until(lambda: not self._claims(), lambda: f"still claimed: {self._claims()}")

    def _claims(self) -> list[dict[str, Any]]:
        rows = json.loads(self.say("--json"))["owners"]
        return [row for row in rows if row["claimed_bytes"] or row["claimed_files"]]

    def check(self) -> None:
        """``ckfs quota check`` finds nothing."""
        self.say("check", "--json")


def _options(limits: dict[str, str | int]) -> list[str]:
    return [part for name, value in limits.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def until(done: Callable[[], bool], still: Callable[[], str], limit_s: float = LIMIT_S) -> None:
    """Wait until *done*; if that takes too long, fail with what is *still* so."""
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, still()
        time.sleep(0.02)


@dataclass(slots=True)
class Payer:
    """A user who has a set on a mount, and a quota."""

    uid: int
    mount: Mount
    quotas: Quotas
    hard_bytes: int | None = None
    hard_files: int | None = None

    @property
    def path(self) -> str:
        """His set's directory."""
        return f"{self.mount.path}/set-{self.uid}"

    def inside(self, name: str) -> str:
        return f"{self.path}/{name}"

    def calls(self, fn: Callable[..., T], *args: object) -> T:
        """``fn(*args)`` as he."""
        return as_user(self.uid, fn, *args)

    def may_add(self, bytes: int | None = None, files: int | None = None) -> None:  # noqa: A002 - as in Charge
        """From now on his hard limits are what he has, and so much more; None is no limit."""
        has = self.quotas.settled(self.uid)
        self.hard_bytes = None if bytes is None else has.bytes + bytes
        self.hard_files = None if files is None else has.files + files
        self.quotas.limit(self.uid, hard=_or_none(self.hard_bytes), files=_or_none(self.hard_files))
        until(self._is_within, lambda: f"uid {self.uid} has more than that: {self.quotas.standing(self.uid)}")

    def _is_within(self) -> bool:
        """Mounts have given back what they had been granted without these limits."""
        total = self.quotas.standing(self.uid).total
        return (self.hard_bytes is None or total.bytes <= self.hard_bytes) and (
            self.hard_files is None or total.files <= self.hard_files
        )

    def has(self) -> Charge:
        """What he is charged with, once it is settled; never more than his limits."""
        has = self.quotas.settled(self.uid)
        assert self.hard_bytes is None or has.bytes <= self.hard_bytes
        assert self.hard_files is None or has.files <= self.hard_files
        return has

    @property
    def room(self) -> int:
        """The bytes that he may add yet, once all is settled."""
        assert self.hard_bytes is not None
        return self.hard_bytes - self.has().bytes


def _or_none(limit: int | None) -> str | int:
    return "none" if limit is None else limit


def new_payer(mount: Mount, quotas: Quotas, mode: int = 0o700) -> Payer:
    """Somebody whom no other test knows, with an empty set."""
    payer = Payer(next(_uids), mount, quotas)
    payer.calls(_make_directory, payer.path, mode)
    return payer


def _make_directory(path: str, mode: int) -> None:
    os.mkdir(path)
    os.chmod(path, mode)


@dataclass(frozen=True, slots=True)
class Place:
    """A store with a mount, and its quotas. *keeper* pays for what is root's: root, or where he is squashed who keeps the store."""

    store: Path
    mount: Mount
    quotas: Quotas
    keeper: int = 0
    has_rename_flags: bool = True
    """Whether the store's file system knows those of renameat2: docs/glusterfs.md."""


@contextlib.contextmanager
def paying(place: Place) -> Iterator[Payer]:
    """Somebody whom no other test knows. When the block is over, usage is what lies in the store."""
    payer = new_payer(place.mount, place.quotas)
    yield payer
    payer.has()


@contextlib.contextmanager
def ledger_in(directory: Path) -> Iterator[None]:
    """Mounts and commands keep what this host knows of stores in *directory*, and not where an admin's ckfs has it."""
    before = os.environ.get("CKFS_STATE_DIR")
    os.environ["CKFS_STATE_DIR"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CKFS_STATE_DIR"]
        else:
            os.environ["CKFS_STATE_DIR"] = before


def private_store(directory: Path) -> Path:
    """A new store below a directory of root's."""
    private = directory / "private"
    private.mkdir(mode=0o700)
    return make_store(private)


class MakePlace(Protocol):
    """Makes a place somewhere: :func:`place_in` on a local disk, :func:`place_on` on a cluster."""

    def __call__(
        self, *, policy: Policy = ..., options: Sequence[str] = ..., may_log: Sequence[str] = ...
    ) -> contextlib.AbstractContextManager[Place]: ...


@contextlib.contextmanager
def place_on(
    cluster: Cluster, directory: Path, ledger: Policy, *, policy: Policy = str, **options: Any
) -> Iterator[Place]:
    """As :func:`place_in`, on a volume that squashes root, mounted by one of the cluster's hosts. What lies in the store is looked at
    by its admin, on a storage server."""
    name = cluster.make_store()
    kept, mountpoint = cluster.kept / name, directory / f"place-{next(_places)}"
    rewrite_policy(kept, lambda text: ledger(policy(text)))
    with cluster.hosts[0].mounts(name, mountpoint, **options) as mount:
        keeper = pwd.getpwnam(SERVICE).pw_uid
        place = Place(kept, mount, Quotas(kept, mount.path), keeper, has_rename_flags=False)
        yield place
        place.quotas.all_given_back()
        place.quotas.check()


@contextlib.contextmanager
def place_in(
    directory: Path, ledger: Policy = str, *, policy: Policy = str, **options: Any
) -> Iterator[Place]:
    """A new store in *directory* with a mount, whose policy is what *policy* and then *ledger* make of the default; *options* are those of
    :func:`mounted`. At the end a recount finds nothing but what the ledger says."""
    own = directory / f"place-{next(_places)}"
    own.mkdir(mode=0o711)
    with ledger_in(own / "state"):
        store = private_store(own)
        rewrite_policy(store, lambda text: ledger(policy(text)))
        with mounted(store, own / "mount", **options) as mount:
            place = Place(store, mount, Quotas(store, mount.path))
            yield place
            place.quotas.all_given_back()
            place.quotas.check()
