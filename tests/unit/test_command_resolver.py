"""A configured command: everything but one good line from a good end is unknown, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, JobId, Uid
from ckfs.owners.accounts import Account, Accounts
from ckfs.owners.command import GONE_STATUS, MAX_OUTPUT_BYTES, CommandResolver
from ckfs.owners.resolver import Gone, Unknown

JOB = JobId("12.server")
ALICE = Owner(Uid(2101), Gid(2100))
LONG_S = 60.0


class Names:
    def by_uid(self, uid: int) -> Account | None:
        return {0: Account("root", Uid(0), Gid(0)), 2101: Account("alice", Uid(2101), Gid(2100))}.get(uid)

    def by_name(self, name: str) -> Account | None:
        return {"alice": self.by_uid(2101), "root": self.by_uid(0)}.get(name)


@pytest.fixture
def accounts() -> Iterator[Accounts]:
    accounts = Accounts(10, names=Names())
    yield accounts
    accounts.close()


def python(accounts: Accounts, program: str, timeout_s: float = LONG_S) -> CommandResolver:
    return CommandResolver((sys.executable, "-I", "-c", program), timeout_s, accounts)


@pytest.mark.parametrize("line", ["alice\n", "alice", "2101\n", "2101"])
def test_a_name_or_a_number(line: str, accounts: Accounts) -> None:
    assert python(accounts, f"print({line!r}, end='')").owner_of(JOB) == ALICE


@pytest.mark.parametrize(
    "output",
    [
        "",
        "\n",
        "alice\n\n",
        "alice\nbob\n",
        "alice bob\n",
        " alice\n",
        "alice \n",
        "alice\r\n",
        "alice\0\n",
        "root\n",
        "0\n",
        "00\n",
        "-1\n",
        "4294967295\n",
        "99999999999999999999\n",
        "carol\n",
        "4242\n",
        "--help\n",
        "2101:2100\n",
        "\u0662\u0661\u0660\u0661\n",
    ],
)
def test_anything_else_is_unknown(output: str, accounts: Accounts) -> None:
    program = f"import sys; sys.stdout.buffer.write({output.encode()!r})"
    assert python(accounts, program).owner_of(JOB) is None


@pytest.mark.parametrize("end", ["raise SystemExit(1)", "import os; os.kill(os.getpid(), 9)"])
def test_a_bad_end_is_unknown(end: str, accounts: Accounts) -> None:
    assert python(accounts, f"print('alice', flush=True)\n{end}").owner_of(JOB) is None


def test_the_job_is_the_last_argument(accounts: Accounts) -> None:
    program = "import sys; print('alice' if sys.argv[1:] == ['-x', '12[3].server'] else 'root')"
    resolver = CommandResolver((sys.executable, "-I", "-c", program, "-x"), LONG_S, accounts)
    assert resolver.owner_of(JobId("12[3].server")) == ALICE


@pytest.mark.parametrize("job", ["", "-x", "--help", "server", "12;id", "12 3", "../12", "12/..", "12\n"])
def test_what_is_not_a_job_is_not_asked(job: str, accounts: Accounts, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    resolver = CommandResolver(("touch", str(ran)), LONG_S, accounts)
    assert resolver.owner_of(JobId(job)) is None
    assert not ran.exists()


def test_no_shell(accounts: Accounts, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    resolver = CommandResolver(("echo", f"$(touch {ran})"), LONG_S, accounts)
    assert resolver.owner_of(JOB) is None
    assert not ran.exists()


def test_what_it_gets(accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment of the daemon's, no input, no descriptor, no controlling terminal, the root directory."""
    monkeypatch.setenv("SECRET", "x")
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    program = """
import os, sys
fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
ok = (
    not (set(os.environ) - {"PATH", "LC_ALL", "LC_CTYPE"})
    and sys.stdin.read() == ""
    and not [fd for fd in fds if os.readlink(f"/proc/self/fd/{fd}") != f"/proc/{os.getpid()}/fd"]
    and os.getpgrp() == os.getpid() == os.getsid(0)
    and os.getcwd() == "/"
)
print("alice" if ok else "no")
"""
    try:
        assert python(accounts, program).owner_of(JOB) == ALICE
    finally:
        os.close(leaked)


