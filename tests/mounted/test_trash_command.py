"""``ckfs trash`` on the store of a live mount: what it shows, and that the mount's next call sees what it did."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.names import SetName, Uid
from ckfs.store.layout import Store, open_store
from ckfs.store.removed import Note
from ckfs.store.spots import Spot
from tests.support.commands import ckfs_as
from tests.support.mounting import Mount, run_ckfs
from tests.support.users import ALICE, BOB, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

FAILED, USAGE, STORE, RIGHTS = 1, 2, 3, 5
"""Exit statuses of docs/commands.md."""
HOUR_NS = 3_600_000_000_000
DUMP = b"dump"


@pytest.fixture
def dump(mount: Mount) -> Path:
    """A set of Alice's with two images, as she sees it."""
    path = mount.path / "dump"

    def make() -> None:
        path.mkdir(0o750)
        for name in ("core-1.img", "pages-1.img"):
            (path / name).write_bytes(name.encode() * 100)

    as_user(ALICE, make)
    return path


@contextlib.contextmanager
def opened(mount: Mount) -> Iterator[Store]:
    with contextlib.closing(open_store(str(mount.store))) as store:
        yield store


def remove(mount: Mount, path: bytes, name: bytes = DUMP, *, ago_ns: int = HOUR_NS) -> str:
    """Let root have removed it, as the handlers of a mount do. Returns the item's token."""
    with opened(mount) as store:
        entry = store.names.read(SetName(name))
        spot = Spot(entry.stored, (*entry.spot.components, *filter(None, path.split(b"/"))))
        ino = store.door.examine(spot).record.ino
        when_ns = time.time_ns() - ago_ns
        note = Note(Uid(0), when_ns, b"tqn1", b"/bin/rm", SetName(name), path, entry.owner, ino)
        item = store.trash.put(spot, note)
        if not path:
            store.names.clear(SetName(name), entry)
        return item.token


def trash(mount: Mount, *arguments: str, status: int = 0) -> str:
    """The output of ``ckfs trash``, or with another *status* its errors."""
    done = run_ckfs("trash", *arguments, "--store", mount.path)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status == 0:
        assert done.stderr == ""
    elif not done.stdout:
        assert all(line.startswith("ckfs: ") for line in done.stderr.splitlines())
    return done.stderr if status else done.stdout


