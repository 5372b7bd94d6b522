"""What can go wrong, and the one place that maps it: to an errno for callers, to an exit status for commands.

Errors of commands are one line that names the thing, the rule and the way out. Their exit status is documented in
docs/commands.md and is part of the interface.
"""

from __future__ import annotations

import errno


class CkfsError(Exception):
    """A command cannot go on; ``str()`` is the one line that the user reads."""

    exit_status = 1


class UsageError(CkfsError):
    """A wrong option, key or argument."""

    exit_status = 2


class StoreUnusable(CkfsError):
    """The store is missing, foreign, of a newer format, unreachable, or cannot hold user extended attributes."""

    exit_status = 3


class LedgerUnusable(CkfsError):
    """The ledger of quotas is damaged, or is none: it must be made anew from the store. (One of another version is sound, and
    raises StoreUnusable.)"""

    exit_status = 3


class MountRefused(CkfsError):
    """The mount point cannot be used: missing, not a directory, or ckfs is mounted there already."""

    exit_status = 4


class StoreInUse(CkfsError):
    """The store is mounted, and the command must have it to itself."""

    exit_status = 4


class NotMounted(CkfsError):
    """There is no such mount, or its daemon does not answer."""

    exit_status = 4


class NotPermitted(CkfsError):
    """The command needs rights that its caller does not have."""

    exit_status = 5


class MountFailed(CkfsError):
    """The daemon started but the mount did not come up."""

    exit_status = 6


class NoRoom(CkfsError):
    """The command would write more than there is room for, or found none left."""

    exit_status = 7


def of_status(status: int, message: str) -> CkfsError:
    """The error that a process with that exit status met, to be raised again in another."""
    kinds = (UsageError, StoreUnusable, MountRefused, NotPermitted, MountFailed)
    return next((kind(message) for kind in kinds if kind.exit_status == status), CkfsError(message))


class FsError(Exception):
    """A call on the mount is answered with :attr:`errno`; the message is for the log only."""

    errno = errno.EIO


class NotFound(FsError):
    errno = errno.ENOENT


class Exists(FsError):
    errno = errno.EEXIST


class NotOwner(FsError):
    """An act that only root, or only the owner, may do (EPERM: the act as such is not the caller's)."""

    errno = errno.EPERM


class Denied(FsError):
    """The caller may not write here (EACCES, which a batch system takes as final: torque.md rule 6)."""

    errno = errno.EACCES


class OtherOwner(FsError):
    """A rename or link between sets of different owners: the caller copies instead (EXDEV)."""

    errno = errno.EXDEV


class Unsupported(FsError):
    errno = errno.EOPNOTSUPP


class Invalid(FsError):
    errno = errno.EINVAL


class NotDone(FsError):
    """The store does not do that, or not with these files; or there is no room for it. Nothing was changed, so that nothing is amiss."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.errno = number


class NoAttribute(FsError):
    errno = errno.ENODATA


class Stale(FsError):
    """The name leads to another file by now; the kernel looks the path up again."""

    errno = errno.ESTALE


class BadHandle(FsError):
    errno = errno.EBADF


class ReadOnly(FsError):
    errno = errno.EROFS


class Busy(FsError):
    """There is no thread for the call, or too many wait already; the store was not asked."""

    errno = errno.EAGAIN


class Fenced(FsError):
    """This mount was taken for dead for so long that others have settled what it was writing."""

    errno = errno.EIO


class Interrupted(FsError):
    """A signal came to whoever waited for a lock (EINTR, which the kernel may make a new call of)."""

    errno = errno.EINTR


class StoreDown(FsError):
    """The store did not answer in time, or has not since."""

    errno = errno.ETIMEDOUT


class Unreached(FsError):
    """What is asked for lies in a further store that this host does not reach."""

    errno = errno.EHOSTUNREACH


class LedgerDown(FsError):
    """The ledger of quotas cannot be reached, or did not answer in time."""

    errno = errno.EIO


class EngineFailed(FsError):
    """The store's own file system, or its tool, does not do what ckfs wants of its quotas; the message names the way out."""

    errno = errno.EIO


class Unkept(FsError):
    """The store has no room for what it had taken as written: ENOSPC or EDQUOT, as it says itself.

    No OSError, so that nothing of the owner's gives way for what is lost already.
    """

    def __init__(self, number: int) -> None:
        super().__init__("the store does not keep what it had taken")
        self.errno = number


class NoGrant(FsError):
    """The ledger is away, and what was granted before is used up: EDQUOT or EIO, as the policy says.

    No OSError, so that nothing of the owner's gives way for what is no lack of room.
    """

    def __init__(self, number: int) -> None:
        super().__init__("the ledger of quotas cannot be reached")
        self.errno = number


_UNFIT = {
    # The kernel takes ENOSYS as "never ask again" for the mount's life: an fsync would then succeed without doing anything.
    errno.ENOSYS: errno.EOPNOTSUPP,
    # To a caller ENOTCONN means that ckfs itself died; here it is a FUSE store underneath that did.
    errno.ENOTCONN: errno.EIO,
    # Restarts inside the kernel are not for callers to see.
    errno.EINTR: errno.EIO,
}
_LARGEST_ERRNO = 511
"""Above lie the kernel's private values (ERESTARTSYS is 512): they never leave ckfs."""


def errno_of(error: BaseException) -> int:
    """The errno that a caller is answered for *error*. Total: every exception has one, and none is 0 or above 511."""
    match error:
        case Interrupted():
            return errno.EINTR
        case FsError():
            number: object = error.errno
        case TimeoutError():
            number = errno.ETIMEDOUT
        case OSError():
            number = error.errno
        case MemoryError():
            number = errno.ENOMEM
        case RecursionError():  # a tree that is deeper than ckfs walks
            number = errno.ELOOP
        case _:
            number = errno.EIO
    if not isinstance(number, int) or not 0 < number <= _LARGEST_ERRNO:
        return errno.EIO
    return _UNFIT.get(number, number)
