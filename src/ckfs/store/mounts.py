"""Which mounts a store has: a small file for each in ``mounts/``, written anew for as long as the mount lives.

::

    mounts/5f3a90c1e2d4b687         1;b=2a;w=<wall clock>;n=tqn1;h=<boot id>;s=<pid namespace>;p=<pid>;t=<start, in ticks>
    mounts/5f3a90c1e2d4b687.ended   the same, once nobody will write as that mount any more: it died, or was fenced
    mounts/housekeeper.7            a symbolic link that nobody follows: the mount that keeps house in the seventh term
    mounts/node.tqn1                another: the mount that has the node's name, for all mounts of its host
    mounts/5f3a90c1e2d4b687.asks    for a few seconds, with .asked and .answers: see exchanges

``b`` is the beat: a number that only grows. Others judge a mount by whether it has grown, never by anybody's clock
(:mod:`ckfs.fs.liveness`). A mount whose file is gone, or ended, is gone for good: fencing is one rename, and the next
beat of the fenced one finds nothing to write to.

All calls are synchronous, for worker threads; they raise OSError as the store does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckfs.errors import Fenced
from ckfs.model import Owner
from ckfs.names import MountId
from ckfs.store import syscalls
from ckfs.store.mountsdirectory import MountsDirectory

_VERSION = b"1"
_ENDED = b".ended"
_TERM_PREFIX = b"housekeeper."
_TERM = _TERM_PREFIX + b"%d"
NODE_PREFIX = b"node."
"""Then comes the node's name, and with ``~`` a token what is just being taken away."""
ASKED, ASKS, ANSWERS = b".asked", b".asks", b".answers"
"""What follows the id of a mount for as long as two see how late they hear of each other: :mod:`ckfs.store.exchanges`."""
PASSING = tuple(kind + new for kind in (ASKED, ASKS, ANSWERS) for new in (b"", b"~"))
_LONGEST_BYTES = 1024
_ID_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Registration:
    """A mount, as it says of itself: the *node*, and the process that serves it, if that is in the same pid namespace
    (*namespace*, an inode number) of the same running kernel (*boot*). *started* in ticks since boot. *wall_ns* is what its clock
    showed at the last beat, in ns since the epoch; 0 if that is not known."""

    id: MountId
    node: bytes
    boot: bytes
    namespace: int
    pid: int
    started: int
    beat: int = 0
    wall_ns: int = 0


def encode(registration: Registration) -> bytes:
    return b"%s;b=%x;w=%016x;n=%s;h=%s;s=%d;p=%d;t=%d\n" % (
        _VERSION,
        registration.beat,
        registration.wall_ns,
        registration.node,
        registration.boot,
        registration.namespace,
        registration.pid,
        registration.started,
    )


def decode(id: MountId, raw: bytes) -> Registration | None:  # noqa: A002 - its name everywhere
    """The registration in *raw*; None if it is of no version that this ckfs knows, or just being written."""
    version, *pairs = raw.rstrip(b"\n").split(b";")
    fields = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    try:
        if version != _VERSION:
            return None
        return Registration(
            id=id,
            node=fields[b"n"],
            boot=fields[b"h"],
            namespace=int(fields[b"s"]),
            pid=int(fields[b"p"]),
            started=int(fields[b"t"]),
            beat=int(fields[b"b"], 16),
            wall_ns=int(fields.get(b"w", b"0"), 16),
        )
    except (KeyError, ValueError):
        return None