def test_a_program_that_is_not_there(accounts: Accounts) -> None:
    assert CommandResolver(("/no/such/program",), LONG_S, accounts).owner_of(JOB) is None


def test_no_program_at_all(accounts: Accounts) -> None:
    with pytest.raises(ValueError, match="empty"):
        CommandResolver((), LONG_S, accounts)


def test_output_without_end(accounts: Accounts) -> None:
    before = time.monotonic()
    assert python(accounts, "while True: print('alice' * 1000)").owner_of(JOB) is None
    assert time.monotonic() - before < LONG_S


@pytest.mark.parametrize(("excess", "owner"), [(0, None), (1, None)])
def test_output_at_the_limit(excess: int, owner: Owner | None, accounts: Accounts) -> None:
    program = f"print('a' * {MAX_OUTPUT_BYTES - 1 + excess})"
    assert python(accounts, program).owner_of(JOB) is owner


@pytest.mark.parametrize("silent", [True, False])
def test_too_slow(silent: bool, accounts: Accounts, tmp_path: Path) -> None:
    """It and its child are killed: both hold the write end of a fifo open, and the reader sees its end."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    close = "os.close(1)" if silent else "print('alice', flush=True)"
    program = f"import os, time; os.open({str(fifo)!r}, os.O_WRONLY); {close}; os.fork(); time.sleep(600)"
    try:
        assert python(accounts, program, timeout_s=1.0).owner_of(JOB) is None
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        deadline = time.monotonic() + 10
        while not (events := poll.poll(1000)) or not events[0][1] & select.POLLHUP:
            assert time.monotonic() < deadline
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_children_do_not_outlive_a_good_answer(accounts: Accounts, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    program = f"""
import os, time
os.open({str(fifo)!r}, os.O_WRONLY)
print("alice", flush=True)
if os.fork() == 0:
    os.close(1)
    time.sleep(600)
"""
    try:
        assert python(accounts, program).owner_of(JOB) == ALICE
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        assert poll.poll(10_000)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_nothing_is_left(accounts: Accounts) -> None:
    """No descriptor, no zombie."""
    before = len(os.listdir("/proc/self/fd"))
    for program in ("print('alice')", "raise SystemExit(3)"):
        python(accounts, program).owner_of(JOB)
    assert len(os.listdir("/proc/self/fd")) == before
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)


# Gone


@pytest.mark.parametrize("output", ["", "alice\n", "no such job\n"])
def test_one_exit_status_says_that_the_job_is_gone(output: str, accounts: Accounts) -> None:
    resolver = python(accounts, f"print({output!r}, end=''); raise SystemExit({GONE_STATUS})")
    assert resolver.resolve(JOB) == Gone()
    assert resolver.owner_of(JOB) is None


@pytest.mark.parametrize("status", [1, 2, 3, 43, 45, 126, 127, 255])
def test_no_other_exit_status_says_so(status: int, accounts: Accounts) -> None:
    assert python(accounts, f"raise SystemExit({status})").resolve(JOB) == Unknown("failed", suspect=True)


@pytest.mark.parametrize(
    "program",
    [
        f"import os; os.kill(os.getpid(), {GONE_STATUS})",
        f"import os\nif os.fork(): os._exit(1)\nos._exit({GONE_STATUS})",
        f"print('x' * {MAX_OUTPUT_BYTES + 1}); raise SystemExit({GONE_STATUS})",
        f"import time; time.sleep(600); raise SystemExit({GONE_STATUS})",
    ],
)
def test_what_fails_does_not_say_so(program: str, accounts: Accounts) -> None:
    answer = python(accounts, program, 2.0).resolve(JOB)
    assert isinstance(answer, Unknown)
    assert answer.suspect


def test_a_command_that_is_not_there_can_tell_nothing(accounts: Accounts) -> None:
    missing = CommandResolver(("/nonexistent/command",), LONG_S, accounts)
    assert missing.why_never_gone() == "cannot be run on this host"
    answer = missing.resolve(JOB)
    assert isinstance(answer, Unknown)
    assert answer.suspect
    assert python(accounts, "").why_never_gone() is None
