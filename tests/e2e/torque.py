"""TORQUE's operations on a job's checkpoints, call by call, as processes with the identities that its daemons have.

Written after docs/torque.md and the traces beside this module. Nothing here knows of ckfs: on a plain shared directory the
same operations lose what TORQUE loses there.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from tests.e2e.replay import FIRST_IMAGE, getdents
from tests.support.users import ALICE, ROOT, ChildFailed, as_user

SERVER, NODE_A, NODE_B = "tqsrv", "tqn1", "tqn2"
HOSTS = (SERVER, NODE_A, NODE_B)
_RMDIR_TRIES = 10
_PIECE = 64 << 10
_EXPECTED = (errno.ENOSPC, errno.EDQUOT, errno.ECANCELED)
"""What a checkpoint that is to fail may meet."""

P = ParamSpec("P")
T = TypeVar("T")


class SetUp(enum.Enum):
    """How mom_priv/config says that the checkpoint directory is reached."""

    REMOTE = "$remote_checkpoint_dirs"
    USECP = "$usecp"
    NEITHER = "no setting, and no sshd or keys: each copy fails"


class Failure(enum.Enum):
    """What ends a checkpoint before it is whole."""

    SCRIPT = "the script gives up and removes its temporary file"
    NO_ROOM = "ENOSPC or EDQUOT from write, and the same"
    KILLED = "SIGKILL of the writer"


class Checkpointer(enum.Enum):
    """How the script writes an image."""

    BLCR = "a hidden temporary name, fsync and rename while it is open"
    DMTCP = "a temporary name, renamed once it is closed"


class Requeued(Exception):
    """The job does not start."""


@dataclass(frozen=True)
class Refusal:
    """A call of TORQUE's that failed. *who* is the daemon, or the job's user."""

    who: str
    call: str
    error: int

    def __str__(self) -> str:
        return f"{self.who}: {self.call} {errno.errorcode.get(self.error, self.error)}"


class Calls:
    """Calls one after the other, and which of them failed."""

    def __init__(self, who: str, host: str) -> None:
        self._who = who
        self.host = host
        self.refused: list[Refusal] = []

    def make(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            self.refused.append(Refusal(self._who, call.__name__, error.errno or 0))
            return None


def remtree(calls: Calls, path: str) -> None:
    """As pbs_mom and pbs_server remove a directory: what they cannot remove they leave, and go on."""
    if calls.make(os.lstat, path) is None:
        return
    fd = calls.make(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    if fd is None:
        return
    while names := getdents(fd):
        for name in names:
            inner = f"{path}/{name}"
            status = calls.make(os.lstat, inner)
            if status is not None and stat.S_ISDIR(status.st_mode):
                remtree(calls, inner)
            elif status is not None:
                calls.make(os.unlink, inner)
    os.close(fd)
    for _ in range(_RMDIR_TRIES):
        before = len(calls.refused)
        calls.make(os.rmdir, path)
        if len(calls.refused) == before or calls.refused[-1].error != errno.ENOTEMPTY:
            return


def content_of(number: int, size: int) -> bytes:
    """What the image of this *number* holds."""
    return (f"image {number} ".encode() * (size // 8 + 1))[:size]


def write_image(
    directory: str,
    name: str,
    data: bytes,
    failure: Failure | None,
    checkpointer: Checkpointer = Checkpointer.BLCR,
) -> bool:
    """The checkpoint script. Returns whether it says that all is well."""
    write = _write_as_blcr if checkpointer is Checkpointer.BLCR else _write_as_dmtcp
    return write(directory, name, data, failure)


def _write_as_dmtcp(directory: str, name: str, data: bytes, failure: Failure | None) -> bool:
    os.chdir(directory)
    temporary = f"{name}.temp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write_all(fd, data, failure)
    except OSError as error:
        if failure is None or error.errno not in _EXPECTED:
            raise
        os.unlink(temporary)
        return False
    finally:
        os.close(fd)
    os.rename(temporary, name)
    return True


def _write_as_blcr(directory: str, name: str, data: bytes, failure: Failure | None) -> bool:
    os.chdir(directory)
    temporary = f".{name}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_TRUNC
    fd = os.open(temporary, flags, 0o400)
    try:
        os.fstat(fd)
        _write_all(fd, data, failure)
        os.rename(temporary, name)
        os.fsync(fd)
        entries = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(entries)
        os.close(entries)
    except OSError as error:
        os.stat(temporary)
        os.unlink(temporary)
        if failure is None or error.errno not in _EXPECTED:
            raise
        return False
    finally:
        os.close(fd)
    return True


def _write_all(fd: int, data: bytes, failure: Failure | None) -> None:
    for begin in range(0, len(data), _PIECE):
        if begin > len(data) // 2 and failure is Failure.SCRIPT:
            raise OSError(errno.ECANCELED, "the script gives up")
        if begin > len(data) // 2 and failure is Failure.KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        piece = memoryview(data)[begin : begin + _PIECE]
        while piece:
            piece = piece[os.write(fd, piece) :]


def _read_image(directory: str, name: str) -> bytes:
    os.chdir(directory)
    with open(name, "rb", buffering=0) as image:
        parts = []
        while part := image.read(_PIECE):
            parts.append(part)
        return b"".join(parts)


def _copy(source: str, target: str) -> int:
    return subprocess.run(["/bin/cp", "-rp", source, target], check=False).returncode


@dataclass
class Torque:
    """One job on a cluster. *mounts* has each host's ``PBS_HOME/checkpoint``."""

    mounts: Mapping[str, str]
    set_up: SetUp
    job: str
    user: int = ALICE
    image_bytes: int = 300_000
    checkpointer: Checkpointer = Checkpointer.BLCR
    images: dict[str, bytes] = field(default_factory=dict)
    """What must be there: each image that a checkpoint said was made."""
    refused: list[Refusal] = field(default_factory=list)
    """TORQUE's failed calls so far."""
    newest: str = ""
    """The job's checkpoint_name."""
    _next: int = FIRST_IMAGE

    @property
    def set_name(self) -> str:
        return f"{self.job}.CK"

    def ck(self, host: str) -> str:
        return f"{self.mounts[host]}/{self.set_name}"

    # Operations

    def checkpoint(self, node: str, failure: Failure | None = None, size: int | None = None) -> None:
        """qchkpt, or what a periodic checkpoint is."""
        name, data = self._next_image(size)
        self._daemon(node, self._mom_makes_the_directory)
        done = self._script(node, name, data, failure)
        self._daemon(SERVER, self._server_makes_the_directory)
        if done:
            self.images[name] = data
            self.newest = name
            return
        self._daemon(node, self._mom_cleans_up_a_failure)

    def hold(self, node: str) -> None:
        """qhold: a checkpoint, the job is killed, and the image goes to the server, as mom sees it."""
        self.checkpoint(node)
        self._stage_out(node)

    def restart(self, node: str, *, staged: bool = True) -> bytes:
        """The job runs again on *node*: after qrls, or after qrerun (not *staged*). The image that it reads; raises Requeued."""
        self._daemon(SERVER, self._server_makes_the_directory)
        if staged and self.set_up is not SetUp.REMOTE:
            self._stage_in(node)
        image = f"{self.ck(node)}/{self.newest}"
        self._daemon(node, lambda calls: calls.make(os.stat, image))
        if self.refused and self.refused[-1] == Refusal(f"mom of {node}", "stat", errno.ENOENT):
            raise Requeued("the image is not there")
        self._daemon(node, lambda calls: calls.make(os.chown, image, self.user, -1))
        return as_user(self.user, _read_image, self.ck(node), self.newest)

    def ends(self, node: str | None) -> None:
        """The job is complete, or deleted (qdel): on *node*, or nowhere if it was held."""
        if node is not None and self.set_up is not SetUp.REMOTE:
            self._daemon(node, lambda calls: remtree(calls, self.ck(node)))
        self._daemon(SERVER, lambda calls: remtree(calls, self.ck(SERVER)))
        self.images.clear()

    # OpenPBS, whose mom turns sets instead

    def turn(self, node: str) -> None:
        """OpenPBS's mom before a new checkpoint, as root: the older .old goes, CK becomes .old."""

        def work(calls: Calls) -> None:
            if os.path.lexists(f"{self.ck(node)}.old"):
                remtree(calls, f"{self.ck(node)}.old")
            if os.path.lexists(self.ck(node)):
                calls.make(os.rename, self.ck(node), f"{self.ck(node)}.old")

        self._daemon(node, work)

    # A checkpoint directory of each node's own, and one that is shared on the server's side only

    def hold_with_private_copy(self, node: str, private: str) -> int:
        """pbs_mom -C *private* with $usecp to the shared one: /bin/cp copies out, as the user. Its exit status."""
        name, data = self._next_image(None)
        own = f"{private}/{self.set_name}"
        os.mkdir(own, 0o755)
        os.chown(own, self.user, self.user)
        assert self._in_child(lambda: write_image(own, name, data, None))
        self._daemon(SERVER, self._server_makes_the_directory)
        status = as_user(self.user, _copy, f"{own}/{name}", f"{self.ck(node)}/{name}")
        remtree(Calls("private", node), own)
        self.images[name] = data
        self.newest = name
        return status

    def restart_from_private_copy(self, node: str, private: str) -> bytes:
        own = f"{private}/{self.set_name}"
        as_user(self.user, os.mkdir, own, 0o1777)
        as_user(self.user, _copy, f"{self.ck(node)}/{self.newest}", f"{own}/{self.newest}")
        return as_user(self.user, _read_image, own, self.newest)

    # Parts of them

    def _next_image(self, size: int | None) -> tuple[str, bytes]:
        number = self._next
        self._next += 1
        return f"ckpt.{self.job}.{number}", content_of(number, size or self.image_bytes)

    def _mom_makes_the_directory(self, calls: Calls) -> None:
        before = len(calls.refused)
        calls.make(os.mkdir, self.ck(calls.host), 0o755)
        if len(calls.refused) == before:
            calls.make(os.chown, self.ck(calls.host), self.user, self.user)

    def _server_makes_the_directory(self, calls: Calls) -> None:
        os.umask(0)
        calls.make(os.mkdir, self.ck(SERVER), 0o1777)

    def _mom_cleans_up_a_failure(self, calls: Calls) -> None:
        path = self.ck(calls.host)
        fd = calls.make(os.open, path, os.O_RDONLY | os.O_DIRECTORY)
        if fd is not None:
            while getdents(fd):
                pass
            os.close(fd)
        remtree(calls, path)
        calls.make(os.stat, f"{path}.old")

    def _script(self, node: str, name: str, data: bytes, failure: Failure | None) -> bool:
        try:
            return self._in_child(lambda: write_image(self.ck(node), name, data, failure, self.checkpointer))
        except ChildFailed:
            if failure is not Failure.KILLED:
                raise
            return False
        except OSError as error:  # not even the file could be made, or be removed again: btrfs, at its quota
            if failure is None or error.errno not in _EXPECTED:
                raise
            return False

    def _in_child(self, work: Callable[[], bool]) -> bool:
        return as_user(self.user, work)

    def _stage_out(self, node: str) -> None:
        if self.set_up is SetUp.REMOTE:
            return
        image = f"{self.ck(node)}/{self.newest}"
        for _ in range(2):  # source and target, which are the same file: nothing is copied, or scp fails
            as_user(self.user, os.stat, image)
        self._daemon(node, lambda calls: remtree(calls, self.ck(node)))

    def _stage_in(self, node: str) -> None:
        path = self.ck(node)
        self._made_by("user", self.user, lambda calls: calls.make(os.mkdir, path, 0o1777), node)
        if self.set_up is SetUp.USECP:
            self._made_by("user", self.user, lambda calls: calls.make(os.stat, f"{path}/{self.newest}"), node)
            return
        self._made_by("user", self.user, lambda calls: remtree(calls, path), node)
        raise Requeued("the copy failed")

    def _daemon(self, host: str, work: Callable[[Calls], object]) -> None:
        self._made_by("server" if host == SERVER else f"mom of {host}", ROOT, work, host)

    def _made_by(self, who: str, uid: int, work: Callable[[Calls], object], host: str) -> None:
        def make() -> list[Refusal]:
            calls = Calls(who, host)
            work(calls)
            return calls.refused

        self.refused += as_user(uid, make)
