"""A store that keeps less than POSIX promises, on purpose: clients that see each other late, names that several get, errors that come late.

As a program it takes the arguments of :mod:`tests.support.faultfs`, and then any of

- ``--kept=SECONDS``: how long the kernel believes what it knows of names and attributes, of those that are missing, too;
- ``--shared``: O_EXCL means nothing;
- ``--largest=BYTES``: of a file. What is written beyond it is lost, and close says EDQUOT;
- ``--silent``: not even that;
- ``--value=BYTES``: the largest value of an attribute.

Tests use :func:`loose_store`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyfuse3

from tests.support.faultfs import FaultFs, Faults, FaultStore, run, served


@dataclass(frozen=True)
class Loose:
    kept_s: float = 0.0
    shared: bool = False
    largest_bytes: int | None = None
    silent: bool = False
    value_bytes: int | None = None


def _loose(options: list[str]) -> Loose:
    said = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    return Loose(
        kept_s=float(said.get("kept", 0)),
        shared="shared" in said,
        largest_bytes=int(said["largest"]) if "largest" in said else None,
        silent="silent" in said,
        value_bytes=int(said["value"]) if "value" in said else None,
    )


class LooseFs(FaultFs):
    def __init__(self, backing: str, faults: Faults, loose: Loose) -> None:
        super().__init__(backing, faults)
        self._loose = loose
        self._lost: set[int] = set()

    def _attributes(self, st: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = super()._attributes(st)
        entry.entry_timeout = entry.attr_timeout = self._loose.kept_s
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            return await super().lookup(parent_inode, name, ctx)
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENOENT or not self._loose.kept_s:
                raise
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = self._loose.kept_s
            return missing

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        if self._loose.shared:
            flags &= ~os.O_EXCL
        return await super().create(parent_inode, name, mode, flags, ctx)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        if self._loose.value_bytes is not None and len(value) > self._loose.value_bytes:
            raise pyfuse3.FUSEError(errno.ENOSPC)
        await super().setxattr(inode, name, value, ctx)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        most = self._loose.largest_bytes
        if most is not None and off + len(buf) > most:
            self._lost.add(fh)
            return len(buf)
        return await super().write(fh, off, buf)

    async def flush(self, fh: int) -> None:
        await super().flush(fh)
        if fh in self._lost and not self._loose.silent:
            raise pyfuse3.FUSEError(errno.EDQUOT)

    async def release(self, fh: int) -> None:
        self._lost.discard(fh)
        await super().release(fh)


@contextlib.contextmanager
def loose_store(tmp: Path, *options: str, clients: int = 1) -> Iterator[list[FaultStore]]:
    """A directory below *tmp*, served on so many mount points with *options*."""
    backing = tmp / "backing"
    backing.mkdir()
    backing.chmod(0o755)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(served(__name__, backing, tmp / f"client{number}", *options))
            for number in range(clients)
        ]


def main(backing: str, mountpoint: str, control: str, *options: str) -> None:
    """Serve until the mount is taken away."""
    faults = Faults(squash=False)
    run(LooseFs(backing, faults, _loose(list(options))), faults, mountpoint, control)


if __name__ == "__main__":
    main(*sys.argv[1:])
