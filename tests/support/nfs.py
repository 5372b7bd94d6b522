"""NFS-like stores for tests: a server's directory, and clients of it (:mod:`tests.support.nfsfs` says how they behave)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.faultfs import FaultStore, served
from tests.support.nfsfs import Options

_BACKING, _CLIENT = "backing", "client"
"""What a server's directory is called, and with a number behind it where a client has it mounted."""


@dataclass(frozen=True)
class NfsStore:
    """*backing* is the directory on the server, where root is root; the *clients*' paths are where it is mounted."""

    backing: Path
    clients: tuple[FaultStore, ...]
    limits_file: Path

    def limit(self, uid: int, limit_bytes: int | None) -> None:
        """The server's quota of *uid*; None for no limit."""
        limits = json.loads(self.limits_file.read_bytes())
        limits.pop(str(uid), None)
        if limit_bytes is not None:
            limits[str(uid)] = limit_bytes
        new = self.limits_file.with_suffix(".new")
        new.write_text(json.dumps(limits))
        new.replace(self.limits_file)


@contextlib.contextmanager
def nfs_store(
    tmp: Path,
    *,
    clients: int = 1,
    attributes_s: float = 0.0,
    negative: bool = True,
    unsent_bytes: int = 64 << 20,
    attributes: bool = True,
) -> Iterator[NfsStore]:
    """A server's directory below *tmp*, mounted by *clients*, each with the options of :class:`Options`."""
    backing, limits_file = tmp / _BACKING, tmp / "limits.json"
    backing.mkdir()
    backing.chmod(0o755)
    limits_file.write_text("{}")
    options = Options(str(limits_file), attributes_s, negative, unsent_bytes, attributes)
    told = json.dumps(dataclasses.asdict(options))
    with contextlib.ExitStack() as stack:
        mounts = [
            stack.enter_context(served("tests.support.nfsfs", backing, tmp / f"{_CLIENT}{number}", told))
            for number in range(clients)
        ]
        yield NfsStore(backing, tuple(mounts), limits_file)


def directory_for(nfs: NfsStore, uid: int, gid: int) -> Path:
    """What an admin makes on the server for a store: a directory that belongs to the account that keeps it."""
    return made_for(nfs.backing / "store", uid, gid)


def made_for(path: Path, uid: int, gid: int) -> Path:
    """As :func:`directory_for`, anywhere on a server: *path* may be a client's."""
    made = on_server(path)
    made.mkdir(mode=0o755)
    os.chown(made, uid, gid)
    return made


def on_server(path: Path) -> Path:
    """Where root may look at *path*, and change it: on the server, if it is a client's; else just there."""
    parts = [_BACKING if re.fullmatch(rf"{_CLIENT}\d+", part) else part for part in path.parts]
    return Path(*parts)


def on_client(path: Path) -> Path:
    """As :func:`on_server`, the other way round: where the first client has *path*, if that is a server's."""
    parts = [f"{_CLIENT}0" if part == _BACKING else part for part in path.parts]
    return Path(*parts)


def remove(path: Path) -> None:
    """Remove the directory *path*, on the server if it is a client's. That client's kernel is told to forget what it knows: the
    client's process keeps a descriptor of each such file."""
    shutil.rmtree(on_server(path))
    client = next((above for above in path.parents if re.fullmatch(rf"{_CLIENT}\d+", above.name)), None)
    if client is not None:
        subprocess.run(["mount", "-i", "-o", "remount", client], check=True)


def is_on_client(path: Path) -> bool:
    """Whether *path* is on what behaves like NFS, where root is nobody."""
    return on_server(path) != path
