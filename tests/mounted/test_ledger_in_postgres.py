"""A store whose ledger is in PostgreSQL: several hosts mount it; a database that is away, or is another, is one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.ledger import postgres
from ckfs.ledger.book import Book
from ckfs.names import Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import binding
from ckfs.store.binding import Binding, Kept
from ckfs.store.layout import registry
from tests.support.agents import Agent
from tests.support.commands import ckfs_as
from tests.support.mounting import mounted, run_ckfs
from tests.support.postgres import Server, running, skip_unless_installed
from tests.support.users import ALICE, as_user

pytestmark = pytest.mark.root

LONG_S = 60.0
UP, DOWN = 0, 3
"""Exit statuses of ckfs status."""
AWAY = [r"the ledger of quotas is (away|back)"]
UNIT = 4096
SAVED = Amount(2 * UNIT, 2)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    skip_unless_installed()
    with running() as started:
        yield started


@pytest.fixture
def connection(server: Server, store: Path) -> str:
    """Of a new database, which the store's policy names."""
    made = server.new_database(f"ckfs_{secrets.token_hex(4)}")
    write_policy(store, made)
    return made


def write_policy(store: Path, connection: str) -> None:
    (store / "policy.toml").write_text(f'[quota]\nledger = "{connection}"\n[liveness]\nlease = 2\n')


@contextlib.contextmanager
def ledger_of(store: Path, connection: str) -> Iterator[Book]:
    identifier = (store / "ckfs.toml").read_text().split('id = "')[1].split('"')[0]
    with contextlib.closing(postgres.open_ledger(connection, identifier, LONG_S)) as book:
        yield book


def used(store: Path, connection: str) -> Amount:
    with ledger_of(store, connection) as book:
        return book.account(Uid(ALICE)).used


def save(directory: Path) -> None:
    def work() -> None:
        directory.mkdir()
        (directory / "image").write_bytes(b"x" * UNIT)

    as_user(ALICE, work)


def refusal(store: Path, workdir: Path, *options: str) -> str:
    (workdir / "refused").mkdir(exist_ok=True)
    done = run_ckfs("mount", store, workdir / "refused", *options)
    assert done.returncode == 3, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ckfs: ")]
    assert line.isprintable()
    return line


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def test_several_hosts_share_it(store: Path, workdir: Path, connection: str) -> None:
    with (
        mounted(store, workdir / "a", node="a", options=[f"state={workdir}/state-a"]) as first,
        mounted(store, workdir / "b", node="b", options=[f"state={workdir}/state-b"]) as second,
    ):
        assert "counted what is in the store" in first.log()
        assert "counted what is in the store" not in second.log()
        bound = binding.read(str(store))
        assert bound is not None
        assert bound == Binding(Kept.POSTGRESQL, bound.id)


def test_a_dead_mounts_grants_come_back(store: Path, workdir: Path, connection: str) -> None:
    with mounted(store, workdir / "a", node="a") as first, mounted(store, workdir / "b", node="b") as second:
        save(second.path / "set")
        with registry(str(store)) as mounts:
            [mount] = [one.id for one in mounts.all() if one.node == b"a"]
        with ledger_of(store, connection) as book:
            book.draw(mount, Uid(ALICE), NOTHING, Amount(100 * UNIT, 10))
            first.kill()
            eventually(lambda: mount not in book.mounts())
            eventually(lambda: book.account(Uid(ALICE)).used == SAVED)


def test_a_database_that_was_lost_is_filled_from_the_store(
    store: Path, workdir: Path, connection: str, server: Server
) -> None:
    with mounted(store, workdir / "a") as mount:
        save(mount.path / "set")
        another = server.new_database(f"ckfs_{secrets.token_hex(4)}")
        write_policy(store, another)
        assert "umount it everywhere first" in refusal(store, workdir)
    with mounted(store, workdir / "a"):
        assert used(store, another) == SAVED
    # What the first one says has not been true since.
    write_policy(store, connection)
    with ledger_of(store, connection) as book:
        book.recounted(Uid(ALICE), None, NOTHING)
    with mounted(store, workdir / "a"):
        assert used(store, connection) == SAVED


