"""``ckfs give SET USER``: root gives a set to a user, through a mount, exactly as chown would."""

from __future__ import annotations

import errno
import os
import pwd

import xattr

from ckfs.errors import CkfsError, NotPermitted, UsageError
from ckfs.names import shown
from ckfs.owners.accounts import uid_in


def give(path: str, user: str) -> str:
    """Give the set at *path* to *user* (a name or a uid). Returns the line to print; raises CkfsError."""
    name = shown(path)
    if os.geteuid() != 0:
        raise NotPermitted(f"{name}: only root gives sets to users")
    uid = _uid_of(user)
    attributes = xattr.xattr(os.path.abspath(path), xattr.XATTR_NOFOLLOW)
    try:
        set_name = attributes.get("user.ckfs.set")
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such set") from None
    except OSError:
        raise UsageError(f"{name}: not in a set on a ckfs mount") from None
    if set_name != os.fsencode(os.path.basename(os.path.abspath(path))):
        raise UsageError(f"{name}: inside the set {shown(set_name)}: only whole sets are given")
    try:
        attributes.set("user.ckfs.owner", str(uid).encode())
    except OSError as error:
        reason = {errno.EDQUOT: "it does not fit the user's quota"}.get(error.errno or 0, error.strerror)
        raise CkfsError(f"{name}: cannot give it to {shown(user)}: {reason}; it stays as it was") from None
    return f"{name}: belongs to {shown(user)} now"


def _uid_of(user: str) -> int:
    if (uid := uid_in(user)) is not None:
        return uid
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"{shown(user)}: there is no such user on this host") from None
