"""The digest of a file that is written from its first byte to its last, made as it is written: so nobody has to read it again.

Of anything else nothing is known, and who wants its digest reads it: of what is written in another order, or twice, or by several calls
at once; what was there before; what is cut, or failed; and what was not only written through what was opened when it was
made, which the file itself tells (:func:`ckfs.store.writers.had_another`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.errors import NotDone
from ckfs.model import Data
from ckfs.store import digests
from ckfs.store.digests import Digest
from ckfs.store.spots import Found
from ckfs.store.syscalls import FileId, file_id


@dataclass(frozen=True, slots=True)
class Written:
    """The *digest* of a file of the store, as it was written."""

    digest: Digest
    file: FileId

    def fits(self, found: Found) -> bool:
        """It is of what *found* is, which was not written since."""
        return self.file == file_id(found.stat) and self.digest.fits(found)


class Hashed:
    """All that was written of the new *file* of the store, as long as that is in one piece and in order."""

    def __init__(self, file: FileId) -> None:
        self._file = file
        self._hash = digests.new_hash()
        self._bytes: int | None = 0

    def put(self, piece: Data, count: int, end: int) -> None:
        """The first *count* bytes of *piece* were written, up to *end*. In any thread, one at a time."""
        if self._bytes is None or end - count != self._bytes:
            self._bytes = None
            return
        self._hash.update(piece if count == len(piece) else memoryview(piece)[:count])
        self._bytes = end

    @contextlib.contextmanager
    def forgotten(self) -> Iterator[None]:
        """Within the block the file is changed otherwise: nothing is known of it from then on, unless that was NotDone. As :meth:`put`."""
        known, self._bytes = self._bytes, None
        try:
            yield
        except NotDone:
            self._bytes = known
            raise

    def of(self, found: Found) -> Written | None:
        """The digest of what *found* is now that it is complete, if nobody else had a part in it; None if only reading it tells."""
        if self._bytes != found.stat.st_size:
            return None
        digest = Digest(digests.ALGORITHM, self._hash.hexdigest(), self._bytes, found.record.completed)
        return Written(digest, self._file)
