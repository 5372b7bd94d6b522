"""``ckfs bench`` on real mounts: what it says, what it refuses, and that nothing is left of it, whatever ends it. No time is looked at."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.benches import (
    ENDLESS,
    INTERRUPTIBLE,
    controls,
    endless,
    in_store,
    nothing_is_left,
    processes,
    until,
)
from tests.support.commands import Ran, ckfs_as
from tests.support.faultfs import fault_store
from tests.support.further import make_further, name_stores, table
from tests.support.loops import btrfs, tmpfs
from tests.support.mounting import Mount, command, environment, make_store, mounted, run_ckfs
from tests.support.quotas import set_quota
from tests.support.users import ALICE, ROOT, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

NO_MOUNT, RIGHTS, NO_ROOM, INTERRUPTED = 4, 5, 7, 130
"""Exit statuses of docs/commands.md."""
MIB = 1 << 20
TINY = ("--size", "1M", "--rounds", "2")
WORKLOADS = [
    "write_1m",
    "read_warm",
    "read_cold",
    "write_4k",
    "small_files",
    "many_writers",
    "hold_restart",
]
KEYS = {
    "version",
    "node",
    "mountpoint",
    "store",
    "user",
    "uid",
    "began",
    "took_s",
    "load_before",
    "size_bytes",
    "rounds",
    "needed_bytes",
    "free_bytes",
    "control",
    "no_control",
    "workloads",
    "daemon",
    "left_overs",
}


@pytest.fixture
def killing(store: Path, workdir: Path) -> Iterator[Mount]:
    """A mount whose writers may be killed."""
    with mounted(store, workdir / "mount", may_log=[r"is partial"]) as running:
        yield running


def document(ran: Ran) -> dict[str, Any]:
    assert (ran.status, ran.errors) == (0, "")
    read: dict[str, Any] = json.loads(ran.text)
    assert read.keys() == KEYS
    assert [one["workload"] for one in read["workloads"]] == WORKLOADS
    return read


def bench(mount: Mount, *options: str | Path, uid: int = ROOT) -> Ran:
    return ckfs_as(uid, "bench", mount.path, *options)


# What it says


def test_root_compares_with_the_store(module_mount: Mount) -> None:
    said = document(bench(module_mount, *TINY, "--json"))
    assert (said["uid"], said["size_bytes"], said["rounds"], said["needed_bytes"]) == (0, MIB, 2, 3 * MIB)
    assert said["control"]["directory"] == str(module_mount.store)
    assert said["control"]["is_of_the_store"] is True
    assert said["no_control"] is None
    for one in said["workloads"]:
        if one["workload"] == "read_cold" and one["not_measured"]:
            continue  # on tmpfs
        assert len(one["ckfs"]["seconds"]) == len(one["control"]["seconds"]) == 2
        assert one["ratio"]["lowest"] <= one["ratio"]["median"] <= one["ratio"]["highest"]
        assert one["daemon_cpu_s_per_gib"] >= 0
    assert said["daemon"]["resident_most_bytes"] >= said["daemon"]["resident_after_bytes"] > 0
    assert said["daemon"]["resident_peak_bytes"] >= said["daemon"]["resident_after_bytes"]
    nothing_is_left(module_mount)


def test_root_works_as_somebody_else(killing: Mount) -> None:
    with endless(killing, "--as", str(ALICE)) as process:
        until(lambda: in_store(killing.store, "stream.tmp", ALICE), process)
        (control,) = controls(killing.store)
        until(lambda: bool(list((killing.store / control).glob("*/*/image"))), process)
        (hers,) = (killing.store / control).glob("*/*")
        assert hers.stat().st_uid == ALICE
        assert "ckfs-bench" not in run_ckfs("fsck", killing.store).stdout
        assert "ckfs-bench" not in run_ckfs("gc", killing.store).stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == INTERRUPTED
    nothing_is_left(killing)


def test_a_user_has_rates_alone_and_is_told_why(module_mount: Mount) -> None:
    said = document(bench(module_mount, *TINY, "--json", uid=ALICE))
    assert (said["uid"], said["control"]) == (ALICE, None)
    assert "--control DIR" in said["no_control"]
    for one in said["workloads"]:
        assert (one["control"], one["ratio"]) == (None, None)
        if one["workload"] == "read_cold":
            assert one["not_measured"] == "only root reaches the pages that the store's file system keeps"
        else:
            assert one["ckfs"]["bytes_per_s"] > 0
    nothing_is_left(module_mount)
    ran = bench(module_mount, *TINY, "-q", uid=ALICE)
    assert (ran.status, ran.errors) == (0, "")
    assert "control: none: only root reaches the store" in ran.text
    assert "RATIO" not in ran.text


def test_a_user_names_a_directory_to_compare_with(module_mount: Mount, workdir: Path) -> None:
    own = workdir / "own"
    own.mkdir()
    os.chown(own, ALICE, ALICE)
    said = document(bench(module_mount, *TINY, "--json", "--control", own, uid=ALICE))
    assert said["control"]["directory"] == str(own)
    assert said["control"]["is_of_the_store"] is None
    assert said["workloads"][0]["ratio"]["median"] > 0
    nothing_is_left(module_mount, own)
    assert os.listdir(own) == []
    os.chown(own, ROOT, ROOT)
    own.chmod(0o755)
    ran = bench(module_mount, *TINY, "--control", own, uid=ALICE)
    assert (ran.status, ran.text) == (RIGHTS, "")
    assert "Permission denied" in ran.errors
    nothing_is_left(module_mount, own)


def test_only_root_works_as_others(module_mount: Mount) -> None:
    ran = bench(module_mount, "--as", "root", uid=ALICE)
    assert (ran.status, ran.errors) == (RIGHTS, "ckfs: --as root: only root works as somebody else\n")


def test_a_line_for_each_round_and_none_if_quiet(module_mount: Mount) -> None:
    ran = bench(module_mount, *TINY)
    assert ran.status == 0
    assert ran.errors == "ckfs: bench: round 1 of 2\nckfs: bench: round 2 of 2\n"
    assert ran.text.splitlines()[0].startswith("ckfs ")
    assert "LOWEST TO HIGHEST" in ran.text
    quiet = bench(module_mount, *TINY, "--quiet")
    assert (quiet.status, quiet.errors) == (0, "")


def test_a_bar_on_a_terminal(module_mount: Mount) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("bench", module_mount.path, "--size", "1M", "--rounds", "1"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"[........................] 0/14 round 1 of 1: ckfs: write, 1 MiB calls" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert b"hold and restart" in output


def test_the_only_mount_need_not_be_named(module_mount: Mount) -> None:
    """In a mount namespace of its own: others' tests have mounts, too."""
    script = (
        'for point in $(findmnt -rn -t fuse.ckfs -o TARGET); do [ "$point" = "$0" ] || umount -l -c "$point"; done;'
        ' exec "$@"'
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(module_mount.path)),
            *command("bench", *TINY, "--json"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["mountpoint"] == str(module_mount.path)


def test_of_several_mounts_one_is_named(two_mounts: tuple[Mount, Mount]) -> None:
    ran = ckfs_as(ROOT, "bench")
    assert (ran.status, ran.text) == (2, "")
    for mount in two_mounts:
        assert str(mount.path) in ran.errors
    assert ran.errors.count("\n") == 1


# What it refuses


@pytest.fixture
def small(workdir: Path) -> Iterator[Mount]:
    """A store of 64 MiB in memory, of which 8 are kept in reserve."""
    with tmpfs(workdir, 64 * MIB, 4000) as top:
        store = make_store(top)
        (store / "policy.toml").write_text('[trash]\nkeep_free_percent = 1\n[quota]\nreserve = "8M"\n')
        with mounted(store, workdir / "mount", role="both", may_log=[r"partial|no room"]) as mount:
            yield mount


@pytest.mark.parametrize("uid", [ROOT, ALICE])
def test_a_store_that_is_nearly_full_is_not_filled(small: Mount, uid: int) -> None:
    ran = bench(small, "--size", "20M", uid=uid)
    assert (ran.status, ran.text, ran.errors.count("\n")) == (NO_ROOM, "", 1)
    assert "a bench of 20M needs 60M, 3 times its size: give a smaller --size, or make room" in ran.errors
    assert str(small.store) in ran.errors
    filling = small.path / "filling.tmp"
    as_user(ALICE, filling.write_bytes, bytes(45 * MIB))
    ran = bench(small, uid=uid)
    assert (ran.status, ran.text, ran.errors.count("\n")) == (NO_ROOM, "", 1)
    assert "a 16th" in ran.errors
    assert os.listdir(small.path) == [filling.name]
    assert controls(small.store) == []


def test_what_a_store_in_memory_keeps_is_never_cold(small: Mount) -> None:
    said = document(bench(small, *TINY, "--json"))
    (cold,) = (one for one in said["workloads"] if one["workload"] == "read_cold")
    assert (cold["ckfs"], cold["ratio"]) == (None, None)
    assert cold["not_measured"] == "the file system keeps what is written there in memory"


def test_the_control_has_to_have_room_too(module_mount: Mount, workdir: Path) -> None:
    with tmpfs(workdir, 20 * MIB, 100) as top:
        ran = bench(module_mount, "--size", "10M", "--rounds", "1", "--control", top)
        assert (ran.status, ran.text) == (NO_ROOM, "")
        assert str(top) in ran.errors
        nothing_is_left(module_mount, top)


def test_a_quota_counts(module_mount: Mount) -> None:
    set_quota(module_mount.path, ALICE, "--hard", "10M")
    try:
        ran = bench(module_mount, "--size", "4M", uid=ALICE)
        assert (ran.status, ran.text) == (NO_ROOM, "")
        assert f"{ALICE}, by his limits: 10M free; a bench of 4M needs 12M" in ran.errors
        as_root = bench(module_mount, "--size", "4M", "--as", str(ALICE))
        assert (as_root.status, as_root.errors) == (NO_ROOM, ran.errors)
        assert bench(module_mount, "--size", "3M", "--rounds", "1", "-q", uid=ALICE).status == 0
    finally:
        set_quota(module_mount.path, ALICE, "--hard", "none")
    nothing_is_left(module_mount)


def test_nothing_can_be_measured_on_a_read_only_mount(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", options=["ro"]) as mount:
        ran = bench(mount)
        assert (ran.status, ran.text) == (NO_MOUNT, "")
        assert "mounted read-only" in ran.errors


# How it ends


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGINT, "stream.tmp"),
        (signal.SIGTERM, "image-3"),
        (signal.SIGHUP, "5.tmp"),
        (signal.SIGINT, "image"),
    ],
)
def test_who_interrupts_it_finds_nothing_left(
    store: Path, workdir: Path, number: signal.Signals, name: str
) -> None:
    with mounted(store, workdir / "mount", may_log=[r"partial"]) as mount:
        with endless(mount) as process:
            until(lambda: in_store(mount.store, name), process)
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (INTERRUPTED, "")
        assert all(line.startswith("ckfs: bench: round ") for line in errors.splitlines())
        nothing_is_left(mount)


