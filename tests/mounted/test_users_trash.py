"""``ckfs trash`` by users, who ask the mount's daemon: each sees and changes what was in sets of his own, and no more."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Ran, ckfs_as
from tests.support.jobfiles import Job, binary
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.users import ALICE, BOB, ROOT, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

FAILED, USAGE, RIGHTS = 1, 2, 5
JOB = "7.server.CK"


def trash(mount: Mount, uid: int, *arguments: str) -> Ran:
    ran = ckfs_as(uid, "trash", *arguments, "--store", mount.path)
    assert "Traceback" not in ran.errors
    assert all(line.startswith("ckfs: ") for line in ran.errors.splitlines())
    return ran


def listed(mount: Mount, uid: int, *arguments: str) -> list[dict[str, object]]:
    ran = trash(mount, uid, "ls", "--json", *arguments)
    assert (ran.status, ran.errors) == (0, "")
    rows: list[dict[str, object]] = json.loads(ran.output)
    return rows


def token_of(mount: Mount, path: str) -> str:
    """The one item that was at *path*."""
    done = run_ckfs("trash", "ls", "--json", "--store", mount.path)
    rows = json.loads(done.stdout)
    [token] = [row["item"] for row in rows if "/".join(filter(None, (row["set"], row["path"]))) == path]
    return str(token)


def removed(mount: Mount, uid: int, path: str, content: bytes = b"image", *, mode: int = 0o600) -> str:
    """Let *uid* write an image at *path*, and remove it again. Returns the item's token."""
    file = mount.path / path

    def write_and_remove() -> None:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, mode)
        os.write(descriptor, content)
        os.close(descriptor)
        file.unlink()

    as_user(uid, write_and_remove)
    return token_of(mount, path)


def content(mount: Mount, uid: int, path: str) -> bytes:
    return as_user(uid, (mount.path / path).read_bytes)


@pytest.fixture
def server(store: Path, workdir: Path) -> Iterator[Mount]:
    """A mount whose root removes what is protected, so that it comes into the trash."""
    with mounted(store, workdir / "mount", role="server") as running:
        yield running


def batch_set(mount: Mount, name: str = JOB, uid: int = ALICE) -> Path:
    """As a batch system makes it for a user."""
    path = mount.path / name

    def make() -> None:
        path.mkdir()
        os.chown(path, uid, uid)

    as_user(ROOT, make)
    return path


def take_away(path: Path) -> None:
    """As a batch system does at a job's end."""
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


# What he sees


def test_each_sees_what_was_in_his_sets_alone(mount: Mount) -> None:
    hers, his = removed(mount, ALICE, "dump/pages"), removed(mount, BOB, "bobs/pages", b"bob's")
    assert [row["item"] for row in listed(mount, ALICE)] == [hers]
    assert [row["item"] for row in listed(mount, BOB)] == [his]
    assert listed(mount, ALICE, "--owner", str(BOB)) == []
    assert listed(mount, ALICE, "--set", "bobs") == []
    assert {hers, his} == {row["item"] for row in json.loads(_root(mount, "ls", "--json"))}


def test_a_user_s_list_is_root_s_line_by_line(mount: Mount) -> None:
    token = removed(mount, ALICE, "dump/pages")
    for arguments in (["ls"], ["ls", "--json"], ["show", token[:8]]):
        assert trash(mount, ALICE, *arguments).text == _root(mount, *arguments)


