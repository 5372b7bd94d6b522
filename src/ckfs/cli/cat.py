"""``ckfs cat``: an image to standard output; a partial one only if that is what is asked for.

The image is opened through the mount as by any program, so that the kernel decides who may read it.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat

from ckfs.cli.mounted import mount_through
from ckfs.control.client import ask
from ckfs.errors import CkfsError, NotPermitted, UsageError
from ckfs.names import shown

_PIECE_BYTES = 1 << 20
_STDOUT = 1


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", metavar="PATH", help="an image on a mount")
    command.add_argument("--partial", action="store_true", help="even if it is not complete")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    cat(arguments.path, partial=arguments.partial)
    return 0


def cat(path: str, *, partial: bool) -> None:
    """Write the image at *path* to standard output. Raises CkfsError."""
    try:
        named = os.open(path, os.O_PATH)
    except PermissionError:
        raise NotPermitted(f"{shown(path)}: closed to you by the mode of a directory above it") from None
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}") from None
    try:
        device = mount_through(named, path).device
        status = os.fstat(named)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{shown(path)}: not an image: name a regular file")
        if partial:
            list(ask(device, "read-partial", {"ino": status.st_ino}))
        descriptor = _opened(named, path, partial=partial)
    except OSError as error:
        raise CkfsError(f"{shown(path)}: {error.strerror}") from None
    finally:
        os.close(named)
    try:
        _write_out(descriptor, path)
    finally:
        os.close(descriptor)


def _opened(named: int, path: str, *, partial: bool) -> int:
    try:
        return os.open(f"/proc/self/fd/{named}", os.O_RDONLY)
    except PermissionError:
        raise NotPermitted(f"{shown(path)}: closed to you by its mode") from None
    except OSError as error:
        if error.errno == errno.EIO and not partial and _is_partial(named):
            raise CkfsError(
                f"{shown(path)}: a partial image: its writer was killed or met an error, or it was found damaged; ckfs cat --partial reads it"
            ) from None
        raise


def _is_partial(named: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{named}", "user.ckfs.state") == b"partial"
    except OSError:
        return False


def _write_out(descriptor: int, path: str) -> None:
    while True:
        try:
            piece = os.read(descriptor, _PIECE_BYTES)
        except OSError as error:
            raise CkfsError(f"{shown(path)}: cannot be read to its end: {error.strerror}") from None
        if not piece:
            return
        _write_all(piece)


def _write_all(piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(_STDOUT, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CkfsError(f"standard output: {error.strerror}") from None