@pytest.mark.parametrize("uid", [ROOT, ALICE])
def test_what_a_killed_one_left_is_named_and_removed_by_the_next(
    store: Path, workdir: Path, uid: int
) -> None:
    with mounted(store, workdir / "mount", may_log=[r"partial"]) as mount:
        with endless(mount, "--as", str(uid)) as process:
            until(lambda: in_store(mount.store, "image-3", uid), process)
            process.kill()
            process.wait(60)
            (left,) = os.listdir(mount.path)
            (control,) = controls(mount.store)
            until(lambda: processes(mount) == [])
        ran = bench(mount, *TINY, "--as", str(uid), "-q")
        assert ran.status == 0
        by = f"left by process {process.pid} of this host, was removed"
        assert ran.errors == f"ckfs: {mount.path / left}, {by}\nckfs: {mount.store / control}, {by}\n"
        nothing_is_left(mount)


def test_one_that_runs_is_left_alone(killing: Mount) -> None:
    with endless(killing) as process:
        until(lambda: in_store(killing.store, "stream.tmp"), process)
        (own,) = os.listdir(killing.path)
        ran = bench(killing, *TINY, "-q")
        assert (ran.status, ran.errors) == (0, "")
        assert os.listdir(killing.path) == [own]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == INTERRUPTED
    nothing_is_left(killing)


