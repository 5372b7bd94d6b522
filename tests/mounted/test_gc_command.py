"""``ckfs gc`` on the store of live mounts: what it lists and why, what ``--apply`` does, and what goes by itself only because the
policy says so."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckfs.cli import gc as _imported_before_another_user_needs_it  # noqa: F401 - its name says why
from ckfs.cli.main import main
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

USAGE, STORE, RIGHTS = 2, 3, 5
"""Exit statuses of docs/commands.md."""
LIMIT_S = 30.0
OF_GONE, NOBODYS, WITH_TEMPORARY = "7.server.CK", "8.server.CK", "9.server.CK"
KINDS = {
    (OF_GONE, ""): "set of a job that is gone",
    (NOBODYS, ""): "unclaimed set",
    (WITH_TEMPORARY, ".image.tmp"): "temporary file",
}
"""All that is left behind in the store ``left``."""
IMAGE, HALF = b"an image", b"half an im"
KEEPS_HOUSE = "this mount keeps house"


def set_policy(store: Path, **changes: str) -> None:
    """Change lines ``key = …`` of the policy."""
    policy = store / "policy.toml"
    lines = policy.read_text().splitlines()
    for key, value in changes.items():
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
        lines[at] = f"{key} = {value}"
    policy.write_text("\n".join(lines) + "\n")


@pytest.fixture
def quick(store: Path, workdir: Path) -> Path:
    """A store in which all is old at once, and whose resolver says of job 7 alone that it is gone."""
    resolver = workdir / "resolver"
    resolver.write_text('#!/bin/sh\ncase "$1" in 7.server) exit 44 ;; esac\nexit 1\n')
    resolver.chmod(0o755)
    set_policy(
        store,
        temporary_hours="1e-7",
        unclaimed_days="1e-8",
        job_gone_days="1e-8",
        lease="0.4",
        torque_home='""',
        command=f'["{resolver}"]',
    )
    return store


RESOLVER_FAILS = [r"job [0-9]+\.server .*the configured command.*: failed$"]
"""A warning, since the job may be gone, and its leftovers stay for ever."""


def save(path: Path, content: bytes = IMAGE) -> None:
    path.write_bytes(content)


def make_set(mount: Mount, name: str, owner: int | None = ALICE) -> Path:
    path = mount.path / name
    path.mkdir(0o755)
    if owner is not None:
        os.chown(path, owner, owner)
    as_user(owner or 0, save, path / "image")
    return path


@pytest.fixture
def left(quick: Path, workdir: Path) -> Path:
    """A store in which something of every kind was left behind, by a mount that was killed."""
    with mounted(quick, workdir / "dead", node="dead", may_log=RESOLVER_FAILS) as mount:
        make_set(mount, OF_GONE)
        make_set(mount, NOBODYS, None)
        path = make_set(mount, WITH_TEMPORARY)
        fd = os.open(path / ".image.tmp", os.O_WRONLY | os.O_CREAT, 0o600)
        os.fchown(fd, ALICE, ALICE)
        os.write(fd, HALF)
        mount.kill()
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
        mount.detach()
    return quick


def gc(store: Path, *arguments: str, status: int = 0) -> str:
    """The output of ``ckfs gc``, or with another *status* its one line of error."""
    done = run_ckfs("gc", store, *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if not re.search(RESOLVER_FAILS[0], line)]
    assert all(line.startswith("ckfs: ") for line in done.stderr.splitlines())
    if status == 0:
        assert errors == []
        return done.stdout
    assert done.stdout == ""
    (line,) = errors
    return line


def rows(store: Path, *arguments: str) -> list[dict[str, object]]:
    answer: list[dict[str, object]] = json.loads(gc(store, "--json", *arguments))
    return answer


def kinds(store: Path) -> dict[tuple[object, object], object]:
    return {(row["set"], row["path"]): row["kind"] for row in rows(store)}


def in_trash(store: Path) -> list[dict[str, object]]:
    done = run_ckfs("trash", "ls", "--json", "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    answer: list[dict[str, object]] = json.loads(done.stdout)
    return answer


def tree(mount: Mount) -> dict[str, bytes]:
    """As root sees it; what is not complete, by its size."""
    found = {}
    for path in sorted(mount.path.glob("*/**/*")):
        state = os.getxattr(path, "user.ckfs.state")
        content = path.read_bytes() if state == b"complete" else b"%d" % path.stat().st_size
        found[str(path.relative_to(mount.path))] = content
    return found


def eventually(ask: Callable[[], object]) -> None:
    """What it waits for is another process's next round: nothing sends an event."""
    deadline = time.monotonic() + LIMIT_S
    while not ask():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