def test_a_ledger_moves_from_a_host_into_the_database(store: Path, workdir: Path, connection: str) -> None:
    write_policy(store, "embedded")
    with mounted(store, workdir / "a") as mount:
        save(mount.path / "set")
    write_policy(store, connection)
    with mounted(store, workdir / "a"):
        assert used(store, connection) == SAVED


def test_a_database_that_is_not_there_is_one_line(store: Path, workdir: Path) -> None:
    write_policy(store, f"host={workdir} dbname=ckfs")
    line = refusal(store, workdir, "-o", "op_timeout=3")
    assert "the ledger of its quotas cannot be reached" in line
    assert "see quota.ledger in its policy.toml" in line
    assert run_ckfs("ledger", "check", store).returncode == 3


def test_a_database_that_hangs_is_one_line(
    store: Path, workdir: Path, connection: str, server: Server
) -> None:
    with server.frozen():
        assert "cannot be reached" in refusal(store, workdir, "-o", "op_timeout=3")
    with mounted(store, workdir / "a"):
        pass


def test_status_tells_when_the_database_is_away_and_when_it_is_back(
    store: Path, workdir: Path, connection: str, server: Server
) -> None:
    with mounted(store, workdir / "a", options=["op_timeout=3"], may_log=AWAY) as mount:

        def status() -> tuple[int, bool]:
            done = run_ckfs("status", mount.path, "--json")
            said = json.loads(done.stdout)["ledger"]
            assert said["kind"] == "postgresql"
            return done.returncode, said["reachable"]

        assert status() == (UP, True)
        with server.frozen():
            eventually(lambda: status() == (DOWN, False))
            said = json.loads(run_ckfs("status", mount.path, "--json").stdout)
            assert said["store_up"] is True
            assert said["last_error"].startswith(
                "the ledger of quotas cannot be reached: the ledger's database "
            )
            ran = ckfs_as(ALICE, "status", mount.path)
            assert ran.status == DOWN
            assert "quotas:       ledger (postgresql), out of reach, since " in ran.text
            assert "last error:   the ledger of quotas cannot be reached, " in ran.text  # no host, no role
        eventually(lambda: status() == (UP, True))


def test_a_restart_of_the_database_is_waited_for_and_nothing_is_lost(
    store: Path, workdir: Path, connection: str, server: Server
) -> None:
    with mounted(store, workdir / "a", may_log=AWAY) as mount:
        save(mount.path / "earlier")
        with Agent(ALICE) as alice:
            fd = alice.do(os.open, str(mount.path / "written"), os.O_WRONLY | os.O_CREAT, 0o600)
            alice.do(os.write, fd, b"x" * UNIT)
            server.stop()
            alice.begin(write_much, fd)
            server.start()
            assert alice.result() == MUCH
            alice.do(os.fsync, fd)
            alice.do(os.close, fd)
        eventually(lambda: used(store, connection) == SAVED + Amount(UNIT + MUCH, 1))
        assert os.getxattr(mount.path / "written", "user.ckfs.state") == b"complete"


MUCH = 64 << 20
"""More than a mount is granted at once: it has to ask."""


def write_much(fd: int) -> int:
    piece = b"x" * (1 << 20)
    return sum(os.write(fd, piece) for _ in range(MUCH // len(piece)))


def test_commands_for_the_ledger_itself(store: Path, workdir: Path, connection: str) -> None:
    done = run_ckfs("ledger", "check", store)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    with mounted(store, workdir / "a"):
        done = run_ckfs("ledger", "check", store)
        assert (done.returncode, done.stderr) == (0, "")
    assert run_ckfs("ledger", "upgrade", store).returncode == 0
    done = run_ckfs("ledger", "adopt", store)
    assert done.returncode == 2
    assert "no host keeps the ledger" in done.stderr