def test_who_has_no_room_any_more_is_told_in_a_line(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", may_log=[r"partial"]) as mount:
        with endless(mount, "--as", str(ALICE), "-q") as process:
            until(lambda: in_store(mount.store, "image-3", ALICE), process)
            set_quota(mount.path, ALICE, "--hard", "300K")
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors.count("\n")) == (NO_ROOM, "", 1)
        assert "Disk quota exceeded" in errors
        nothing_is_left(mount)


def test_a_mount_that_dies_is_said_and_its_control_removed(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        with endless(mount, "-q") as process:
            until(lambda: in_store(mount.store, "image-3"), process)
            mount.kill()
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors.count("\n")) == (NO_MOUNT, "", 1)
        assert "the mount is gone, or its daemon" in errors
        assert "left behind" in errors
        assert controls(mount.store) == []
        assert processes(mount) == []
        mount.detach()
    with mounted(store, workdir / "again", may_log=[r"partial"]) as mount:
        ran = bench(mount, *TINY, "-q")
        assert ran.status == 0
        assert "was removed" in ran.errors
        nothing_is_left(mount)


def test_what_had_to_go_to_the_trash_is_taken_from_there(small: Mount) -> None:
    """Where only the reserve is left, a user's images are not written to any more, so that they do not pass for unfinished."""
    filling = small.path / "filling.tmp"
    with endless(small, "--as", str(ALICE), "-q") as process:
        until(lambda: in_store(small.store, "image-3", ALICE), process)
        free = os.statvfs(small.store)
        filling.write_bytes(bytes(free.f_bavail * free.f_frsize - 5 * MIB))
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.count("\n")) == (NO_ROOM, "", 1)
    assert "No space left" in errors
    filling.unlink()
    nothing_is_left(small)