def _root(mount: Mount, *arguments: str) -> str:
    done = run_ckfs("trash", *arguments, "--store", mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_is_not_his_is_not_there_for_him(mount: Mount) -> None:
    """The answer is the same, to the letter, as for what never was."""
    theirs = removed(mount, BOB, "bobs/pages")
    never = "0123456789abcdef"
    for action in (["show"], ["restore"], ["purge"]):
        of_theirs, of_never = (trash(mount, ALICE, *action, token) for token in (theirs, never))
        assert of_theirs.status == of_never.status == USAGE
        assert of_theirs.errors.replace(theirs, never) == of_never.errors
    for arguments in (["restore", "--set", "bobs"], ["restore", "--set", "none"]):
        assert "nothing of that" in trash(mount, ALICE, *arguments).errors
    assert trash(mount, ALICE, "purge", "--all").text == "items removed for good: 0; bytes freed: 0\n"
    assert [row["item"] for row in listed(mount, BOB)] == [theirs]


def test_what_ckfs_cannot_tell_whose_it_was_is_root_s_to_see(mount: Mount) -> None:
    removed(mount, ALICE, "dump/pages")
    stray = mount.store / f"trash/{ALICE}/stray"
    stray.write_bytes(b"content")
    os.chown(stray, ALICE, ALICE)
    assert "stray" not in trash(mount, ALICE, "ls").text
    assert "no such item" in trash(mount, ALICE, "purge", "stray").errors
    assert stray.exists()


def test_many_items_come_whole(mount: Mount) -> None:
    """More than the daemon takes from the store at a time."""

    def make_and_remove() -> None:
        (mount.path / "many").mkdir()
        for number in range(250):
            file = mount.path / "many" / str(number)
            file.write_bytes(b"image")
            file.unlink()

    as_user(ALICE, make_and_remove)
    assert {row["path"] for row in listed(mount, ALICE)} == {str(number) for number in range(250)}
    done = trash(mount, ALICE, "restore", "--set", "many")
    assert (done.status, len(done.text.splitlines())) == (0, 250)
    assert len(as_user(ALICE, lambda: os.listdir(mount.path / "many"))) == 250


# What he does


def test_he_restores_and_the_log_says_so(mount: Mount) -> None:
    token = removed(mount, ALICE, "dump/pages", b"content")
    done = trash(mount, ALICE, "restore", token[:6])
    assert (done.status, done.text) == (0, f"{token}: restored as dump/pages\n")
    assert content(mount, ALICE, "dump/pages") == b"content"
    assert listed(mount, ALICE) == []
    assert f"trash: uid {ALICE} restored 1 items: {token}" in mount.log()


def test_a_set_that_exists_again_stays_as_it_is(mount: Mount) -> None:
    """A set that is one file."""
    as_user(ALICE, lambda: (mount.path / "image").write_bytes(b"old"))
    as_user(ALICE, (mount.path / "image").unlink)
    as_user(ALICE, lambda: (mount.path / "image").write_bytes(b"new"))
    token = token_of(mount, "image")
    done = trash(mount, ALICE, "restore", "--set", "image")
    assert (done.status, done.text) == (FAILED, "")
    assert (
        done.errors
        == f"ckfs: {token}: there is a set image again: restore it to another set with --to NAME\n"
    )
    assert content(mount, ALICE, "image") == b"new"
    assert trash(mount, ALICE, "restore", token, "--to", "earlier").status == 0
    assert content(mount, ALICE, "earlier") == b"old"


def test_a_set_that_is_gone_comes_back_with_all_of_it(mount: Mount) -> None:
    for name in ("pages-1", "core-1"):
        removed(mount, ALICE, f"dump/{name}", name.encode())
    as_user(ALICE, (mount.path / "dump").rmdir)
    assert trash(mount, ALICE, "restore", "--set", "dump", "--put-back").status == 0
    assert content(mount, ALICE, "dump/pages-1") == b"pages-1"
    assert as_user(ALICE, lambda: (mount.path / "dump").stat().st_uid) == ALICE


def test_he_purges_and_the_log_says_so(mount: Mount) -> None:
    token = removed(mount, ALICE, "dump/pages")
    keep = removed(mount, ALICE, "dump/other")
    done = trash(mount, ALICE, "purge", token)
    assert done.status == 0
    assert done.text.startswith(f"removed for good: dump/pages (item {token}, removed ")
    assert done.text.splitlines()[1].startswith("items removed for good: 1; bytes freed: ")
    assert [row["item"] for row in listed(mount, ALICE)] == [keep]
    assert f"trash: uid {ALICE} removed for good 1 items: {token}" in mount.log()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("restore",), "say what to restore"),
        (("restore", "abcdef"), "there is no such item"),
        (("restore", "abcdef", "--to", "a/b"), "not a set's name"),
        (("restore", "abcdef", "--set", "a"), "not both"),
        (("purge",), "say what to remove for good"),
        (("purge", "abcdef", "--all"), "say what to remove for good"),
        (("purge", "--older-than", "3 days"), "not an age"),
    ],
)
def test_wrong_usage_is_said_to_him_as_to_root(
    module_mount: Mount, arguments: tuple[str, ...], reason: str
) -> None:
    done = trash(module_mount, ALICE, *arguments)
    of_root = run_ckfs("trash", *arguments, "--store", module_mount.path)
    assert (done.status, done.errors) == (of_root.returncode, of_root.stderr) == (USAGE, done.errors)
    assert reason in done.errors


