"""The control socket of a mount: where it is, whom it believes, and that nobody who talks to it can hurt or hold up others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.control import client
from ckfs.control.client import ask
from ckfs.control.protocol import REQUEST_BYTES
from ckfs.errors import CkfsError
from tests.support.agents import Agent
from tests.support.mounting import Mount, command, environment, mounted, run_ckfs
from tests.support.users import ALICE, BOB, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

PER_USER = 4
"""How many connections a user may have (docs/commands.md)."""
USERS = 48
"""How many all users together."""


def device_of(mount: Mount) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        [device] = [line.split()[2] for line in lines if line.split()[4] == str(mount.path)]
    return device


def path_of(mount: Mount) -> Path:
    return Path(client.DIRECTORY) / client.socket_name(device_of(mount))


@contextlib.contextmanager
def connected(mount: Mount) -> Iterator[socket.socket]:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(30)
        connection.connect(str(path_of(mount)))
        yield connection


def answer_to(mount: Mount, sent: bytes) -> list[dict[str, object]]:
    """All lines that come back until the daemon hangs up."""
    with connected(mount) as connection:
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(sent)
        return lines_of(connection)


def lines_of(connection: socket.socket) -> list[dict[str, object]]:
    data = b""
    with contextlib.suppress(ConnectionResetError):  # it has not read all that was sent
        while piece := connection.recv(1 << 16):
            data += piece
    return [json.loads(line) for line in data.splitlines()]


def role_of(mount: Mount) -> object:
    """A request as any, to see that they are answered."""
    [said] = ask(device_of(mount), "status", {})
    return said["role"]


STATUS = b'{"ckfs":1,"do":"status","with":{}}\n'


# Where it is


def test_it_is_root_s_and_open_to_all(module_mount: Mount) -> None:
    directory, file = os.stat(client.DIRECTORY), os.stat(path_of(module_mount))
    assert (directory.st_uid, directory.st_mode & 0o7777) == (0, 0o755)
    assert (file.st_uid, file.st_mode & 0o7777) == (0, 0o666)


def test_it_goes_with_the_mount(mount: Mount) -> None:
    path = path_of(mount)
    assert role_of(mount) == "node"
    mount.umount()
    assert not path.exists()


def test_what_a_dead_mount_left_is_taken_away(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "first") as first:
        device, path = device_of(first), path_of(first)
        first.kill()
        assert path.exists()
        with pytest.raises(CkfsError, match="is the mount's daemon running"):
            list(ask(device, "status", {}))
        stale = path.stat().st_mtime_ns
        first.detach()
    with mounted(store, workdir / "second") as second:
        # Device numbers are used again, by whichever mount on this machine comes next.
        assert not path.exists() or path.stat().st_mtime_ns != stale
        assert role_of(second) == "node"


def test_without_the_directory_the_mount_works_and_says_so_once(store: Path, workdir: Path) -> None:
    """In a mount namespace of its own /run is empty and cannot be written."""
    mountpoint, log = workdir / "mount", workdir / "log"
    mountpoint.mkdir()
    script = 'mount -t tmpfs -o ro none /run && exec "$@"'
    arguments = command("mount", store, mountpoint, "-f", "-o", f"log={log}")
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *arguments],
        env=environment(),
    )
    try:
        deadline = time.monotonic() + 30
        while not log.exists() or f"on {mountpoint}" not in log.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        inside = f"/proc/{process.pid}/root{mountpoint}"
        os.mkdir(f"{inside}/set")
        assert os.listdir(inside) == ["set"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    warnings = [line for line in log.read_text().splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "no control socket in /run/ckfs (Read-only file system)" in warnings[0]


# Who is believed


def test_a_fake_daemon_of_a_user_is_not_asked(workdir: Path) -> None:
    directory = workdir / "fake"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    with Agent(ALICE) as faker:
        faker.do(listen_at, str(directory / client.socket_name("0:99")))
        faker.begin(hear)
        with pytest.raises(CkfsError, match="another user than root answers there"):
            list(ask("0:99", "status", {}, directory=str(directory)))
        assert faker.result() == b""


_held: list[socket.socket] = []
"""Of an agent's process."""


def listen_at(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    _held.append(listener)


def hear() -> bytes:
    """What the first who comes has to say before he goes."""
    connection, _ = _held[0].accept()
    connection.settimeout(30)
    return connection.recv(100)


def test_commands_ask_only_about_mounts_that_root_made(workdir: Path) -> None:
    done = run_ckfs("status", workdir)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"ckfs: {workdir}: not on a ckfs mount\n"


def test_a_stopped_daemon_is_not_waited_for_long(mount: Mount) -> None:
    device = device_of(mount)
    mount.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CkfsError, match="does not answer"):
            list(ask(device, "status", {}, silence_s=0.2))
    finally:
        mount.process.send_signal(signal.SIGCONT)


