"""Stores of the in-process tests on what behaves like NFS with root squashed (:mod:`tests.support.nfsfs`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.store.layout import initialise
from tests.fs.cores import new_store
from tests.support.nfs import NfsStore, directory_for, nfs_store

KEEPER = Owner(Uid(2190), Gid(2190))
"""The account that keeps the store."""


def store_on(nfs: NfsStore) -> list[Path]:
    """A new store, as each client sees it."""
    directory_for(nfs, KEEPER.uid, KEEPER.gid)
    paths = [client.path / "store" for client in nfs.clients]
    assert initialise(str(paths[0]), KEEPER)
    return paths


@contextlib.contextmanager
def new_place(kind: str, directory: Path) -> Iterator[Path]:
    """A new store: *kind* is "plain" or "nfs"."""
    if kind == "plain":
        yield new_store(directory)
        return
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse, to mount what behaves like NFS")
    with nfs_store(directory) as nfs:
        yield store_on(nfs)[0]


def on_server(path: Path) -> Path:
    """The store at *path* where root may look into it."""
    is_client = path.parent.name.startswith("client")
    return path.parent.parent / "backing" / path.name if is_client else path
