"""A host that disappears and never returns, while it writes: the others take back what it had been granted, and lose nothing but what
it had not made safe."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.postgres import Server, running, skip_unless_installed
from tests.support.users import ALICE, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

PATIENCE_S = 90.0
LEASE_S = 2
MIB = 1 << 20
HARD_BYTES = 16 * MIB
SET = "7.server.CK"
OTHER_KERNEL = b"00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    skip_unless_installed()
    with running() as started:
        yield started


@pytest.fixture
def store(server: Server, workdir: Path) -> Path:
    """Its ledger is in PostgreSQL."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    made = make_store(private)
    connection = server.new_database(f"ckfs_{secrets.token_hex(4)}")
    (made / "policy.toml").write_text(
        f'[quota]\nledger = "{connection}"\nreserve = "0%"\n[liveness]\nlease = {LEASE_S}\n'
    )
    return made


def eventually(ask: Callable[[], object], expected: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := ask()) != expected:
        assert time.monotonic() < deadline, f"still {found}, not {expected}"
        time.sleep(0.05)


def write(path: str, data: bytes, *, sync: bool = False) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, data)
    if sync:
        os.fsync(fd)
    return fd


def save(path: str, data: bytes) -> None:
    os.close(write(path, data))


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def fill(path: str) -> tuple[int, int]:
    """Write until that is refused: how many bytes were written, and the errno."""
    written = 0
    with open(path, "wb", buffering=0) as file:
        while True:
            try:
                written += file.write(bytes(64 << 10))
            except OSError as error:
                return written, error.errno or 0


def state(path: str) -> str:
    return os.getxattr(path, "user.ckfs.state").decode()


def disappear(mount: Mount, state_directory: Path, store: Path) -> None:
    """It says nothing any more, from a kernel that is not this one: only its beat tells that it is gone."""
    mount.process.send_signal(signal.SIGSTOP)
    [registration] = [
        path
        for path in (store / "mounts").iterdir()
        if path.is_file() and not path.is_symlink() and b";n=gone;" in path.read_bytes()
    ]
    registration.write_bytes(re.sub(rb";h=[^;]*", b";h=" + OTHER_KERNEL, registration.read_bytes()))
    mount.kill()
    mount.detach()
    # With the ledger in PostgreSQL a host keeps nothing of its own that anybody would need.
    shutil.rmtree(state_directory, ignore_errors=True)


def test_what_it_was_granted_comes_back_and_nothing_that_was_acknowledged_is_lost(
    store: Path, workdir: Path
) -> None:
    gone_state = workdir / "state-gone"
    with (
        mounted(
            store,
            workdir / "left",
            node="left",
            role="server",
            options=[f"state={workdir}/state-left"],
            may_log=[r"is partial|is complete"],
        ) as left,
        Agent(ALICE) as alice,
        Agent(ALICE) as writer,
    ):
        done = run_ckfs("quota", "set", str(ALICE), "--hard", str(HARD_BYTES), "--store", left.path)
        assert done.returncode == 0
        with mounted(store, workdir / "gone", node="gone", options=[f"state={gone_state}"]) as gone:
            (gone.path / SET).mkdir()
            os.chown(gone.path / SET, ALICE, ALICE)
            there, here = f"{gone.path}/{SET}", f"{left.path}/{SET}"
            writer.do(save, f"{there}/complete", b"complete" * 1000)
            alice.do(save, f"{here}/of the other", b"elsewhere")
            writer.do(write, f"{there}/torn", b"x" * MIB)
            writer.do(write, f"{there}/synced", b"synced", sync=True)
            assert state(f"{here}/torn") == "writing"
            disappear(gone, gone_state, store)

        eventually(lambda: state(f"{here}/torn"), "partial")
        eventually(lambda: state(f"{here}/synced"), "complete")
        assert alice.do(errno_of_call, content, f"{here}/torn") == errno.EIO
        assert alice.do(content, f"{here}/complete") == b"complete" * 1000
        assert alice.do(content, f"{here}/synced") == b"synced"
        assert alice.do(content, f"{here}/of the other") == b"elsewhere"

        # All that is not in the store is to be had: nothing is held for the dead.
        eventually(lambda: "has died: uid" in left.log(), True)
        in_store = (
            sum(path.lstat().st_blocks * 512 for path in (store / "users" / str(ALICE)).rglob("*")) + 2 * 4096
        )
        written, number = alice.do(fill, f"{left.path}/rest")
        assert number == errno.EDQUOT
        assert HARD_BYTES - in_store - 64 * 1024 <= written <= HARD_BYTES
        os.unlink(left.path / "rest")
