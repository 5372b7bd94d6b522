"""``ckfs give SET USER``: root gives a set to a user, through a mount, exactly as chown would."""

from __future__ import annotations

import argparse
import errno
import os

from ckfs.cli.setpaths import set_at
from ckfs.cli.users import uid_of
from ckfs.errors import CkfsError, NotPermitted
from ckfs.names import shown


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("set", metavar="SET", help="the set's path on a mount")
    command.add_argument("user", metavar="USER", help="name or uid")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    print(give(arguments.set, arguments.user))
    return 0


def give(path: str, user: str) -> str:
    """Give the set at *path* to *user* (a name or a uid). Returns the line to print; raises CkfsError."""
    name = shown(path)
    if os.geteuid() != 0:
        raise NotPermitted(f"{name}: only root gives sets to users")
    uid = uid_of(user)
    with set_at(path) as found:
        try:
            os.chown(found.entry, uid, -1, dir_fd=found.directory, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = "it does not fit the user's quota" if error.errno == errno.EDQUOT else error.strerror
            raise CkfsError(
                f"{name}: cannot give it to {shown(user)}: {reason}; it stays as it was"
            ) from None
    return f"{name}: belongs to {shown(user)} now"
