"""Standard output, apart from all other files: what cannot be written there is not the store's fault, and is said so."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from ckfs.errors import CkfsError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT = 1


class ReaderGone(Exception):
    """Whoever read what a command printed had enough, as head(1) has."""


class _Descriptor(io.RawIOBase):
    """Descriptor 1. Its errors are no OSErrors, which commands take for the store's. After the first nothing more is written."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = False

    def fileno(self) -> int:
        return _STDOUT

    def isatty(self) -> bool:
        return os.isatty(_STDOUT)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        piece = memoryview(data).cast("B")
        if self._lost:
            return len(piece)
        try:
            return os.write(_STDOUT, piece)
        except BrokenPipeError:
            self._lost = True
            raise ReaderGone from None
        except OSError as error:
            self._lost = True
            raise CkfsError(f"standard output: {error.strerror}") from None


def standard_output() -> io.TextIOWrapper:
    """What to print to, instead of what Python made of descriptor 1 (nothing, if that was closed)."""
    before = sys.__stdout__
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor()),
        encoding="utf-8" if before is None else before.encoding,
        errors="surrogateescape" if before is None else before.errors,
        line_buffering=os.isatty(_STDOUT),
    )
