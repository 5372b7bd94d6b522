"""Who is writing an image: a mark of each mount that has it open for writing, beside its record.

A mark is an attribute of its own, ``user.ckfs.w.<mount id>``: two mounts that come and go at the same time
each change only theirs, and none gets lost. It is made before the image is written and taken away when the mount's last
writer has ended, so an image of the state ``writing`` without any is not being written, and one whose marks are all of
mounts that are gone was left.

Synchronous, as the owner of the file, who holds it open as *fd*.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable

from ckfs.names import MountId
from ckfs.store import attributes

_MARK = b"user.ckfs.w."
_ANOTHER = b"user.ckfs.x"
"""An attribute by which a file tells, for as long as it exists, that its content was not only written through what was opened when it was made. It is
put there before that begins, and never taken away: so nobody can miss it, whatever two mounts do at once."""


def mark_of(mount: MountId) -> bytes:
    return _MARK + mount


def put(fd: int, mount: MountId) -> None:
    attributes.put(fd, mark_of(mount), b"1")  # not every store keeps one without a value


def note_another(fd: int) -> None:
    """The content is about to be changed otherwise than through what was opened when the file was made."""
    if not had_another(fd):
        attributes.put(fd, _ANOTHER, b"1")


def had_another(where: attributes.Where) -> bool:
    """Whether the content was ever changed otherwise than through what was opened when the file was made."""
    try:
        attributes.get(where, _ANOTHER)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False
    return True


def drop(where: attributes.Where, mount: MountId) -> None:
    try:
        attributes.remove(where, mark_of(mount))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def of(where: attributes.Where) -> frozenset[MountId]:
    """The mounts that have marked the image."""
    with contextlib.suppress(FileNotFoundError):
        return among(attributes.names(where))
    return frozenset()


def among(names: Iterable[bytes]) -> frozenset[MountId]:
    """As :func:`of`, for an image that has attributes of these *names*."""
    return frozenset(MountId(name.removeprefix(_MARK)) for name in names if name.startswith(_MARK))
