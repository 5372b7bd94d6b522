"""Where a store's ledger is kept, who may keep it, and how it is made anew: real mounts, and a second host of namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.cli.mounted import mount_at
from ckfs.control.client import ask
from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from ckfs.names import MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from ckfs.store import binding, limits
from ckfs.store.identity import ROOT as ROOT_OWNER
from ckfs.store.layout import registry
from tests.support.agents import Agent
from tests.support.commands import ckfs_as
from tests.support.ledgers import ledger_file
from tests.support.mounting import Mount, command, environment, make_store, mounted, run_ckfs, state_directory
from tests.support.users import ALICE, ChildFailed, as_user

pytestmark = pytest.mark.root

LONG_S = 60.0
POLICY = """
[quota]
mode = "{mode}"
[liveness]
lease = 2
"""
UNIT = 4096


def write_policy(store: Path, mode: str = "ledger") -> None:
    (store / "policy.toml").write_text(POLICY.format(mode=mode))


@contextlib.contextmanager
def ledger_of(store: Path) -> Iterator[Book]:
    path = ledger_file(store)
    with contextlib.closing(sqlite.open_ledger(os.fsencode(path), path.parent.name)) as book:
        yield book


def used(store: Path, uid: int = ALICE) -> Amount:
    with ledger_of(store) as book:
        return book.account(Uid(uid)).used


def remove_ledger(store: Path) -> None:
    for path in ledger_file(store).parent.glob("ledger.sqlite*"):
        path.unlink()


def save(path: Path, size: int = 3 * UNIT) -> None:
    def work() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)

    as_user(ALICE, work)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def refusal(store: Path, workdir: Path) -> str:
    """The one line with which this host's mount of *store* is refused."""
    (workdir / "refused").mkdir(exist_ok=True)
    done = run_ckfs("mount", store, workdir / "refused")
    assert done.returncode == 3, done.stderr
    return _one_line(done.stderr)


def _one_line(text: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith("ckfs: ")]
    assert line.isprintable()
    return line


OTHER_HOST = """
if [ -e /etc/machine-id ]; then mount --bind "$1" /etc/machine-id; fi
shift
exec "$@"
"""
THERE_AND_BACK = (
    'python=$1; store=$2; at=$3; shift 3; "$python" -m ckfs mount "$store" "$at" && ls "$at" && umount "$at"'
)