# What is said


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\n", "no JSON"),
        (b"\x00\xff garbage\n", "no JSON"),
        (b"[" * 60_000 + b"\n", "no JSON"),
        (b'{"ckfs":1,"do":NaN}\n', "no JSON"),
        (b"[]\n", "no JSON object"),
        (b'{"ckfs":1}\n', "not a request"),
        (b'{"ckfs":1,"do":"status","with":{},"more":1}\n', "not a request"),
        (b'{"ckfs":2,"do":"status","with":{}}\n', "speaks version 1"),
        (b'{"do":"status"}\n', "speaks version 1"),
        (
            b'{"ckfs":1,"do":"a\\u001b[2Jb","with":{}}\n',
            r"a\x1b[2Jb: the mount's daemon knows no such request",
        ),
        (b'{"ckfs":1,"do":"status","with":{"a":1}}\n', "fields besides none"),
        (b'{"ckfs":1,"do":"read-partial","with":{"ino":"1"}}\n', "ino must be a number"),
        (b'{"ckfs":1,"do":"read-partial","with":{"ino":1e400}}\n', "ino must be a number"),
        (b'{"ckfs":1,"do":"trash-ls","with":{"tokens":"abc"}}\n', "tokens must be a list"),
        (b'{"ckfs":1,"do":"trash-ls","with":{"set_name":"\\ud800"}}\n', "set_name must be a text"),
        (b'{"ckfs":1,"do":"trash-purge","with":{"all":1}}\n', "all must be true or false"),
        (STATUS + STATUS, "one request a connection"),
        (b"x" * (REQUEST_BYTES + 1), "a line of more than"),
    ],
)
def test_nonsense_gets_one_clear_error(module_mount: Mount, sent: bytes, reason: str) -> None:
    [reply] = answer_to(module_mount, sent)
    assert reply.keys() == {"error", "status"}
    assert reason in str(reply["error"])
    assert "\n" not in str(reply["error"])
    assert reply["status"] in (1, 2)
    assert role_of(module_mount) == "node"
    assert "failed unexpectedly" not in module_mount.log()


def test_half_a_line_is_not_waited_for(module_mount: Mount) -> None:
    with connected(module_mount) as connection:
        connection.sendall(STATUS[:10])
        assert role_of(module_mount) == "node"  # meanwhile
        [reply] = lines_of(connection)
    assert "no whole request within" in str(reply["error"])


def test_a_line_may_come_in_pieces(module_mount: Mount) -> None:
    with connected(module_mount) as connection:
        for byte in STATUS:
            connection.send(bytes([byte]))
        said, end = lines_of(connection)
    assert "says" in said
    assert end == {"done": True}


def test_who_hangs_up_at_once_harms_nobody(module_mount: Mount) -> None:
    for sent in (b"", STATUS[:5], STATUS):
        with connected(module_mount) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(sent)
    assert role_of(module_mount) == "node"


# How many


@contextlib.contextmanager
def holding(mount: Mount, *uids: int) -> Iterator[None]:
    """As many connections as a user may have, held by each of *uids*, who says nothing."""
    with contextlib.ExitStack() as stack:
        for agent in [stack.enter_context(Agent(uid)) for uid in uids]:
            agent.do(hold, str(path_of(mount)), PER_USER)
        yield


def hold(path: str, count: int) -> None:
    for _ in range(count):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(path)
        _held.append(connection)


def answer_as(uid: int, mount: Mount) -> str:
    """What a user's request is answered: a role, or why not."""
    [said, *_] = as_user(uid, answer_to, mount, STATUS)
    says = said.get("says")
    return str(says["role"] if isinstance(says, dict) else said["error"])


def test_a_user_has_few_connections_and_others_have_theirs(module_mount: Mount) -> None:
    with holding(module_mount, ALICE):
        assert "too many ask this mount" in answer_as(ALICE, module_mount)
        assert answer_as(BOB, module_mount) == "node"
    assert answer_as(ALICE, module_mount) == "node"


def test_however_many_users_hold_connections_root_is_answered(module_mount: Mount) -> None:
    with holding(module_mount, *range(2200, 2200 + USERS // PER_USER)):
        assert "too many ask this mount" in answer_as(ALICE, module_mount)
        assert role_of(module_mount) == "node"
    assert answer_as(ALICE, module_mount) == "node"


# Where callers are


def test_who_asks_is_known_in_another_pid_namespace_too(mount: Mount) -> None:
    """By uid, as the kernel says; whatever processes are called there."""
    script = f"import json; from ckfs.control.client import ask; print(json.dumps(list(ask({device_of(mount)!r}, 'status', {{}}))))"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", command()[0], "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["role"] == "node"
