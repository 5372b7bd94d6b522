"""The places that are compared, all on one file system: a plain directory, ckfs over a store as it comes and with everything by its
daemon, and other FUSE file systems over directories, where they are installed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckfs.bench import workloads
from tests.support.agents import Agent
from tests.support.mounting import Mount, is_mounted, make_store, mounted
from tests.support.users import ALICE, ROOT

USER = ALICE
"""Who works in the places; not root, so that ckfs has to switch identities."""
SET, BATCH_SET = "bench", "1.server.CK"
PLAIN, BINDFS, CKFS, BY_DAEMON = "plain", "bindfs", "ckfs", "ckfs by the daemon"
MERGERFS, PASSTHROUGH_HP = "mergerfs", "passthrough_hp"

BY_DAEMON_ALONE = ("passthrough=off",)
"""Mount options: whether the kernel may pass something through depends on limits and sets, so what is to be compared otherwise does without."""

DROP_CACHES = "/proc/sys/vm/drop_caches"
_READY_S = 10.0
_LONGEST_CALL_S = 1800.0
_EXAMPLES = (
    "/usr/lib/*/fuse3",
    "/usr/libexec/fuse3",
    "/usr/share/doc/*fuse3*/examples",
    "/usr/local/share/*fuse3*/example*",
)
"""Where a libfuse that was built with its examples may have put them."""


@dataclass(frozen=True, slots=True)
class Place:
    """*directory* is where *user* works, *images* where he makes what gets a final name there: in ckfs a batch set, else the same.
    *below* and *images_below* are where the files of these really lie on the backing file system. *mount* is of ckfs alone."""

    name: str
    directory: str
    images: str
    below: str
    images_below: str
    user: int = USER
    mount: Mount | None = None

    @property
    def pid(self) -> int | None:
        """Of ckfs's daemon."""
        return None if self.mount is None else self.mount.process.pid

    @property
    def passes(self) -> bool:
        """Whether the kernel reads and writes files of the store by itself, as the daemon says when it starts."""
        return self.mount is not None and "with passthrough" in self.mount.log()


@contextmanager
def places(scratch: Path, examples: str | None = None) -> Iterator[dict[str, Place]]:
    """All places, new and empty; others' file systems only where they are installed, or their examples are in *examples*. Nothing
    is left afterwards."""
    with contextlib.ExitStack() as stack:
        found = [_plain(scratch)]
        for name, command, user in _others(examples):
            found.append(stack.enter_context(_served(scratch, name, command, user)))
        found.append(stack.enter_context(_ckfs(scratch, CKFS)))
        found.append(stack.enter_context(_ckfs(scratch, BY_DAEMON, *BY_DAEMON_ALONE)))
        yield {place.name: place for place in found}


@contextmanager
def scratch_in(directory: str) -> Iterator[Path]:
    """A new directory below *directory* that users may pass through."""
    scratch = Path(tempfile.mkdtemp(prefix="ckfs-bench-", dir=directory))
    scratch.chmod(0o711)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _others(examples: str | None) -> Iterator[tuple[str, list[str], int]]:
    """Name, command and who works there, each with its defaults; as root that includes allow_other for bindfs and mergerfs."""
    if bindfs := shutil.which("bindfs"):
        yield BINDFS, [bindfs, "-f"], USER
    if mergerfs := shutil.which("mergerfs"):
        yield MERGERFS, [mergerfs, "-f", "-o", "allow_other,minfreespace=0"], USER
    if passthrough_hp := _example(PASSTHROUGH_HP, examples):
        # Whatever is made there is the user's who has started it.
        yield PASSTHROUGH_HP, [passthrough_hp], ROOT


def _example(name: str, examples: str | None) -> str | None:
    directories = [examples] if examples else []
    directories += [found for pattern in _EXAMPLES for found in sorted(glob.glob(pattern))]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(directories))


def _directory_of(uid: int, path: Path) -> str:
    path.mkdir()
    os.chown(path, uid, uid)
    return str(path)


def _plain(scratch: Path) -> Place:
    directory = _directory_of(USER, scratch / PLAIN)
    return Place(PLAIN, directory, directory, directory, directory)


@contextmanager
def _served(scratch: Path, name: str, command: Sequence[str], user: int) -> Iterator[Place]:
    """A directory behind another FUSE file system. It may go to the background or stay."""
    below, mountpoint = _directory_of(user, scratch / f"below-{name}"), scratch / name
    mountpoint.mkdir()
    process = subprocess.Popen([*command, below, str(mountpoint)], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _READY_S
        while not is_mounted(mountpoint):
            if process.poll() or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not come up")
            time.sleep(0.01)
        directory = str(mountpoint)
        yield Place(name, directory, directory, below, below, user)
    finally:
        subprocess.run(["umount", str(mountpoint)], check=False)
        if is_mounted(mountpoint):
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        process.terminate()
        process.wait()


@contextmanager
def _ckfs(scratch: Path, name: str, *options: str) -> Iterator[Place]:
    word = name.replace(" ", "-")
    private = scratch / f"private-{word}"
    private.mkdir(mode=0o700)
    with mounted(make_store(private), scratch / word, node="bench", options=options) as mount:
        directory, images = str(mount.path / SET), str(mount.path / BATCH_SET)
        as_user(os.mkdir, directory, 0o700)
        make_batch_set(images)
        users = mount.store / "users" / str(USER)
        yield Place(name, directory, images, str(users / SET), str(users / BATCH_SET), mount=mount)


def make_batch_set(path: str) -> None:
    """As TORQUE does it: root makes it, and gives it to the user. In another process, for this one does not touch mounts."""
    with Agent(ROOT) as root:
        root.do(os.mkdir, path, 0o700)
        root.do(os.chown, path, USER, USER)


def as_user(call: Callable[..., object], *args: object, uid: int = USER) -> float:
    """``call(*args)`` in a new process of the user's; gives what the call gave, as a number."""
    with Agent(uid) as agent:
        agent.begin(call, *args)
        answer = agent.result(_LONGEST_CALL_S)
    return float(answer) if answer is not None else 0.0


def write_out(directory: str) -> None:
    """What is in *directory* is on the disk afterwards, so that nobody else waits for it."""
    _each_file(directory, os.fsync)


def forget_pages(directory: str) -> bool:
    """Write the files in *directory* out and drop them from the page cache. False if many pages are still there, as on tmpfs."""
    return all(_each_file(directory, workloads.forget_pages))


def _each_file(directory: str, call: Callable[[int], object]) -> list[object]:
    answers = []
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            fd = os.open(entry.path, os.O_RDONLY)
            try:
                answers.append(call(fd))
            finally:
                os.close(fd)
    return answers


def forget_names() -> bool:
    """Drop the kernel's cached names and inodes, where that is allowed (it concerns the whole machine)."""
    try:
        with open(DROP_CACHES, "w") as request:
            request.write("2")
    except OSError:
        return False
    return True
