"""``ckfs bench`` without a mount: how much it writes, in which order, and how its figures are told."""

from __future__ import annotations

import json

import pytest

from ckfs.bench.figures import Measured, described, table
from ckfs.bench.plan import DEFAULT, GIB, MIB, QUICK, Plan, Room, Sizes, check_room, plan, steps, turns
from ckfs.cli import bench
from ckfs.cli.main import main
from ckfs.daemon.mounting import Mounted
from ckfs.errors import NoRoom


def room(free_bytes: int, reserve_bytes: int = 0) -> Room:
    return Room("/srv/store", free_bytes, reserve_bytes)


# How much


@pytest.mark.parametrize(
    ("free", "sizes", "size"),
    [
        (100 * GIB, DEFAULT, GIB),
        (16 * GIB, DEFAULT, GIB),
        (16 * GIB - 1, DEFAULT, GIB - MIB),
        (100 * GIB, QUICK, 128 * MIB),
        (16 * MIB, DEFAULT, MIB),
        (33 * MIB, QUICK, 2 * MIB),
    ],
)
def test_it_writes_a_small_part_of_what_is_free(free: int, sizes: Sizes, size: int) -> None:
    assert plan([room(free)], sizes, None, None) == Plan(size, sizes.rounds)


def test_the_least_that_is_free_anywhere_decides() -> None:
    rooms = [room(100 * GIB), Room("alice, by his limits", 160 * MIB), room(50 * GIB)]
    assert plan(rooms, DEFAULT, None, 2) == Plan(10 * MIB, 2)


@pytest.mark.parametrize("free", [-1, 0, 16 * MIB - 1])
def test_a_store_that_is_nearly_full_is_left_alone(free: int) -> None:
    with pytest.raises(NoRoom, match=r"/srv/store: .* free.*: make room, or give .*--size$") as refused:
        plan([room(free)], DEFAULT, None, None)
    assert refused.value.exit_status == 7
    assert "\n" not in str(refused.value)


def test_three_times_the_size_must_be_free() -> None:
    assert plan([room(30 * MIB)], DEFAULT, 10 * MIB, None) == Plan(10 * MIB, DEFAULT.rounds)
    with pytest.raises(NoRoom) as refused:
        plan([room(30 * MIB - 1, 5 * MIB)], DEFAULT, 10 * MIB, None)
    assert str(refused.value) == (
        "/srv/store: 30M free, without 5M that are kept in reserve; a bench of 10M needs 30M, 3 times its size:"
        " give a smaller --size, or make room"
    )
    check_room(Plan(MIB, 1), room(3 * MIB))
    with pytest.raises(NoRoom):
        check_room(Plan(MIB, 1), room(3 * MIB - 1))


@pytest.mark.parametrize("size", [MIB, 3 * MIB, 100 * MIB, GIB, 64 * GIB])
def test_no_step_writes_more_than_the_size(size: int) -> None:
    made = Plan(size, 1)
    assert all(0 < step.size_bytes <= size for step in steps(made))
    assert made.writer_bytes % made.writer_call == 0
    assert len({step.key for step in steps(made)}) == 7


# In which order


def test_places_take_turns_in_both_orders() -> None:
    made = Plan(MIB, 3)
    order = [(turn.round, turn.place) for turn in turns(made, 2) if turn.step.key == "write_4k"]
    assert order == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]
    everything = list(turns(made, 2))
    assert [turn.done for turn in everything] == list(range(42))
    assert {turn.count for turn in everything} == {42}


def test_what_the_next_step_reads_is_left_for_it() -> None:
    assert [step.key for step in steps(Plan(MIB, 1)) if step.left] == ["write_1m", "read_warm"]


# Figures


def measured(*seconds: list[float], key: str = "write_1m", why_not: str = "") -> Measured:
    (step,) = (step for step in steps(Plan(GIB, 3)) if step.key == key)
    return Measured(step, seconds, [0.5, 1.0, 1.5] if seconds[0] else [], why_not)


def test_ratios_are_of_each_round() -> None:
    one = described(measured([1.0, 2.0, 4.0], [1.0, 1.0, 6.0]))
    assert one == {
        "workload": "write_1m",
        "size_bytes": GIB,
        "files": 1,
        "ckfs": {"seconds": [1.0, 2.0, 4.0], "median_s": 2.0, "bytes_per_s": GIB // 2, "files_per_s": None},
        "control": {"seconds": [1.0, 1.0, 6.0], "median_s": 1.0, "bytes_per_s": GIB, "files_per_s": None},
        "ratio": {"median": 1.0, "lowest": 0.5, "highest": 1.5},
        "daemon_cpu_s_per_gib": 1.0,
        "not_measured": None,
    }
    json.dumps(one)


def test_without_a_control_there_are_no_ratios() -> None:
    one = measured([2.0, 2.0, 2.0], key="small_files")
    said = described(one)
    assert (said["control"], said["ratio"]) == (None, None)
    assert said["ckfs"] == {
        "seconds": [2.0] * 3,
        "median_s": 2.0,
        "bytes_per_s": 8 * MIB,
        "files_per_s": 128.0,
    }
    head, row = table([one], control=False)
    assert head.split() == ["UNIT", "CKFS", "DAEMON'S", "CPU"]
    assert row.split()[-4:] == ["files/s", "128", "64.00", "s/GiB"]


def test_the_table_has_a_row_for_each() -> None:
    rows = table(
        [
            measured([1.0, 2.0, 4.0], [1.0, 1.0, 6.0]),
            measured([], [], key="read_cold", why_not="it is like that"),
        ],
        control=True,
    )
    assert rows[0].split("  ")[-1] == "DAEMON'S CPU"
    assert rows[1].split("  ")[0] == "write, 1 MiB calls"
    assert rows[1].split()[-9:] == ["MB/s", "537", "1,074", "1.00", "0.50", "to", "1.50", "1.00", "s/GiB"]
    assert rows[2].split("  ")[0] == "read, 1 MiB calls, cold"
    assert rows[2].endswith("not measured: it is like that")


# Which mount


def _mounts(*paths: bytes) -> list[Mounted]:
    return [
        Mounted(path, "fuse.ckfs", b"/srv/store", number, f"0:{number}", ("user_id=0",))
        for number, path in enumerate(paths)
    ]


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ([], "no ckfs is mounted on this host"),
        (_mounts(b"/mnt/b", b"/mnt/a"), "2 ckfs are mounted on this host (/mnt/a, /mnt/b): name one"),
    ],
)
def test_a_mount_is_named_unless_there_is_just_one(
    here: list[Mounted], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "mounts", lambda: here)
    assert main(["bench"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_dead_mounts_below_another_are_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "mounts", lambda: _mounts(b"/mnt", b"/mnt"))
    assert bench._mount_meant(None).device == "0:1"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--size", "lots"], 2, "not a size"),
        (["--size", "100K"], 2, "at least 1M"),
        (["--rounds", "0"], 2, "give 1 to 1000"),
        (["--rounds", "many"], 2, "invalid int value"),
        (["--json", "-q"], 2, "not allowed with"),
        (["--frobnicate"], 2, "unrecognized arguments"),
        (["--control", "/no/such"], 2, "not a directory"),
        (["/proc"], 4, "not on a ckfs mount"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
