"""Users as commands are given and show them: by name, or by number."""

from __future__ import annotations

import pwd

from ckfs.errors import UsageError
from ckfs.names import shown
from ckfs.owners.accounts import uid_in


def uid_of(user: str) -> int:
    """Raises UsageError for a name that nobody has on this host; any number will do."""
    if (uid := uid_in(user)) is not None:
        return uid
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"{shown(user)}: there is no such user on this host; a uid will do") from None


def user_name(uid: int) -> str:
    """The name on this host, escaped to be printed; the number if there is none."""
    try:
        return shown(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)
