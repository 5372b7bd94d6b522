"""Extended attributes of users: ckfs keeps in them what the store's metadata cannot."""

from __future__ import annotations

import errno
import os

from ckfs.policy.advice import Topic
from ckfs.selftest.identities import create
from ckfs.selftest.outcome import Check, Outcome, fail, not_tried, ok
from ckfs.selftest.place import Place
from ckfs.selftest.racing import PATIENCE, race
from ckfs.store.identity import acting_as

_NAME = "user.ckfs.selftest"
NEEDED_BYTES = 2560
"""A file's record, its digest, and what is said of it in the trash, which is up to 2 KiB."""
_MOST_BYTES = 1 << 16


def has_attributes(path: str) -> bool:
    """Whether the file or directory can have any, by trying."""
    try:
        os.setxattr(path, _NAME, b"value")
        os.removexattr(path, _NAME)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def _user(place: Place) -> list[Outcome]:
    check = "attributes.user"
    user = place.users[0]
    room = place.new_room(0o1777)
    directory, file = os.path.join(room, "directory"), os.path.join(room, "file")
    with acting_as(user):
        os.mkdir(directory, 0o700)
        os.close(create(file))
        for path in (directory, file):
            what = os.path.basename(path)
            try:
                os.setxattr(path, _NAME, b"va\0lue")
                said, names = os.getxattr(path, _NAME), os.listxattr(path)
                os.removexattr(path, _NAME)
            except OSError as error:
                says = f"no user.* attributes of a {what}: {error.strerror}"
                return [fail(check, says, place.mend(Topic.ATTRIBUTES))]
            if said != b"va\0lue" or _NAME not in names or _NAME in os.listxattr(path):
                return [
                    fail(
                        check,
                        f"an attribute of a {what} is not what it was set to",
                        place.mend(Topic.ATTRIBUTES),
                    )
                ]
    return [ok(check, "files and directories have user.* attributes")]


def _size(place: Place) -> list[Outcome]:
    check = "attributes.size"
    path = os.path.join(place.new_room(), "file")
    with acting_as(place.keeper):
        os.close(create(path))
        if not has_attributes(path):
            return [not_tried(check, "there are no attributes")]
        fits, too_much = 1, _MOST_BYTES + 1
        while too_much - fits > 1:
            size = (fits + too_much) // 2
            if _takes(path, size):
                fits = size
            else:
                too_much = size
    if fits < NEEDED_BYTES:
        says = f"a value may have {fits} bytes, and ckfs needs {NEEDED_BYTES}"
        return [fail(check, says, place.mend(Topic.ATTRIBUTES), largest_bytes=fits)]
    more = " or more" if fits == _MOST_BYTES else ""
    return [ok(check, f"a value may have {fits} bytes{more}; ckfs needs {NEEDED_BYTES}", largest_bytes=fits)]


def _takes(path: str, size: int) -> bool:
    try:
        os.setxattr(path, _NAME, b"x" * size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EDQUOT, errno.EINVAL, errno.EIO):
            return False
        raise
    return len(os.getxattr(path, _NAME)) == size


def _create(place: Place) -> list[Outcome]:
    check = "attributes.create"
    path = os.path.join(place.new_room(), "file")
    with acting_as(place.keeper):
        os.close(create(path))
        if not has_attributes(path):
            return [not_tried(check, "there are no attributes")]
    return [race(place, check, "attribute", "an attribute that is set with XATTR_CREATE")]


CHECKS = (
    Check(("attributes.user",), _user),
    Check(("attributes.size",), _size),
    Check(("attributes.create",), _create, PATIENCE),
)