def test_a_read_only_mount_shows_and_restores_nothing(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        token = removed(mount, ALICE, "dump/pages")
    with mounted(store, workdir / "read-only", options=["ro"]) as mount:
        assert [row["item"] for row in listed(mount, ALICE)] == [token]
        assert trash(mount, ALICE, "restore", token).status == FAILED
        assert trash(mount, ALICE, "purge", token).status == FAILED
        assert [row["item"] for row in listed(mount, ALICE)] == [token]


# What restoring must not be a way to


def test_no_name_of_a_batch_set_is_taken_by_restoring(mount: Mount) -> None:
    token = removed(mount, ALICE, "dump/pages")
    done = trash(mount, ALICE, "restore", token, "--to", "8.server.CK")
    assert (done.status, done.text) == (FAILED, "")
    assert "--to NAME" in done.errors
    assert not (mount.path / "8.server.CK").exists()
    assert [row["item"] for row in listed(mount, ALICE)] == [token]


def test_nobody_knows_the_job_any_more_so_its_name_stays_free(server: Mount) -> None:
    """Ids of jobs can come again; whoever had the set would have the next job's image."""
    path = batch_set(server)
    as_user(ALICE, lambda: (path / "image").write_bytes(b"mine"))
    take_away(path)
    token = token_of(server, f"{JOB}/image")
    done = trash(server, ALICE, "restore", token)
    assert done.status == FAILED
    assert (
        "only root, or the job's owner, makes a batch set: restore it to another set with --to NAME"
        in done.errors
    )
    assert trash(server, ALICE, "restore", token, "--to", "mine").status == 0
    assert content(server, ALICE, "mine/image") == b"mine"


def test_who_owns_the_job_puts_its_set_back(store: Path, workdir: Path) -> None:
    job = JOB.removesuffix(".CK")
    job_file = workdir / "torque/mom_priv/jobs" / f"{job}.JB"
    job_file.parent.mkdir(parents=True)
    job_file.write_bytes(binary(Job(job, job, uid=ALICE, gid=ALICE)))
    policy = store / "policy.toml"
    policy.write_text(policy.read_text("utf-8").replace('"/var/spool/torque"', f'"{workdir}/torque"'))
    with mounted(store, workdir / "mount", role="server") as mount:
        path = batch_set(mount)
        as_user(ALICE, lambda: (path / "image").write_bytes(b"mine"))
        take_away(path)
        bobs = removed(mount, BOB, "bobs/pages")
        as_user(BOB, (mount.path / "bobs").rmdir)
        assert trash(mount, BOB, "restore", bobs, "--to", JOB).status == FAILED
        assert trash(mount, ALICE, "restore", "--set", JOB).status == 0
        assert content(mount, ALICE, f"{JOB}/image") == b"mine"


def test_into_her_batch_set_comes_only_what_was_in_it(server: Mount) -> None:
    """Images from elsewhere would count among its newest, and take the place of those that are protected."""
    path = batch_set(server)
    as_user(ALICE, lambda: (path / "image").write_bytes(b"mine"))
    os.unlink(path / "image")
    of_it, other = token_of(server, f"{JOB}/image"), removed(server, ALICE, "dump/pages")
    done = trash(server, ALICE, "restore", other, "--to", JOB)
    assert done.status == FAILED
    assert "nothing comes into a batch set from another set" in done.errors
    assert trash(server, ALICE, "restore", of_it).status == 0
    assert content(server, ALICE, f"{JOB}/image") == b"mine"
    assert os.listdir(path) == ["image"]


def test_what_is_protected_is_not_replaced(server: Mount) -> None:
    path = batch_set(server)
    as_user(ALICE, lambda: (path / "image").write_bytes(b"old"))
    os.unlink(path / "image")
    as_user(ALICE, lambda: (path / "image").write_bytes(b"new"))
    done = trash(server, ALICE, "restore", "--set", JOB)
    assert done.status == FAILED
    assert "there is image again" in done.errors
    assert content(server, ALICE, f"{JOB}/image") == b"new"


@pytest.mark.parametrize("owner", [None, BOB])
def test_a_set_that_is_not_his_takes_nothing(server: Mount, owner: int | None) -> None:
    path = batch_set(server)
    as_user(ALICE, lambda: (path / "image").write_bytes(b"mine"))
    take_away(path)
    path.mkdir(mode=0o777)  # unclaimed
    if owner is not None:
        os.chown(path, owner, owner)
    done = trash(server, ALICE, "restore", "--set", JOB)
    assert done.status == FAILED
    assert "belongs to somebody else by now: restore it to another set with --to NAME" in done.errors
    assert os.listdir(path) == []


def test_neither_does_another_user_s_set(mount: Mount) -> None:
    token = removed(mount, ALICE, "dump/pages")
    as_user(BOB, lambda: (mount.path / "bobs").mkdir(0o777))
    as_user(BOB, lambda: (mount.path / "bobs").chmod(0o777))
    assert trash(mount, ALICE, "restore", token, "--to", "bobs").status == FAILED
    assert os.listdir(mount.path / "bobs") == []


def test_what_another_user_had_closed_stays_closed(mount: Mount) -> None:
    """Bob's file in Alice's set lay in a directory that she could not enter. Made again it would be hers."""
    as_user(ALICE, lambda: (mount.path / "shared").mkdir(0o777))
    as_user(ALICE, lambda: (mount.path / "shared").chmod(0o777))
    token = removed(mount, BOB, "shared/private/secret", b"bob's", mode=0o644)
    as_user(BOB, (mount.path / "shared/private").rmdir)
    for more in ([], ["--to", "mine"]):
        done = trash(mount, ALICE, "restore", token, *more)
        assert done.status == FAILED
        assert f"uid {BOB} made it, in a directory: ask an admin" in done.errors
    assert as_user(ALICE, lambda: sorted(os.listdir(mount.path))) == ["shared"]
    as_root = run_ckfs("trash", "restore", token, "--to", "again", "--store", mount.path)
    assert as_root.returncode == 0


def test_others_see_what_comes_back_whole_or_not_at_all(mount: Mount) -> None:
    count = 100

    def make_and_remove() -> None:
        (mount.path / "dump").mkdir()
        for number in range(count):
            (mount.path / "dump" / str(number)).write_bytes(b"image")
        for number in range(count):
            (mount.path / "dump" / str(number)).unlink()
        (mount.path / "dump").rmdir()

    as_user(ALICE, make_and_remove)

    def restore_while_watching() -> set[int]:
        child = os.fork()
        if child == 0:
            os._exit(_quietly(mount))
        seen: set[int] = set()
        while not os.waitpid(child, os.WNOHANG)[0]:
            with contextlib.suppress(FileNotFoundError):
                seen.add(len(os.listdir(mount.path / "dump")))
            time.sleep(0)
        return seen | {len(os.listdir(mount.path / "dump"))}

    assert as_user(ALICE, restore_while_watching) == {count}


def _quietly(mount: Mount) -> int:
    from ckfs.cli.main import main

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    return main(["trash", "restore", "--set", "dump", "--store", str(mount.path)])
