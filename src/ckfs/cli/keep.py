"""``ckfs release``, ``protect`` and ``pin``: what is said of checkpoints over the rule, through a mount.

All of it goes by the attribute ``user.ckfs.keep`` of the set's top: an image may not be its owner's to write.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ckfs.daemon.mounting import mount_of
from ckfs.errors import CkfsError, NotPermitted, UsageError
from ckfs.model import Keep
from ckfs.names import shown
from ckfs.policy.sizes import shown_size

_KEEP = "user.ckfs.keep"
_NOT_PROTECTED = b"no"


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A batch set, or the checkpoint *name* in it. *directory* is a descriptor of the mount's root, *said* what the caller
    typed."""

    directory: int
    set_name: str
    name: str
    said: str

    @property
    def top(self) -> str:
        return f"/proc/self/fd/{self.directory}/{self.set_name}"

    @property
    def path(self) -> str:
        return os.path.join(self.top, self.name) if self.name else self.top

    def say(self, keep: Keep) -> None:
        value = "/".join(filter(None, (keep.value, self.name))) if keep.value else f"/{self.name}"
        os.setxattr(self.top, _KEEP, os.fsencode(value.rstrip("/")), follow_symlinks=False)

    def said_of(self, path: str) -> Keep:
        """What was said of *path* itself."""
        try:
            return Keep(os.getxattr(path, _KEEP, follow_symlinks=False).decode())
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return Keep.BY_RULE

    def protected(self) -> str | None:
        """Why it is protected; None if it is not."""
        value = os.getxattr(self.path, "user.ckfs.protected", follow_symlinks=False)
        return None if value == _NOT_PROTECTED else os.fsdecode(value)


def add_arguments_of_release(command: argparse.ArgumentParser) -> None:
    _add_paths(command)
    command.set_defaults(run=lambda arguments: _for_each(arguments.paths, release))


def add_arguments_of_protect(command: argparse.ArgumentParser) -> None:
    _add_paths(command)
    command.set_defaults(run=lambda arguments: _for_each(arguments.paths, protect))


def add_arguments_of_pin(command: argparse.ArgumentParser) -> None:
    _add_paths(command)
    command.add_argument("--undo", action="store_true", help="keep them no longer than the rule says")
    command.set_defaults(
        run=lambda arguments: _for_each(arguments.paths, lambda path: pin(path, undo=arguments.undo))
    )


def _add_paths(command: argparse.ArgumentParser) -> None:
    command.add_argument("paths", metavar="SET|IMAGE", nargs="+", help="its path on a mount")


def _for_each(paths: list[str], act: Callable[[str], str]) -> int:
    """A line for each; those that fail do not keep the others from being done. The status is the first failure's."""
    status = 0
    for path in paths:
        try:
            print(act(path))
        except CkfsError as error:
            print(f"ckfs: {error}", file=sys.stderr)
            status = status or error.exit_status
    return status


def release(path: str) -> str:
    """Let the owner, and root on every node, remove the checkpoint or set at *path*. Root only. Returns the line to print."""
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(path)}: only root releases what is protected")
    with _checkpoint(path) as checkpoint:
        checkpoint.say(Keep.RELEASED)
        return f"{shown(path)}: released: its owner, and root on any node, may remove it now"


def protect(path: str) -> str:
    """End a release of *path*: the rule decides again. Root only. Returns the line to print."""
    if os.geteuid() != 0:
        raise NotPermitted(
            f"{shown(path)}: only root ends a release; to keep a checkpoint of your own: ckfs pin"
        )
    with _checkpoint(path) as checkpoint:
        if checkpoint.said_of(checkpoint.path) is Keep.PINNED:
            return f"{shown(path)}: pinned, which keeps it already"
        if checkpoint.name and checkpoint.said_of(checkpoint.top) is Keep.RELEASED:
            raise CkfsError(
                f"{shown(path)}: its set is released: protect the set {shown(checkpoint.set_name)}, or pin this one"
            )
        checkpoint.say(Keep.BY_RULE)
        return f"{shown(path)}: {_outcome(checkpoint)}"