# Listing


def test_everything_is_listed_with_its_reason_and_nothing_moves(left: Path) -> None:
    assert kinds(left) == KINDS
    lines = gc(left).splitlines()
    assert len(lines) == 4
    assert lines[-1] == "leftovers: 3; with --apply they are moved to the trash"
    for name, reason, owner, size in (
        (OF_GONE, "job 7.server is gone", str(ALICE), len(IMAGE)),
        (NOBODYS, "it belongs to nobody", "-", len(IMAGE)),
        (f"{WITH_TEMPORARY}/.image.tmp", "nobody writes it any more", str(ALICE), len(HALF)),
    ):
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert reason in line
        assert f"{size} bytes, owner {owner}" in line
    assert in_trash(left) == []
    assert kinds(left) == KINDS


def test_json_says_all_that_is_known(left: Path) -> None:
    (row,) = [row for row in rows(left) if row["set"] == WITH_TEMPORARY]
    assert str(row.pop("unchanged_since"))[:2] == "20"
    assert row == {
        "kind": "temporary file",
        "set": WITH_TEMPORARY,
        "path": ".image.tmp",
        "owner": str(ALICE),
        "uid": ALICE,
        "size_bytes": len(HALF),
        "reason": "nobody writes it any more, and it never got its final name",
        "item": None,
    }


def test_an_empty_list(quick: Path) -> None:
    assert gc(quick) == "nothing was left behind\n"
    assert rows(quick) == []


def test_what_is_young_is_not_listed(left: Path) -> None:
    set_policy(left, temporary_hours="24.0", unclaimed_days="7.0", job_gone_days="14.0")
    assert rows(left) == []


def test_what_a_live_mount_is_writing_is_not_listed(quick: Path, workdir: Path) -> None:
    """Neither the file, nor the set that it is in, also one of a job that is gone."""
    with mounted(quick, workdir / "a", node="a", may_log=RESOLVER_FAILS) as mount:
        sets = [make_set(mount, name) for name in (OF_GONE, WITH_TEMPORARY)]
        files = [(path / ".image.tmp").open("wb", buffering=0) for path in sets]
        for file in files:
            file.write(HALF)
        assert kinds(quick) == {}
        for file in files:
            file.close()
        assert set(kinds(quick)) == {(OF_GONE, ""), (WITH_TEMPORARY, ".image.tmp")}


def test_without_a_resolver_that_works_no_job_is_gone(left: Path, workdir: Path) -> None:
    (workdir / "resolver").unlink()
    done = run_ckfs("gc", left, "--json")
    assert done.returncode == 0
    assert {row["kind"] for row in json.loads(done.stdout)} == set(KINDS.values()) - {KINDS[OF_GONE, ""]}
    assert done.stderr.startswith(
        "ckfs: nobody on this host can tell that a job is gone, so their sets are left out"
    )


def test_nor_is_one_of_which_the_resolver_fails_to_say(left: Path, workdir: Path) -> None:
    (workdir / "resolver").write_text("#!/bin/sh\nexit 1\n")
    assert set(kinds(left)) == set(KINDS) - {(OF_GONE, "")}


# --apply