def on_another_host(workdir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command run where the machine's id is another, and what the host keeps lies elsewhere."""
    machine_id = workdir / "machine-id"
    machine_id.write_text("fedcba9876543210fedcba9876543210\n")
    where = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", OTHER_HOST, "sh"]
    return subprocess.run(
        [*where, machine_id, *arguments],
        env=environment(CKFS_STATE_DIR=str(workdir / "state-of-the-other")),
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )


def mounted_on_another_host(store: Path, workdir: Path) -> subprocess.CompletedProcess[str]:
    (workdir / "there").mkdir(exist_ok=True)
    python = command()[0]
    return on_another_host(workdir, "sh", "-c", THERE_AND_BACK, "sh", python, store, workdir / "there")


def test_the_first_mount_keeps_the_ledger_on_its_host(store: Path, workdir: Path) -> None:
    assert binding.read(str(store)) is None
    with mounted(store, workdir / "mount", node="tqs1"):
        bound = binding.read(str(store))
        assert bound is not None
        assert bound.node == "tqs1"
    assert ledger_file(store).stat().st_mode & 0o777 == 0o600
    assert ledger_file(store).parent.stat().st_mode & 0o777 == 0o700
    with mounted(store, workdir / "mount", node="renamed"):
        assert binding.read(str(store)) == bound


def test_the_state_directory_is_an_option_of_the_mount(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", options=[f"state={workdir}/own"]):
        assert [path.name for path in (workdir / "own").iterdir()] == [ledger_file(store).parent.name]
    assert not ledger_file(store).exists()


def purged(where: Path) -> str:
    """What ``ckfs trash purge`` has to say on standard error."""
    done = run_ckfs("trash", "purge", "--all", "--store", where)
    assert done.returncode == 0, done.stderr
    return done.stderr


def used_by_alice(where: Path, *options: str) -> int:
    done = run_ckfs("quota", str(ALICE), "--json", "--store", where, *options)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["owners"]
    return int(row["used_bytes"])


def test_commands_ask_a_mount_where_its_ledger_is(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", options=[f"state={workdir}/own"]) as mount:
        save(mount.path / "set" / "image")
        as_user(ALICE, os.unlink, mount.path / "set" / "image")
        assert purged(mount.path) == ""
        eventually(lambda: used_by_alice(mount.path) == UNIT)
        assert run_ckfs("gc", store, "--apply").returncode == 0
        for where in (store, mount.path):
            done = run_ckfs("quota", "check", "--store", where)
            assert (done.returncode, done.stderr) == (0, "")
        done = run_ckfs("ledger", "check", store)
        assert (done.returncode, done.stderr) == (0, "")
    assert not ledger_file(store).exists()


def test_a_mount_of_another_store_is_not_believed(store: Path, workdir: Path) -> None:
    (workdir / "another").mkdir(mode=0o700)
    another = make_store(workdir / "another")
    with (
        mounted(another, workdir / "a", options=[f"state={workdir}/own"]),
        mounted(store, workdir / "b") as mount,
    ):
        assert run_ckfs("quota", "check", "--store", mount.path).returncode == 0
        assert run_ckfs("ledger", "check", store).returncode == 0


def test_only_root_is_told_where_the_ledger_is(mount: Mount) -> None:
    device = mount_at(str(mount.path)).device
    assert [said["directory"] for said in ask(device, "state", {})] == [str(state_directory())]
    with pytest.raises(ChildFailed, match="only root is told where ledgers are"):
        as_user(ALICE, list, ask(device, "state", {}))


def test_without_a_mount_commands_say_what_to_set_and_make_no_other_ledger(
    store: Path, workdir: Path
) -> None:
    own = workdir / "own"
    with mounted(store, workdir / "mount", options=[f"state={own}"]) as mount:
        save(mount.path / "set" / "image")
        as_user(ALICE, os.unlink, mount.path / "set" / "image")
    way_out = "if its mounts have the option state=DIR, set CKFS_STATE_DIR=DIR"
    for asked in (["quota"], ["quota", "check"], ["quota", "set", str(ALICE), "--hard", "1G"]):
        done = run_ckfs(*asked, "--store", store)
        assert (done.returncode, done.stdout) == (3, "")
        assert way_out in _one_line(done.stderr)
    done = run_ckfs("ledger", "check", store)
    assert done.returncode == 1
    assert way_out in done.stdout
    assert way_out in _one_line(purged(store))
    assert not ledger_file(store).exists()
    assert used_by_alice(store, "--state", str(own)) > UNIT, (
        "it was told of that: what was purged was not posted"
    )
    done = run_ckfs("quota", "check", "--repair", "--store", store, "--state", str(own))
    assert done.returncode in (0, 1)
    assert used_by_alice(store, "--state", str(own)) == UNIT


def test_a_ledger_of_before_is_not_taken_for_that_of_the_mounts(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount"):
        pass
    assert ledger_file(store).exists()
    with mounted(store, workdir / "mount", options=[f"state={workdir}/own"]) as mount:
        save(mount.path / "set" / "image")
    done = run_ckfs("quota", "--store", store)
    assert done.returncode == 3
    assert f"does not name {ledger_file(store)} as its ledger" in _one_line(done.stderr)
    assert used_by_alice(store, "--state", f"{workdir}/own") == 4 * UNIT


def test_a_state_directory_that_others_can_write_to_is_refused(store: Path, workdir: Path) -> None:
    (workdir / "refused").mkdir()
    done = run_ckfs("mount", store, workdir / "refused", "-o", "state=/tmp")
    assert done.returncode == 3
    assert "others than root may write there" in _one_line(done.stderr)


def test_mounts_for_reading_need_no_ledger(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", options=["ro"]):
        pass
    assert binding.read(str(store)) is None
    assert not ledger_file(store).parent.exists()


def test_a_second_host_is_refused_and_told_the_ways_out(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", node="tqs1"):
        for _ in range(2):
            done = mounted_on_another_host(store, workdir)
            assert done.returncode == 3
            line = _one_line(done.stderr)
            for words in ("host tqs1", 'mode = "engine"', "PostgreSQL", f"'ckfs ledger adopt {store}'"):
                assert words in line
    assert mounted_on_another_host(store, workdir).returncode == 3, "also when nothing is mounted"


def test_the_ledger_is_adopted_only_where_nobody_mounts_any_more(store: Path, workdir: Path) -> None:
    write_policy(store)
    ckfs = command("ledger", "adopt", store)
    with mounted(store, workdir / "mount", node="tqs1") as mount:
        save(mount.path / "set" / "image")
        done = on_another_host(workdir, *ckfs)
        assert done.returncode == 4
        assert "of node tqs1 is alive: umount it first" in _one_line(done.stderr)
    done = on_another_host(workdir, *ckfs)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no more tqs1" in done.stdout
    assert on_another_host(workdir, *ckfs).stdout.endswith("already; nothing changed\n")
    done = mounted_on_another_host(store, workdir)
    assert (done.returncode, done.stdout) == (0, "set\n"), done.stderr
    assert "only that host can mount it" in refusal(store, workdir)


def test_a_ledger_comes_back_without_what_it_said_before(store: Path, workdir: Path) -> None:
    write_policy(store)
    with mounted(store, workdir / "mount") as mount:
        save(mount.path / "set" / "image")
    with ledger_of(store) as book:
        book.recounted(Uid(ALICE), None, Amount(1, 1))
    assert on_another_host(workdir, *command("ledger", "adopt", store)).returncode == 0
    assert run_ckfs("ledger", "adopt", store).returncode == 0
    with mounted(store, workdir / "mount"):
        assert used(store) == Amount(4 * UNIT, 2)


def test_what_nobody_keeps_cannot_be_adopted(store: Path) -> None:
    done = run_ckfs("ledger", "adopt", store)
    assert done.returncode == 2
    assert "no host keeps the ledger" in done.stderr


@pytest.mark.parametrize("loss", ["deleted", "damaged", "cut off", "another's"])
def test_a_ledger_that_is_lost_is_made_from_the_store(store: Path, workdir: Path, loss: str) -> None:
    limits.write(str(store), ROOT_OWNER, {Uid(ALICE): Settings(hard_bytes=1 << 30)})
    with mounted(store, workdir / "mount") as mount:
        save(mount.path / "set" / "image")
        save(mount.path / "set" / "removed")
        as_user(ALICE, os.unlink, mount.path / "set" / "removed")
    before = used(store)
    assert before == Amount(7 * UNIT, 3), "the set, the image, and one in the trash"
    path = ledger_file(store)
    if loss == "deleted":
        remove_ledger(store)
    elif loss == "damaged":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif loss == "cut off":
        with ledger_of(store) as book:
            for uid in range(3000, 4000):
                book.recounted(Uid(uid), None, Amount(uid, 1))
        os.truncate(path, path.stat().st_size // 2)
    else:
        with ledger_of(store) as book:
            book.all_counted("some other")
    with mounted(store, workdir / "mount", may_log=[r"the ledger \S+ is damaged"]) as mount:
        assert used(store) == before
        assert "counted what is in the store" in mount.log()
        with ledger_of(store) as book:
            assert book.settings(Uid(ALICE)) == Settings(hard_bytes=1 << 30)
    assert path.with_name("ledger.sqlite.damaged").exists() == (loss != "deleted")
    with mounted(store, workdir / "mount") as mount:
        assert "counted what is in the store" not in mount.log(), "once is enough"


def test_nobody_makes_a_ledger_anew_beside_a_mount_that_counts_in_the_old_one(
    store: Path, workdir: Path
) -> None:
    write_policy(store)
    with mounted(store, workdir / "mount", node="tqs1"):
        remove_ledger(store)
        line = refusal(store, workdir)
        assert "of node tqs1 is alive" in line
        assert "umount it everywhere first" in line
    with mounted(store, workdir / "mount"):
        pass


def test_who_starts_to_count_waits_until_nobody_is_left_who_does_not(store: Path, workdir: Path) -> None:
    write_policy(store, "none")
    with mounted(store, workdir / "mount", node="tqs1") as mount:
        save(mount.path / "set" / "image")
        write_policy(store, "ledger")
        assert "of node tqs1 is alive" in refusal(store, workdir)
        eventually(lambda: "from its next start on" in mount.log())
    with mounted(store, workdir / "mount"):
        assert used(store) == Amount(4 * UNIT, 2)


def test_what_happened_while_nobody_counted_is_counted_later(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount"):
        pass
    write_policy(store, "none")
    with mounted(store, workdir / "mount") as mount:
        assert binding.read(str(store)) is None
        save(mount.path / "set" / "image")
    write_policy(store, "ledger")
    with mounted(store, workdir / "mount"):
        assert used(store) == Amount(4 * UNIT, 2)


def test_what_a_killed_mount_was_granted_comes_back(store: Path, workdir: Path) -> None:
    write_policy(store)
    with (
        mounted(store, workdir / "a", node="a") as first,
        mounted(store, workdir / "b", node="b") as second,
    ):
        save(second.path / "set" / "image")
        [mount] = ids_of(store, "a")
        with ledger_of(store) as book, Agent(ALICE) as writer:
            file = writer.do(os.open, first.path / "set" / "torn", os.O_CREAT | os.O_WRONLY, 0o600)
            writer.do(os.pwrite, file, b"x" * (5 * UNIT), 0)
            assert book.account(Uid(ALICE)).claimed.covers(Amount(5 * UNIT))
            first.kill()
            eventually(lambda: mount not in book.mounts())
            eventually(lambda: book.account(Uid(ALICE)).claimed == NOTHING)
            assert book.account(Uid(ALICE)).used == Amount(9 * UNIT, 3)
            assert book.check() == []
        assert f"mount {mount.decode()} has died: uid {ALICE}" in second.log()


def test_the_next_mount_looks_after_one_that_was_killed_alone(store: Path, workdir: Path) -> None:
    write_policy(store)
    with mounted(store, workdir / "mount", node="a") as mount:
        [killed] = ids_of(store, "a")
        with ledger_of(store) as book:
            book.draw(killed, Uid(ALICE), NOTHING, Amount(100 * UNIT, 10))
        mount.kill()
        mount.detach()
    with mounted(store, workdir / "mount", node="b"), ledger_of(store) as book:
        eventually(lambda: killed not in book.mounts())
        assert book.account(Uid(ALICE)).claimed == NOTHING


def ids_of(store: Path, node: str) -> list[MountId]:
    with registry(str(store)) as mounts:
        return [one.id for one in mounts.all() if one.node == node.encode()]


def test_of_mounts_that_start_together_one_makes_the_ledger(store: Path, workdir: Path) -> None:
    logs: list[str] = []
    up = threading.Barrier(4, timeout=LONG_S)

    def serve(name: str) -> None:
        with mounted(store, workdir / name, node=name) as mount:
            up.wait()
            logs.append(mount.log())

    threads = [threading.Thread(target=serve, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG_S)
    assert ["counted what is in the store" in log for log in sorted(logs, key=len)] == [False] * 3 + [True]


def test_a_copy_of_the_machine_with_the_same_id_is_refused(store: Path, workdir: Path) -> None:
    write_policy(store)
    with mounted(store, workdir / "mount"):
        pass
    ended = threading.Event()
    line = "1;b=%x;n=tqs1;h=11111111-2222-3333-4444-555555555555;s=1;p=1;t=1\n"

    def live() -> None:
        beat = 1
        while not ended.wait(0.2):
            (store / "mounts" / "0123456789abcdef").write_text(line % beat)
            beat += 1

    copy = threading.Thread(target=live)
    copy.start()
    try:
        eventually(lambda: (store / "mounts" / "0123456789abcdef").exists())
        refused = refusal(store, workdir)
        assert "of node tqs1 is alive, and not on this host, though that has the same id" in refused
        assert "another /etc/machine-id" in refused
    finally:
        ended.set()
        copy.join()
    with mounted(store, workdir / "mount"):
        pass  # nothing was heard of it for a lease


def test_after_a_loss_of_power_everything_is_counted_anew(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        save(mount.path / "set" / "image")
    with ledger_of(store) as book:
        book.recounted(Uid(ALICE), None, NOTHING)
        book.draw(MountId(b"0123456789abcdef"), Uid(ALICE), NOTHING, Amount(UNIT))
    earlier = "11111111-2222-3333-4444-555555555555"
    (store / "mounts" / "0123456789abcdef").write_text(f"1;b=1;n=tqs1;h={earlier};s=1;p=1;t=1\n")
    (ledger_file(store).parent / "boots").write_text(f"{earlier}\n")
    with mounted(store, workdir / "mount") as mount:
        assert used(store) == Amount(4 * UNIT, 2)
        assert "counting anew" in mount.log()
        with ledger_of(store) as book:
            assert MountId(b"0123456789abcdef") not in book.mounts()


def test_the_copy_of_the_limits_follows_the_ledger(store: Path, workdir: Path) -> None:
    write_policy(store)
    said = Settings(hard_bytes=1 << 30)
    with mounted(store, workdir / "mount"), ledger_of(store) as book:
        book.set_limits(Uid(ALICE), said)
        eventually(lambda: limits.read(str(store)).get(Uid(ALICE)) == said)


def test_what_ledger_check_says(store: Path, workdir: Path) -> None:
    assert run_ckfs("ledger", "check", store).returncode == 1
    with mounted(store, workdir / "mount"):
        done = run_ckfs("ledger", "check", store)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{store}: nothing is wrong with the ledger of its quotas\n"
    assert run_ckfs("ledger", "upgrade", store).returncode == 0
    with ledger_of(store) as book:
        book.all_counted(None)
    done = run_ckfs("ledger", "check", store)
    assert done.returncode == 1
    assert "the next mount counts everything anew" in done.stdout
    ledger_file(store).write_bytes(b"x" * 10_000)
    done = run_ckfs("ledger", "check", store)
    assert done.returncode == 1
    assert "the next mount makes it anew" in done.stdout
    write_policy(store, "none")
    done = run_ckfs("ledger", "check", store)
    assert done.returncode == 2
    assert 'there is no ledger: its policy.toml says mode = "none"' in done.stderr


def test_what_lies_in_the_store_for_the_ledger_is_no_fault(store: Path, workdir: Path) -> None:
    limits.write(str(store), ROOT_OWNER, {Uid(ALICE): Settings(hard_bytes=1 << 30)})
    with mounted(store, workdir / "mount"):
        pass
    (store / ".ledger.toml-0123456789abcdef").touch()
    done = run_ckfs("fsck", store)
    assert done.returncode == 0, done.stdout


def test_users_have_no_business_with_the_ledger(store: Path) -> None:
    assert ckfs_as(ALICE, "ledger", "check", store).status == 5