def new_id() -> MountId:
    return MountId(secrets.token_hex(_ID_LENGTH // 2).encode())


def is_id(name: bytes) -> bool:
    return len(name) == _ID_LENGTH and not name.strip(b"0123456789abcdef")


def is_passing(name: bytes) -> bool:
    return any(name.endswith(kind) and is_id(name.removesuffix(kind)) for kind in PASSING)


class Mounts:
    """The directory ``mounts/`` of the store whose root is *root_fd*, kept by *service*; made when it is first needed."""

    def __init__(self, root_fd: int, service: Owner, *, read_only: bool = False) -> None:
        self._directory = MountsDirectory(root_fd, service, read_only)

    # One's own

    def register(self, registration: Registration) -> None:
        with self._directory.changing() as directory:
            _write(directory, registration.id, os.O_CREAT | os.O_EXCL, registration)

    def renew(self, registration: Registration) -> Registration:
        """The next beat. Raises Fenced if somebody has ended this mount."""
        beating = replace(registration, beat=registration.beat + 1, wall_ns=time.time_ns())
        try:
            with self._directory.changing() as directory:
                _write(directory, registration.id, 0, beating)
        except FileNotFoundError:
            raise Fenced("another mount has ended this one") from None
        return beating

    def leave(self, mount: MountId, *, finished: bool) -> None:
        """The mount ends by itself; unless it *finished* its images, others have to look after those."""
        if not finished:
            self.end(mount)
            return
        with self._directory.changing() as directory, contextlib.suppress(FileNotFoundError):
            os.unlink(mount, dir_fd=directory)
            _sweep(directory, mount)

    # Others'

    def read(self, mount: MountId) -> Registration | None:
        """What a mount says of itself; None if it has ended."""
        try:
            with self._directory.opened() as directory:
                return _read(directory, mount)
        except FileNotFoundError:
            return None

    def ids(self) -> list[MountId]:
        """Of those that have not ended."""
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            return [MountId(name) for name in _names(directory) if is_id(name)]
        return []

    def all(self) -> list[Registration]:
        """Those that have not ended."""
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            found = (_read_or_none(directory, MountId(name)) for name in _names(directory) if is_id(name))
            return [registration for registration in found if registration is not None]
        return []

    def ended(self) -> list[MountId]:
        """Those that have ended without finishing their images, as far as nobody has looked after these."""
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            names = (name.removesuffix(_ENDED) for name in _names(directory) if name.endswith(_ENDED))
            return [MountId(name) for name in names if is_id(name)]
        return []

    def end(self, mount: MountId) -> None:
        """Fence a mount: nobody writes as it any more. Nothing happens if it has ended."""
        with self._directory.changing() as directory, contextlib.suppress(FileNotFoundError):
            os.rename(mount, mount + _ENDED, src_dir_fd=directory, dst_dir_fd=directory)

    def forget(self, mount: MountId) -> None:
        """Nothing in the store names that ended mount any more."""
        with self._directory.changing() as directory, contextlib.suppress(FileNotFoundError):
            os.unlink(mount + _ENDED, dir_fd=directory)
            _sweep(directory, mount)

    # Names of nodes

    def holder_of(self, node: bytes) -> MountId | None:
        """The mount that has the node's name; None if nobody does. It may have ended."""
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            return MountId(os.readlink(NODE_PREFIX + node, dir_fd=directory))
        return None

    def take_node(self, node: bytes, id: MountId, instead_of: MountId | None) -> bool:  # noqa: A002 - its name everywhere
        """Let *id* have the node's name from now on, which *instead_of* had; False if another was quicker: of several exactly
        one gets it."""
        with self._directory.changing() as directory:
            if instead_of is not None and not _take_away(directory, NODE_PREFIX + node, instead_of):
                return False
            try:
                os.symlink(id, NODE_PREFIX + node, dir_fd=directory)
            except FileExistsError:
                return False
            return True

    def give_node_back(self, node: bytes, id: MountId) -> None:  # noqa: A002 - its name everywhere
        """Nothing happens if another mount has the name by now."""
        with self._directory.changing() as directory:
            _take_away(directory, NODE_PREFIX + node, id)

    # Keeping house

    def housekeeper(self) -> MountId | None:
        with contextlib.suppress(FileNotFoundError), self._directory.opened() as directory:
            _, holder = _last_term(directory)
            return holder
        return None

    def keep_house(self, mount: MountId, is_alive: Callable[[MountId], bool]) -> bool:
        """Whether *mount* is the one mount that keeps house: it is already, or who did is not alive; then it is from now on.

        Of several that take over at once exactly one does, on every file system: the next term has one name, which is made
        exclusively. One that comes so late that its term is over, and cleared away, finds a later one beside its own.
        """
        with self._directory.changing() as directory:
            term, holder = _last_term(directory)
            if holder == mount:
                return True
            if holder is not None and is_alive(holder):
                return False
            try:
                os.symlink(mount, _TERM % (term + 1), dir_fd=directory)
            except FileExistsError:
                return False
            for number in _terms(directory):
                if number > term + 1:
                    os.unlink(_TERM % (term + 1), dir_fd=directory)
                    return False
                if number <= term:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(_TERM % number, dir_fd=directory)
            return True


def _names(directory: int) -> list[bytes]:
    return list(syscalls.names_in(directory))


def _sweep(directory: int, mount: MountId) -> None:
    """What a mount that is gone was asking, or was asked."""
    for passing in PASSING:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(mount + passing, dir_fd=directory)


def _write(directory: int, name: bytes, flags: int, registration: Registration) -> None:
    """In place, in one write: the line never gets shorter: of its fields that change one grows, and one is as long as ever."""
    flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o644, dir_fd=directory)
    try:
        os.pwrite(fd, encode(registration), 0)
    finally:
        os.close(fd)  # on NFS the moment at which others see it


def _read(directory: int, name: MountId) -> Registration:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = decode(name, os.pread(fd, _LONGEST_BYTES, 0))
    finally:
        os.close(fd)
    # A line that cannot be read is no reason to take a mount for gone.
    return found or Registration(name, b"", b"", 0, 0, 0)


def _read_or_none(directory: int, name: MountId) -> Registration | None:
    """None if it has just ended, or is nothing that a mount made."""
    try:
        return _read(directory, name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ELOOP):
            raise
        return None


def _take_away(directory: int, name: bytes, expected: MountId) -> bool:
    """Remove the link *name* if it says *expected*. In one step, then a look which it was: if not, it is put back."""
    aside = name + b"~" + secrets.token_hex(8).encode()
    try:
        if os.readlink(name, dir_fd=directory) != expected:
            return False
        os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        if os.readlink(aside, dir_fd=directory) == expected:
            return True
        with contextlib.suppress(FileExistsError):
            os.link(aside, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        return False
    finally:
        os.unlink(aside, dir_fd=directory)


def _terms(directory: int) -> list[int]:
    """The numbers of the terms that there are, in order."""
    names = (name.removeprefix(_TERM_PREFIX) for name in _names(directory) if name.startswith(_TERM_PREFIX))
    return sorted(int(number) for number in names if number.isdigit())


def _last_term(directory: int) -> tuple[int, MountId | None]:
    """Its number, and who has kept house since; 0 and None if nobody ever has."""
    for number in reversed(_terms(directory)):
        with contextlib.suppress(FileNotFoundError):  # a later one has begun meanwhile
            return number, MountId(os.readlink(_TERM % number, dir_fd=directory))
    return 0, None