def test_all_of_it_goes_to_the_trash_a_line_for_each_and_comes_back(left: Path, workdir: Path) -> None:
    with mounted(left, workdir / "a", node="a", may_log=RESOLVER_FAILS) as mount:
        before = tree(mount)
        lines = gc(left, "--apply").splitlines()
        items = {str(row["item"]): row for row in in_trash(left)}
        assert {(row["set"], row["path"]) for row in items.values()} == set(KINDS)
        assert {(row["program"], row["removed_by_uid"]) for row in items.values()} == {("ckfs gc", 0)}
        assert len(lines) == 3
        for item, row in items.items():
            name = "/".join(filter(None, (str(row["set"]), str(row["path"]))))
            assert [line for line in lines if line.startswith(f"{name}: moved to the trash, item {item}: ")]
        assert tree(mount) == {f"{WITH_TEMPORARY}/image": IMAGE}, "the mount's next call sees it"
        assert gc(left, "--apply") == "nothing was left behind\n"
        done = run_ckfs("trash", "restore", *items, "--store", left)
        assert (done.returncode, done.stderr) == (0, "")
        assert tree(mount) == before
        assert os.stat(mount.path / OF_GONE).st_uid == ALICE
        assert os.getxattr(mount.path / NOBODYS, "user.ckfs.owner") == b"-"


def test_json_names_the_items(left: Path) -> None:
    moved = {row["item"] for row in rows(left, "--apply")}
    assert moved == {row["item"] for row in in_trash(left)}
    assert len(moved) == 3


# By itself


def sweep_is_over(store: Path) -> bool:
    """The last thing that the mount that keeps house does in a round is to settle what the dead left."""
    return not [name for name in os.listdir(store / "mounts") if registered(store / "mounts" / name, "dead")]


def registered(path: Path, node: str) -> bool:
    try:
        return not path.is_symlink() and f"n={node}" in path.read_text()
    except FileNotFoundError:
        return False


def moved_by(mount: Mount) -> int:
    return mount.log().count("gc: ")


def test_with_the_policy_the_mount_that_keeps_house_moves_it(left: Path, workdir: Path) -> None:
    set_policy(left, automatic="true")
    assert not sweep_is_over(left)
    with (
        mounted(left, workdir / "n", node="n", may_log=RESOLVER_FAILS) as node,
        mounted(left, workdir / "s", node="s", role="server", may_log=RESOLVER_FAILS) as first,
        mounted(left, workdir / "t", node="t", role="server", may_log=RESOLVER_FAILS) as second,
    ):
        eventually(lambda: sweep_is_over(left))
        found = in_trash(left)
        assert {(row["set"], row["path"]) for row in found} == set(KINDS)
        (keeper,) = [mount for mount in (node, first, second) if KEEPS_HOUSE in mount.log()]
        assert {row["node"] for row in found} == {"s" if keeper is first else "t"}
        assert keeper is not node
        assert [moved_by(mount) for mount in (node, first, second) if mount is not keeper] == [0, 0]
        for row in found:
            assert f", item {row['item']}: {KINDS[str(row['set']), str(row['path'])]}" in keeper.log()


def test_without_the_policy_it_stays(left: Path, workdir: Path) -> None:
    with mounted(left, workdir / "s", node="s", role="server", may_log=RESOLVER_FAILS) as mount:
        eventually(lambda: sweep_is_over(left))
        assert KEEPS_HOUSE in mount.log()
        assert moved_by(mount) == 0
    assert in_trash(left) == []
    assert kinds(left) == KINDS


# Refused


def test_users_are_refused(left: Path) -> None:
    def call() -> tuple[int, str]:
        import contextlib
        import io

        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            return main(["gc", str(left), "--apply"]), err.getvalue()

    status, error = as_user(ALICE, call)
    assert (status, error) == (RIGHTS, f"ckfs: {left}: only root clears up a store\n")
    assert in_trash(left) == []


def test_a_mount_is_no_store(mount: Mount) -> None:
    line = gc(mount.path, "--apply", status=USAGE)
    assert line == f"ckfs: {mount.path}: on a ckfs mount: name the store, as 'ckfs mount' does"
    inside = mount.path / "looks-like-one"
    inside.mkdir()
    assert "on a ckfs mount" in gc(inside, status=USAGE)


def test_what_is_no_store_is_refused(workdir: Path) -> None:
    assert str(workdir) in gc(workdir, "--apply", status=STORE)
    assert str(workdir / "nowhere") in gc(workdir / "nowhere", status=STORE)
