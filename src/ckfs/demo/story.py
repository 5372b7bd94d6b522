"""What ``ckfs demo`` does, step by step: each is told in one line, with the seconds that it took."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from ckfs.demo.checkpointers import ByCriu, ByItself, Checkpointer, make_set, round_trip
from ckfs.demo.counting import COUNTS_TO_SEE, Counting, python_for
from ckfs.demo.criu import Criu, candidates
from ckfs.demo.nodes import DemoFailed, Node, ckfs_command, run
from ckfs.errors import NotPermitted
from ckfs.model import Owner
from ckfs.names import Gid, Uid

SET_NAME = "demo-counter"
_FIRST_UID = 2101
_CAP_SYS_RESOURCE = 24  # linux/capability.h
_ATTRIBUTES = (
    *(f"user.ckfs.{name}" for name in ("owner", "uid", "set", "state", "written_by", "job")),
    "trusted.ckfs.path",
)
"""ckfs answers for these by name; it does not list them, lest cp -a copies them."""
_READ_ATTRIBUTES = """
import errno, os, sys
for name in sys.argv[2:]:
    try:
        print(name, "=", os.fsdecode(os.getxattr(sys.argv[1], name)))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
"""


def run_demo(verbose: bool = False, use_criu: bool = True) -> int:
    """Tell and do the demo. 0 only if the restored process was seen to count on from where it was saved.

    Raises CkfsError if a step fails, after everything was cleaned up; interrupted, it cleans up and returns 128 plus
    the signal's number, as shells do. Without *use_criu* the process saves its own state.
    """
    if os.geteuid() != 0:
        raise NotPermitted("ckfs demo needs root: it mounts, makes namespaces and runs CRIU")
    for program in ("unshare", "nsenter", "setpriv", "mount", "umount"):
        if shutil.which(program) is None:
            raise DemoFailed(f"{program} is not installed: install util-linux and mount")
    teller = Teller(verbose)
    try:
        with _interruptible() as deafen, contextlib.ExitStack() as stack:
            stack.callback(os.umask, os.umask(0o022))
            try:
                Story(teller, stack, use_criu).tell()
            finally:
                deafen()
    except Interrupted as interrupted:
        teller.tell(
            f"interrupted by {interrupted.signal.name}; cleaned up: nothing is left mounted or running"
        )
        return 128 + interrupted.signal
    teller.tell("cleaned up: unmounted on both nodes, every process ended, the temporary directory removed")
    return 0


class Teller:
    """Prints one line for each step, with the seconds since the one before."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._since = time.monotonic()

    def tell(self, text: str) -> None:
        now = time.monotonic()
        self._print(f"{now - self._since:6.2f} s  {text}")
        self._since = now

    def show(self, text: str) -> None:
        """Output of a command, as it is."""
        for line in text.splitlines():
            self._print(f"            {line}")

    def detail(self, line: str) -> None:
        if self._verbose:
            self._print(f"          | {line}")

    def _print(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class Story:
    """The steps. Whatever is made is handed to *stack* at once, which takes it away in the opposite order."""

    def __init__(self, teller: Teller, stack: contextlib.ExitStack, use_criu: bool) -> None:
        self._teller = teller
        self._use_criu = use_criu
        self._stack = stack
        self._user = _unused_user()
        self._nodes: list[Node] = []

    def tell(self) -> None:
        """Everything but cleaning up; what the nodes logged is shown if a step fails."""
        try:
            self._tell()
        except DemoFailed:
            for node in self._nodes:
                self._teller.tell(f"{node.name} logged:")
                self._teller.show("\n".join(node.logged()))
            raise

    def _tell(self) -> None:
        tell = self._teller.tell
        self._make_directories()
        run(ckfs_command("init", self._store), self._teller.detail)
        tell(f"made a store in a temporary directory: {self._store}")
        node_a, node_b = self._node("nodea", 1000), self._node("nodeb", 3000)
        tell("made two nodes, nodea and nodeb, each with its own mount, network, uts and pid namespace")
        if self._use_criu:
            way = self._checkpointer(node_a)
        else:
            way = ByItself()
            tell("CRIU is not wanted: the process saves its own state")
        for node in self._nodes:
            node.mount(self._store, self._mountpoint)
            tell(f"mounted the store on {node.name} at {self._mountpoint}")
        self._migrate(way, node_a, node_b)
        for node in self._nodes:
            node.unmount()

    def _migrate(self, way: Checkpointer, node_a: Node, node_b: Node) -> None:
        tell = self._teller.tell
        images = os.path.join(self._mountpoint, SET_NAME)
        counting = self._counting("job")
        counting.start(node_a, "start", os.path.join(images, way.main_image))
        counting.await_count(COUNTS_TO_SEE)
        started = f"started a process as uid {self._user.uid} on nodea, pid {counting.pid}"
        tell(f"{started}: it counts, and is at {counting.last_count()}")
        make_set(node_a, counting, images)
        count = way.checkpoint(node_a, counting, images)
        tell(f"{way.saved} through nodea's mount, into {images}: it was at {count}")
        counting.kill(node_a)
        tell(f"killed it on nodea: pid {counting.pid} is gone")
        way.restore(node_b, counting, images)
        tell(f"{way.restored} through nodeb's mount: it runs on nodeb, pid {counting.pid}")
        counting.await_count(count + COUNTS_TO_SEE)
        seen = counting.check_counted_on(count)
        tell(f"it counted on from {count}: {', '.join(map(str, seen))}, and its memory is the same")
        counting.kill(node_b)
        self._look(node_b, images, os.path.join(images, way.main_image))

    def _look(self, node: Node, images: str, image: str) -> None:
        listing = node.run(ckfs_command("ls", images))
        self._teller.tell(f"ckfs ls {images} on {node.name} says:")
        self._teller.show(listing)
        attributes = node.run([sys.executable, "-I", "-c", _READ_ATTRIBUTES, image, *_ATTRIBUTES])
        self._teller.tell(f"extended attributes of {image} on {node.name}:")
        self._teller.show(attributes)

    def _checkpointer(self, node: Node) -> Checkpointer:
        """CRIU, if one works: shown by a rehearsal on a plain directory, so that a later failure is not CRIU's."""
        complaints: list[str] = []
        for number, criu in enumerate(candidates(self._teller.tell, complaints)):
            try:
                criu.check(node)
                way = self._rehearsed(criu, node, f"rehearsal{number}")
            except DemoFailed as error:
                complaints.append(f"{criu.origin}: {error}")
            else:
                remarks = [*complaints, criu.origin, *way.remarks]
                version = criu.version(node)
                self._teller.tell(
                    f"CRIU {version} works here, as a rehearsal without ckfs shows ({'; '.join(remarks)})"
                )
                return way
        why = "; ".join(complaints)
        self._teller.tell(f"no CRIU works here ({why}): the process saves its own state instead")
        return ByItself()

    def _rehearsed(self, criu: Criu, node: Node, name: str) -> ByCriu:
        counting = self._counting(name)
        logs = os.path.join(counting.workdir, "criu-logs")
        os.mkdir(logs)
        os.chown(logs, self._user.uid, self._user.gid)
        way = ByCriu(criu, logs, dump_as_user=not _has_sys_resource())
        round_trip(way, counting, node, node, os.path.join(counting.workdir, "images"))
        return way

    def _make_directories(self) -> None:
        """All in one temporary directory: the store out of users' reach, work directories, the mount point."""
        top = _make_temporary_directory()
        self._stack.callback(_remove, top)
        self._private = os.path.join(top, "private")
        self._work = os.path.join(top, "work")
        self._mountpoint = os.path.join(top, "checkpoint")
        self._store = os.path.join(self._private, "store")
        self._program = os.path.join(self._work, "counter.py")
        for path, mode in ((self._private, 0o700), (self._work, 0o755), (self._mountpoint, 0o755)):
            os.mkdir(path)
            os.chmod(path, mode)
        shutil.copyfile(os.path.join(os.path.dirname(os.path.abspath(__file__)), "counter.py"), self._program)
        os.chmod(self._program, 0o644)

    def _node(self, name: str, first_pid: int) -> Node:
        node = Node(name, first_pid, self._private, self._teller.detail)
        self._stack.callback(node.close)
        self._nodes.append(node)
        node.start()
        return node

    def _counting(self, name: str) -> Counting:
        return Counting(python_for(self._user), self._program, self._user, os.path.join(self._work, name))


class Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into Interrupted. Yields what makes deaf to more: for cleaning up."""
    deaf = False

    def deafen() -> None:
        nonlocal deaf
        deaf = True

    if threading.current_thread() is not threading.main_thread():
        yield deafen
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal deaf
        if not deaf:
            deaf = True
            raise Interrupted(number)

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield deafen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_sys_resource() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next(line for line in status if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _unused_user() -> Owner:
    """A uid that no account has: an ordinary user needs none."""
    uid = _FIRST_UID
    while True:
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return Owner(Uid(uid), Gid(uid))
        uid += 1


def _make_temporary_directory() -> str:
    """A directory on a file system that holds user.* attributes; tmpfs does only since Linux 6.6."""
    for base in (tempfile.gettempdir(), "/var/tmp"):  # noqa: S108 - mkdtemp makes a private one there
        if os.path.realpath(base).startswith("/run/"):
            continue  # each node has a /run of its own
        top = tempfile.mkdtemp(prefix="ckfs-demo-", dir=base)
        try:
            os.setxattr(top, b"user.ckfs.probe", b"1")
            os.removexattr(top, b"user.ckfs.probe")
        except OSError:
            os.rmdir(top)
        else:
            os.chmod(top, 0o711)
            return top
    raise DemoFailed(
        "no temporary directory takes user extended attributes: set TMPDIR to one on ext4, XFS or btrfs"
    )


def _remove(top: str) -> None:
    """Remove the temporary directory, but never through a mount: that would empty the store of somebody else."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        below = [fields[1] for line in mounts if (fields := line.split())[1].startswith(top)]
    if below:
        raise DemoFailed(f"{below[0]} is still mounted: umount it, then remove {top}")
    shutil.rmtree(top)