def listed(mount: Mount, *arguments: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(trash(mount, "ls", "--json", *arguments))
    return rows


def contents(path: Path) -> dict[str, bytes]:
    """As Alice reads it, in one process after the other, so that nothing is from before."""
    return as_user(ALICE, lambda: {file.name: file.read_bytes() for file in path.iterdir()})


# Looking


def test_the_list_says_all_that_is_known(mount: Mount, dump: Path) -> None:
    token = remove(mount, b"core-1.img")
    [row] = listed(mount)
    when = dt.datetime.fromisoformat(str(row.pop("removed_at")))
    assert abs((dt.datetime.now(dt.UTC) - when).total_seconds() - 3600) < 60
    assert dt.datetime.fromisoformat(str(row.pop("kept_until"))) - when == dt.timedelta(days=7)
    assert row == {
        "item": token,
        "kind": "image",
        "set": "dump",
        "path": "core-1.img",
        "owner": str(ALICE),
        "uid": ALICE,
        "state": "complete",
        "size_bytes": 1000,
        "removed_by": "root",
        "removed_by_uid": 0,
        "node": "tqn1",
        "program": "/bin/rm",
        "damaged": None,
    }
    text = trash(mount, "ls")
    assert text.splitlines()[1].split()[0] == token
    assert text.splitlines()[1].endswith("dump/core-1.img")
    shown = trash(mount, "show", token[:8])
    assert "/bin/rm" in shown
    assert f"/trash/{ALICE}/{token}" in shown


def test_the_list_is_chosen_from(mount: Mount, dump: Path) -> None:
    old, new = remove(mount, b"core-1.img", ago_ns=50 * HOUR_NS), remove(mount, b"pages-1.img")
    as_user(BOB, (mount.path / "bobs").mkdir)
    bobs = remove(mount, b"", b"bobs")

    def tokens(*arguments: str) -> set[object]:
        return {row["item"] for row in listed(mount, *arguments)}

    assert tokens() == {old, new, bobs}
    assert tokens("--set", "dump") == {old, new}
    assert tokens("--image", "dump/pages-1.img") == {new}
    assert tokens("--image", "dump/") == {old, new}
    assert tokens("--owner", str(BOB)) == {bobs}
    assert tokens("--older-than", "2d") == {old}
    assert tokens("--since", "2d") == {new, bobs}
    assert tokens("--before", dt.datetime.now(dt.UTC).isoformat(), "--since", "0.1d", "--set", "dump") == {
        new
    }
    assert tokens("--since", "2000-01-01", "--before", "2000-01-02") == set()


def test_names_are_shown_escaped(mount: Mount) -> None:
    name = b"\x1b[2J\xff"
    as_user(ALICE, lambda: os.mkdir(os.fsencode(mount.path) + b"/" + name))
    remove(mount, b"", name)
    assert trash(mount, "ls").splitlines()[1].endswith(r"\x1b[2J\xff")
    assert len(listed(mount, "--set", r"\x1b[2J\xff")) == 1


def test_the_store_itself_will_do(mount: Mount, dump: Path) -> None:
    token = remove(mount, b"core-1.img")
    done = run_ckfs("trash", "ls", "--store", mount.store)
    assert (done.returncode, token in done.stdout) == (0, True)
    done = run_ckfs("trash", "ls", "--store", dump)
    assert (done.returncode, token in done.stdout) == (0, True)


# Restoring


def test_an_image_is_back_for_the_very_next_call(mount: Mount, dump: Path) -> None:
    before = contents(dump)
    token = remove(mount, b"core-1.img")
    assert "core-1.img" not in contents(dump)
    assert trash(mount, "restore", token) == f"{token}: restored as dump/core-1.img\n"
    assert contents(dump) == before
    assert listed(mount) == []


def test_a_set_is_back_for_the_very_next_call(mount: Mount, dump: Path) -> None:
    before, status = contents(dump), as_user(ALICE, lambda: tuple(dump.stat())[:8])
    token = remove(mount, b"")
    assert not as_user(ALICE, dump.exists)
    trash(mount, "restore", token, "--put-back")
    assert as_user(ALICE, lambda: tuple(dump.stat())[:8]) == status
    assert contents(dump) == before
    as_user(ALICE, (dump / "more").mkdir)


def test_what_was_removed_together_comes_back_together(mount: Mount, dump: Path) -> None:
    before = contents(dump)
    old = remove(mount, b"core-1.img", ago_ns=50 * HOUR_NS)
    as_user(ALICE, lambda: (dump / "core-1.img").write_bytes(before["core-1.img"]))
    remove(mount, b"core-1.img")
    remove(mount, b"pages-1.img")
    as_user(ALICE, dump.rmdir)
    trash(mount, "restore", "--set", "dump", "--since", "2d", "--to", "again")
    assert contents(mount.path / "again") == before
    assert not as_user(ALICE, dump.exists)
    assert [row["item"] for row in listed(mount)] == [old]


def test_what_is_in_the_way_is_named_with_the_way_out(mount: Mount, dump: Path) -> None:
    token = remove(mount, b"")
    as_user(ALICE, dump.mkdir)
    error = trash(mount, "restore", token, status=FAILED)
    assert error == f"ckfs: {token}: there is a set dump again: restore it to another set with --to NAME\n"
    trash(mount, "restore", token, "--to", "dump2")
    assert "core-1.img" in contents(mount.path / "dump2")


def test_of_two_of_one_name_the_later_one_comes_back(mount: Mount, dump: Path) -> None:
    first = remove(mount, b"core-1.img", ago_ns=2 * HOUR_NS)
    as_user(ALICE, lambda: (dump / "core-1.img").write_bytes(b"later"))
    remove(mount, b"core-1.img")
    error = trash(mount, "restore", "--set", "dump", status=FAILED)
    assert error.startswith(f"ckfs: {first}: an older one of the same name")
    assert contents(dump)["core-1.img"] == b"later"


# For good


def test_items_are_removed_for_good(mount: Mount, dump: Path) -> None:
    image, rest = remove(mount, b"core-1.img"), remove(mount, b"")
    done = trash(mount, "purge", image).splitlines()
    assert done[0].startswith(f"removed for good: dump/core-1.img (item {image}, removed ")
    assert done[1].startswith("items removed for good: 1; bytes freed: ")
    assert [row["item"] for row in listed(mount)] == [rest]
    assert trash(mount, "purge", "--older-than", "1d").startswith("items removed for good: 0;")
    assert "items removed for good: 1;" in trash(mount, "purge", "--set", "dump")
    assert trash(mount, "purge", "--all").startswith("items removed for good: 0;")
    assert listed(mount) == []


def test_what_ckfs_cannot_tell_is_shown_and_removed_but_not_restored(mount: Mount, dump: Path) -> None:
    remove(mount, b"core-1.img")
    stray = mount.store / f"trash/{ALICE}/stray"
    stray.write_bytes(b"content")
    os.chown(stray, ALICE, ALICE)
    row = next(row for row in listed(mount) if row["item"] == "stray")
    assert (row["damaged"], row["set"], row["uid"]) == ("nothing says what it was", "", None)
    assert "(nothing says what it was)" in trash(mount, "ls")
    assert "by hand" in trash(mount, "restore", "stray", status=FAILED)
    trash(mount, "purge", "stray")
    assert len(listed(mount)) == 1


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("restore",), "say what to restore"),
        (("restore", "abcdef"), "there is no such item"),
        (("restore", "--set", "none"), "nothing of that"),
        (("restore", "abcdef", "--to", "a/b"), "not a set's name"),
        (("restore", "abcdef", "--to", "a", "--put-back"), "not allowed with"),
        (("restore", "abcdef", "--set", "a"), "not both"),
        (("show", "a"), "there is no such item"),
        (("purge",), "say what to remove for good"),
        (("purge", "abcdef", "--all"), "say what to remove for good"),
        (("purge", "--older-than", "3 days"), "not an age"),
        (("ls", "--since", "yesterday"), "not a time"),
        (("ls", "--owner", "nobody-of-that-name"), "no such user"),
        (("empty",), "invalid choice"),
    ],
)
def test_wrong_usage_is_said_in_one_line(
    module_mount: Mount, arguments: tuple[str, ...], reason: str
) -> None:
    done = run_ckfs(
        "trash", *arguments, *(("--store", str(module_mount.path)) if arguments != ("empty",) else ())
    )
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("ckfs: ")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_no_store_is_said_in_one_line(workdir: Path) -> None:
    done = run_ckfs("trash", "ls", "--store", workdir)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (STORE, "", 1)


def test_users_are_sent_to_a_mount(module_mount: Mount) -> None:
    for arguments in (["ls"], ["restore", "abcdef"], ["purge", "--all"]):
        done = ckfs_as(ALICE, "trash", *arguments, "--store", module_mount.store.parent.parent)
        assert (done.status, done.output, done.errors.count("\n")) == (RIGHTS, b"", 1)
        assert "not on a ckfs mount: name a mount" in done.errors