def test_root_is_told_of_what_others_left(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", may_log=[r"partial"]) as mount:
        with endless(mount, "--as", str(ALICE)) as process:
            until(lambda: in_store(mount.store, "image-3", ALICE), process)
            process.kill()
            process.wait(60)
            until(lambda: processes(mount) == [])
        (left,) = os.listdir(mount.path)
        ran = bench(mount, *TINY, "-q")
        assert (
            f"{left} was left by a bench of uid {ALICE}: 'ckfs bench --as {ALICE}' removes it" in ran.errors
        )
        assert os.listdir(mount.path) == [left]
        assert bench(mount, *TINY, "-q", uid=ALICE).status == 0
        nothing_is_left(mount)


_IMPATIENT = """
import sys
from ckfs.bench import ends
from ckfs.cli.main import main

ends._ENDS_WITHIN_S = 5.0
sys.exit(main(sys.argv[1:]))
"""


def test_who_interrupts_it_while_the_store_hangs_is_told_what_is_left(workdir: Path) -> None:
    may_log = [r"\b[Ss]tore\b", r"too late", r"partial"]
    with fault_store(workdir) as faulty:
        store = make_store(faulty.path)
        options = ["op_timeout=2", "io_timeout=2"]
        with mounted(store, workdir / "mount", options=options, may_log=may_log) as mount:
            arguments = [sys.executable, "-c", _IMPATIENT, "bench", str(mount.path), *ENDLESS, "-q"]
            with subprocess.Popen(
                [*INTERRUPTIBLE, *arguments], env=environment(), stderr=subprocess.PIPE, text=True
            ) as process:
                try:
                    backing = faulty.backing / "store"
                    until(lambda: in_store(backing, "image-3"), process)
                    faulty.hang("*")
                    process.send_signal(signal.SIGINT)
                    _, errors = process.communicate(timeout=120)
                finally:
                    faulty.release()
                    process.kill()
            assert (process.returncode, errors.count("\n")) == (1, 1)
            assert errors.startswith("ckfs: interrupted; left behind: ")
            (control,) = controls(backing)
            assert control in errors
            until(lambda: processes(mount) == [])
            until(
                lambda: bench(mount, *TINY, "-q").status == 0
            )  # once the mount has found that the store answers
            nothing_is_left(mount)


def test_where_root_is_squashed(module_mount_on_nfs: Mount) -> None:
    for options in ((), ("--as", str(ALICE))):
        said = document(bench(module_mount_on_nfs, *TINY, "--json", *options))
        assert said["control"]["is_of_the_store"] is True
        nothing_is_left(module_mount_on_nfs)


def test_a_bench_makes_no_batch_set(store: Path, workdir: Path) -> None:
    (store / "policy.toml").write_text('[sets]\nbatch = ["*"]\n')
    with mounted(store, workdir / "mount") as mount:
        ran = bench(mount, *TINY)
        assert (ran.status, ran.text, ran.errors.count("\n")) == (2, "", 1)
        assert "narrow the pattern" in ran.errors
        assert bench(mount, *TINY, uid=ALICE).status == RIGHTS
        nothing_is_left(mount)


def test_the_control_is_where_the_set_lies(store: Path, workdir: Path) -> None:
    further = make_further(store, workdir / "private" / "fast")
    name_stores(store, table("fast", further))
    with mounted(store, workdir / "mount", may_log=[r"partial"]) as mount:
        said = document(bench(mount, *TINY, "--json"))
        assert said["control"]["directory"] == str(further.path)
        assert said["control"]["is_of_the_store"] is True
        nothing_is_left(mount, store, further.path)
        assert further.kept(ROOT) == set()
        with endless(mount) as process:
            until(lambda: bool(controls(further.path)), process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == INTERRUPTED
        nothing_is_left(mount, store, further.path)


def test_where_the_store_keeps_quotas_the_control_is_nobody_s(workdir: Path) -> None:
    with btrfs(workdir) as top:
        store = make_store(top, "--quota", "engine")
        with mounted(store, workdir / "mount", may_log=[r"not yet tried"]) as mount:
            said = document(bench(mount, *TINY, "--json", "--as", str(ALICE)))
            assert said["control"]["file_system"] == "btrfs"
            assert said["control"]["is_of_the_store"] is True
            nothing_is_left(mount)
