"""copy_file_range(2) between open files: the store copies, and it is a write to the target."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from functools import partial

from ckfs.errors import BadHandle, Invalid, NotDone, Stale
from ckfs.fs.charges import Claim
from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, stored_owner
from ckfs.fs.writing import Writing
from ckfs.model import Owner
from ckfs.store import duplicating

MOST_BYTES = 8 << 20
"""At one call. A store that copies by reading and writing does as much well within a second, so that no call comes near to io_timeout, and
others of the set get their turn; and the way here is then less than a hundredth of it. Callers go on from where it ends."""
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Duplicating:
    core: Core
    writing: Writing

    async def copy_range(
        self, source: Handle, offset_in: int, target: Handle, offset_out: int, length: int, flags: int
    ) -> int:
        """How many bytes were copied, which may be fewer than asked for; 0 at the end of *source*. NotDone (EOPNOTSUPP or EXDEV) where
        the store does not copy: then the kernel reads and writes."""
        _check(source, offset_in, target, offset_out, length, flags)
        size = min(length, MOST_BYTES, await self._size(source) - offset_in)
        if size <= 0:
            return 0
        await self.writing.begin(target)
        with self.writing.failing(target):
            owner = stored_owner(target.node)
            copy = partial(self._copy, source, offset_in, target, owner, offset_out)
            copied, error = await self.writing.in_pieces(target, owner, offset_out, size, copy)
            if error is not None and not copied:
                raise error
            self.writing.wrote(target, offset_out, copied)
            return copied

    async def _copy(
        self,
        source: Handle,
        offset_in: int,
        target: Handle,
        owner: Owner | None,
        offset_out: int,
        begin: int,
        claim: Claim,
    ) -> int:
        core, done = self.core, partial(self.core.charging.done, claim)
        try:
            pinned = source.pin()
        except BaseException:
            done()
            raise
        put = partial(
            duplicating.copy_range,
            core.store.door,
            source.file,
            offset_in + begin,
            target.file,
            offset_out + begin,
            claim.count,
        )
        copied, _ = await self.writing.put(target, owner, put, claim.count, done, pinned)
        return copied

    async def _size(self, source: Handle) -> int:
        """Nothing is claimed for what is not there."""
        look = partial(self.core.store.door.examine, source.file, source.node.ino)
        try:
            found = await self.core.gate.look(
                look, releases=(source.pin(),), of_set=self.core.set_key(source.node)
            )
        except Stale:  # removed on another host: reading finds what there is in its place
            raise NotDone(errno.EOPNOTSUPP, "the source is gone") from None
        return found.stat.st_size


def _check(source: Handle, offset_in: int, target: Handle, offset_out: int, length: int, flags: int) -> None:
    """As the kernel does."""
    if not target.writable or target.appends or _is_for_writing_alone(source):
        raise BadHandle("not open for that")
    if flags or min(offset_in, offset_out, length) < 0:
        raise Invalid("no such way to copy")
    if max(offset_in, offset_out) + length > _LARGEST:
        raise NotDone(errno.EOVERFLOW, "no file is as large")
    if source.node is target.node and abs(offset_in - offset_out) < length:
        raise Invalid("the parts overlap")


def _is_for_writing_alone(handle: Handle) -> bool:
    return fcntl.fcntl(handle.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
