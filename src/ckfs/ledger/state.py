"""What a host keeps of its own: its state directory, which host it is, and the embedded ledgers of its stores.

::

    STATE/                   0700, root's: /var/lib/ckfs, $CKFS_STATE_DIR, or the mount option state=
      host                   the host's id, where it has no /etc/machine-id
      <store id>/
        ledger.sqlite        the ledger (and what SQLite puts beside it)
        ledger.sqlite.damaged  an earlier one that could not be used
        boots                the boot ids of this host's kernels under which the store was mounted
        lock                 held while the ledger is opened, and made anew if need be
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckfs.errors import StoreUnusable
from ckfs.names import shown

DEFAULT = "/var/lib/ckfs"
VARIABLE = "CKFS_STATE_DIR"
_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ID = re.compile(r"[0-9a-f]{32}")
_STORE_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_MOST_BOOTS = 200
_BETWEEN_TRIES_S = 0.1
_SAY_AFTER_S = 2.0


def state_directory(chosen: str | None) -> Path:
    """*chosen* by a mount option, or what the environment says, or the default."""
    return Path(chosen or os.environ.get(VARIABLE) or DEFAULT)


def host_id(state: Path) -> str:
    """What tells this host from all others: 32 hexadecimal digits. StoreUnusable if there is none, and none can be kept."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = _MACHINE_ID.read_text("ascii").strip()
        if _ID.fullmatch(text):
            return text
    _make_private(state)
    kept = state / "host"
    with _usable(kept):
        with contextlib.suppress(FileExistsError):
            _write_new(kept, secrets.token_hex(16) + "\n")
        text = kept.read_text("ascii", "replace").strip()
    if not _ID.fullmatch(text):
        raise StoreUnusable(f"{shown(str(kept))}: not the id of a host, 32 hexadecimal digits: remove it")
    return text


def boot_id() -> str:
    """Of the running kernel."""
    return _BOOT_ID.read_text("ascii").strip()


@dataclass(frozen=True, slots=True)
class StoreState:
    """What the host keeps for one store."""

    directory: Path

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.sqlite"

    def boots(self) -> set[str]:
        """Under which kernels of this host the store was mounted. All but the running one have ended, with all their mounts."""
        with _usable(self.directory):
            try:
                return set((self.directory / "boots").read_text("ascii", "replace").split())
            except FileNotFoundError:
                return set()

    def note_boot(self) -> None:
        """The store is mounted under the running kernel. By who holds the lock."""
        boots, here = self.boots(), boot_id()
        if here in boots:
            return
        with _usable(self.directory):
            path = self.directory / "boots"
            lines = path.read_text("ascii", "replace").split() if boots else []
            _write_over(path, "".join(f"{boot}\n" for boot in [*lines[-_MOST_BOOTS:], here]))

    def put_damaged_aside(self) -> Path:
        """Make place for a new ledger; returns where the old one is now, for whoever wants to look into it."""
        aside = self.ledger.with_name(self.ledger.name + ".damaged")
        with _usable(self.directory):
            for suffix in ("", "-wal", "-shm"):
                source = self.ledger.with_name(self.ledger.name + suffix)
                target = aside.with_name(aside.name + suffix)
                target.unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    source.rename(target)
        return aside

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Alone on this host, until the block ends or the process does. *waiting* is told, once, if that takes time."""
        with self._open("lock") as file:
            began_s, said = time.monotonic(), False
            while not _try_lock(file):
                if not said and time.monotonic() - began_s > _SAY_AFTER_S:
                    said = True
                    waiting()
                time.sleep(_BETWEEN_TRIES_S)
            yield

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with _usable(self.directory):
            fd = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)


def state_of_store(state: Path, store_id: str) -> StoreState:
    """Where the host keeps what belongs to the store; made if it is missing. StoreUnusable if others could meddle with it."""
    if not _STORE_ID.fullmatch(store_id):
        raise StoreUnusable(
            f"the store's id {shown(store_id)} is none that ckfs gives: restore its ckfs.toml"
        )
    _make_private(state)
    directory = state / store_id
    _make_private(directory)
    return StoreState(directory)


def _make_private(directory: Path) -> None:
    with _usable(directory):
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise StoreUnusable(
            f"{shown(str(directory))}: not a directory, and ckfs keeps its state there: name another with state="
        )
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreUnusable(
            f"{shown(str(directory))}: others than root may write there, and ckfs keeps its ledgers there: give it to root, mode 0700"
        )


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable(
            f"{shown(str(path))}: ckfs cannot keep its state there: {error.strerror}: name another directory with state="
        ) from None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_new(path: Path, text: str) -> None:
    """Whole, or not at all; FileExistsError if it is there."""
    with _written(path, text) as temporary:
        os.link(temporary, path)


def _write_over(path: Path, text: str) -> None:
    with _written(path, text) as temporary:
        temporary.rename(path)


@contextlib.contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
