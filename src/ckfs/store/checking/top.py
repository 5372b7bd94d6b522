"""What lies right in a store's directory: without it nothing else can be looked at."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from functools import partial

from ckfs.errors import StoreUnusable
from ckfs.model import Owner
from ckfs.names import shown
from ckfs.store import layout
from ckfs.store.checking import mending, records
from ckfs.store.checking.findings import Finding, Kind, Suspect
from ckfs.store.checking.walking import Directory, Seen, look, owner_of
from ckfs.store.entries import USERS
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.layout import Store
from ckfs.store.namelinks import NAMES
from ckfs.store.realms import STAGING

NEEDED = (NAMES, USERS, STAGING)
"""Others are made when they are needed first."""
_FIRST = "nothing else can be looked at before it is there"
_SAYS_WHO = (b"ckfs.toml", NAMES, USERS, STAGING)


def keeper_of(path: str) -> Owner:
    """The account that keeps the store at *path*: whom the most of what it made belongs to."""
    owners: Counter[Owner] = Counter()
    for name in _SAYS_WHO:
        try:
            owners[owner_of(os.stat(os.path.join(os.fsencode(path), name), follow_symlinks=False))] += 1
        except OSError:
            continue
    return owners.most_common(1)[0][0] if owners else ROOT


def missing(path: str, keeper: Owner) -> Iterator[Suspect]:
    """Directories without which the store cannot be opened."""
    with Directory.at(path) as root:
        for name in NEEDED:
            try:
                is_directory = stat.S_ISDIR(root.status_of(name).st_mode)
            except FileNotFoundError:
                yield Suspect(Finding(Kind.TOP_MISSING, name, _FIRST), partial(_make, root, name, keeper))
            else:
                if not is_directory:
                    raise StoreUnusable(
                        f"{shown(path)}: {shown(name)} is no directory: move it away, then run fsck again"
                    )


def _make(root: Directory, name: bytes, keeper: Owner) -> str:
    """Its owner and mode are found wrong, if this dies in between."""
    with acting_as(keeper):
        os.mkdir(name, 0o700, dir_fd=root.fd)
        os.chmod(name, layout.directories()[name], dir_fd=root.fd)
    return Kind.TOP_MISSING.mending


def wrong(path: str, keeper: Owner) -> Iterator[Suspect]:
    """Owners, modes, and what is said of the mounts' root."""
    with Directory.at(path) as root:
        for name, mode in layout.directories().items():
            try:
                seen = look(root, name, [])
            except FileNotFoundError:
                continue
            if seen.is_directory:
                yield from _wrong_with(seen, keeper, mode)


def _wrong_with(seen: Seen, keeper: Owner, mode: int) -> Iterator[Suspect]:
    if seen.status.st_uid != keeper.uid:
        finding = Finding(Kind.TOP_OWNER, seen.name, f"to uid {seen.status.st_uid}, not {keeper.uid}")

        def give() -> str:
            mending.give(seen, keeper)
            return f"given to uid {keeper.uid}"

        yield Suspect(finding, give)
    if stat.S_IMODE(seen.status.st_mode) != mode:
        finding = Finding(
            Kind.TOP_MODE, seen.name, f"{stat.S_IMODE(seen.status.st_mode):04o}, not {mode:04o}"
        )

        def change() -> str:
            mending.change_mode(seen, mode)
            return f"given the mode {mode:04o}"

        yield Suspect(finding, change)
    if seen.name == NAMES and seen.refused is None:
        yield from _wrong_with_record(seen)


def _wrong_with_record(seen: Seen) -> Iterator[Suspect]:
    known = records.reading_of_root(seen.raw)
    if known is records.Trouble.NEWER:
        yield Suspect(Finding(Kind.RECORD_NEWER, seen.name))
    elif isinstance(known, records.Trouble):

        def put() -> str:
            mending.put_record(seen, layout.root_record())
            return Kind.TOP_RECORD.mending

        yield Suspect(Finding(Kind.TOP_RECORD, seen.name), put)


def policy(store: Store) -> Iterator[Suspect]:
    try:
        store.read_policy()
    except StoreUnusable as error:
        yield Suspect(Finding(Kind.POLICY, b"policy.toml", str(error)))