def pin(path: str, *, undo: bool = False) -> str:
    """Keep the checkpoint or set at *path* whatever the rule says, or end that. Returns the line to print."""
    with _checkpoint(path) as checkpoint:
        if not undo:
            checkpoint.say(Keep.PINNED)
            line = f"{shown(path)}: pinned: kept, and charged to its owner, until ckfs pin --undo"
            return line + _limit_that_is_not_met(checkpoint)
        if checkpoint.said_of(checkpoint.path) is not Keep.PINNED:
            way_out = f": undo that of the set {shown(checkpoint.set_name)}"
            whole = checkpoint.name and checkpoint.said_of(checkpoint.top) is Keep.PINNED
            raise UsageError(f"{shown(path)}: not pinned itself{way_out if whole else ''}")
        checkpoint.say(Keep.BY_RULE)
        return f"{shown(path)}: pinned no longer: {_outcome(checkpoint)}"


def _limit_that_is_not_met(checkpoint: _Checkpoint) -> str:
    """What is pinned gives way to nothing: its owner should know if he is over a limit that only removing can meet."""

    def figure(name: str) -> int | None:
        value = os.getxattr(checkpoint.top, f"user.ckfs.quota.{name}", follow_symlinks=False)
        return int(value) if value.isdigit() else None

    try:
        used, soft, hard = figure("used"), figure("soft"), figure("hard")
    except OSError:  # nobody keeps quotas, or the ledger is away: what was asked for is done all the same
        return ""
    for kind, limit in (("hard", hard), ("soft", soft)):
        if used is not None and limit is not None and used >= limit:
            return (
                f"; its owner uses {shown_size(used)} of his {kind} limit of {shown_size(limit)}:"
                " what is pinned does not give way, so he has to remove something"
            )
    return ""


def _outcome(checkpoint: _Checkpoint) -> str:
    reason = checkpoint.protected()
    if reason is not None:
        return f"protected: {reason}"
    return "not protected by the rule: the newest complete checkpoints are"


@contextmanager
def _checkpoint(path: str) -> Iterator[_Checkpoint]:
    """The checkpoint that *path* belongs to. Errors of the body are told as the command's."""
    parent, entry = os.path.split(os.path.abspath(path))
    parts = [entry]
    parent = os.path.realpath(parent)
    try:
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}") from None
    try:
        while not _is_root(directory, path):
            parent, name = os.path.split(parent)
            parts.insert(0, name)
            os.close(directory)
            directory = -1
            directory = os.open(parent, os.O_PATH | os.O_DIRECTORY)
        os.stat(entry if len(parts) == 1 else "/".join(parts), dir_fd=directory, follow_symlinks=False)
        yield _Checkpoint(directory, parts[0], parts[1] if len(parts) > 1 else "", path)
    except OSError as error:
        raise _told(path, error) from None
    finally:
        if directory >= 0:
            os.close(directory)


def _is_root(directory: int, path: str) -> bool:
    """Whether it is a ckfs mount's root. The kernel is asked whether it is a ckfs: any file system may have such
    attributes."""
    mount = mount_of(directory)
    if mount is None or not mount.is_ckfs:
        raise UsageError(f"{shown(path)}: not in a set on a ckfs mount")
    try:
        return bool(os.getxattr(f"/proc/self/fd/{directory}", "user.ckfs.version"))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False


def _told(path: str, error: OSError) -> CkfsError:
    name = shown(path)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return UsageError(f"{name}: there is no such set or image")
        case errno.EINVAL:
            return UsageError(f"{name}: not in a batch set: checkpoints are protected only there")
        case errno.EPERM | errno.EACCES:
            return NotPermitted(f"{name}: only the set's owner, or root, says what is kept")
        case _:
            return CkfsError(f"{name}: {error.strerror}; nothing changed")
