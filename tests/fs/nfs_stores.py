"""Where the stores of the in-process tests lie: in a plain directory, or on what behaves like NFS with root squashed
(:mod:`tests.support.nfsfs`), where an account of its own keeps them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.cores import new_store
from tests.support.nfs import NfsStore, nfs_store


def store_on(nfs: NfsStore) -> list[Path]:
    """A new store, as each client sees it."""
    made = new_store(nfs.clients[0].path)
    return [client.path / made.name for client in nfs.clients]


@contextlib.contextmanager
def file_system_of(kind: str, directory: Path) -> Iterator[Path]:
    """A directory for stores, below *directory*: *kind* is "plain" or "nfs"."""
    if kind == "plain":
        yield directory
        return
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse, to mount what behaves like NFS")
    with nfs_store(directory) as nfs:
        yield nfs.clients[0].path


@contextlib.contextmanager
def new_place(kind: str, directory: Path) -> Iterator[Path]:
    """A new store: *kind* as for :func:`file_system_of`."""
    with file_system_of(kind, directory) as top:
        yield new_store(top)
