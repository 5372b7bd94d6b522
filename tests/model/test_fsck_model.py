"""A store that is damaged at random, in several ways at once, and mended: no content is ever lost, the second run finds nothing
that it could have mended, and what a user had is served again.

Damages are those that keep the files: whoever removes the files themselves has removed them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ckfs.names import Inode
from ckfs.store import record
from ckfs.store.checking.findings import Finding, Kind
from ckfs.store.entries import SetEntry, decode, encode
from tests.fs.cores import ALICE, BOB, copied
from tests.fs.damage import ATTRIBUTE, NOTE, all_bytes, codes, fsck, left, put, whole_store
from tests.support.examples import PHASES, examples

pytestmark = pytest.mark.root

UIDS = (0, ALICE.uid, BOB.uid)
Damage = tuple[str, int, int]
"""What is done, to the how-manieth file of its kind, and how."""

OF_FILES = ("chown", "chmod", "no record", "torn record", "number", "copy", "link")
OF_PLACES = ("rename place", "move place", "copy place")
OF_NAMES = ("no name", "torn name", "twin", "number in name", "place in name", "owner in name", "aside")
OF_STORE = ("user", "user mode", "top", "no note", "staging")
DAMAGES = st.tuples(
    st.sampled_from([*OF_FILES, *OF_PLACES, *OF_NAMES, *OF_STORE]), st.integers(0, 1000), st.integers(0, 1000)
)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ckfs-test-"))
    yield whole_store(directory)
    shutil.rmtree(directory)


def files(store: Path) -> list[Path]:
    parts = ("users", "trash")
    below = sorted(path for part in parts for path in (store / part).rglob("*"))
    return [path for path in below if path.parent.parent != store and path.parent != store]


def places(store: Path) -> list[Path]:
    return sorted(path for user in (store / "users").iterdir() for path in user.iterdir())


def damage(store: Path, act: str, which: int, how: int) -> None:
    """Some do not fit what others have left of the store."""
    if act in OF_FILES:
        found = [path for path in files(store) if path.parent.parent != store]
        _damage_file(found[which % len(found)], act, how)
    elif act in OF_PLACES:
        found = places(store)
        _damage_place(store, found[which % len(found)], act, how)
    elif act in OF_NAMES:
        found = sorted((store / "names").iterdir())
        if found:
            _damage_name(store, found[which % len(found)], act, how)
    else:
        _damage_store(store, act, which, how)


def _damage_file(path: Path, act: str, how: int) -> None:
    match act:
        case "chown":
            os.chown(path, UIDS[how % 3], UIDS[how % 2])
        case "chmod":
            path.chmod((0, 0o400, 0o111, 0o1777)[how % 4])
        case "no record":
            os.removexattr(path, ATTRIBUTE)
        case "torn record":
            raw = os.getxattr(path, ATTRIBUTE)
            os.setxattr(path, ATTRIBUTE, raw[: how % max(len(raw), 1)])
        case "number":
            known = record.decode(os.getxattr(path, ATTRIBUTE))
            if known is not None:
                put(path, replace(known, ino=Inode(5 + how % 3)))
        case "copy":
            if not path.with_name(f"{path.name[:50]}-{how}").exists():
                copied(path, path.with_name(f"{path.name[:50]}-{how}"))
        case "link":
            with contextlib.suppress(PermissionError):
                os.link(path, path.with_name(f"{path.name[:50]}={how}"))


def _damage_place(store: Path, path: Path, act: str, how: int) -> None:
    match act:
        case "rename place":
            path.rename(path.with_name(f"x{how}"))
        case "move place":
            user = store / "users" / str(UIDS[how % 3])
            path.rename(user / f"y{how}")
        case "copy place":
            to = path.with_name(("dump~1f~copy", "dump", "7.server.CK", f"z{how}")[how % 4])
            if not to.exists():
                copied(path, to)


def _damage_name(store: Path, path: Path, act: str, how: int) -> None:
    text = os.fsencode(os.readlink(path))
    if act == "twin":
        os.link(path, path.with_name(f"twin{how}"), follow_symlinks=False)
        return
    if act == "aside":
        path.rename(store / "staging" / f"{('staging', 'cleared')[how % 2]}-{how:016x}")
        return
    path.unlink()
    if act == "no name":
        return
    with contextlib.suppress(OSError):
        entry = decode(text)
        others = sorted(os.fsencode(other.name) for other in places(store))
        match act:
            case "torn name":
                text = text[: 1 + how % len(text)]
            case "number in name":
                text = encode(replace(entry, ino=Inode(5 + how % 3)))
            case "place in name":
                text = encode(replace(entry, place=others[how % len(others)]))
            case "owner in name":
                text = encode(replace(entry, owner=None))
    os.symlink(text, os.fsencode(path))


def _damage_store(store: Path, act: str, which: int, how: int) -> None:
    part = store / ("users", "trash")[which % 2]
    users = sorted(part.iterdir())
    match act:
        case "user":
            os.chown(users[how % len(users)], UIDS[which % 3], 0)
        case "user mode":
            users[how % len(users)].chmod((0, 0o755, 0o500)[which % 3])
        case "top":
            top = store / ("names", "users", "staging", "trash")[how % 4]
            if which % 2:
                os.chown(top, ALICE.uid, 0)
            else:
                top.chmod(0o700)
        case "no note":
            for item in (store / "trash").glob("*/*"):
                os.removexattr(item, NOTE)
        case "staging":
            (store / f"staging/file-{how:016x}").write_bytes(b"half")


@settings(
    max_examples=examples(200),
    phases=PHASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damages=st.lists(DAMAGES, min_size=1, max_size=8))
@example(
    damages=[
        ("staging", 412, 297),
        ("chown", 30, 17),
        ("aside", 17, 17),
        ("rename place", 484, 540),
        ("chown", 30, 17),
        ("aside", 849, 830),
    ]
)
def test_whatever_is_damaged_nothing_is_lost(template: Path, damages: list[Damage]) -> None:
    with tempfile.TemporaryDirectory(prefix="ckfs-test-") as directory:
        store = copied(template, Path(directory) / "store")
        for one in damages:
            with contextlib.suppress(OSError):  # what the one has taken away the next cannot damage
                damage(store, *one)
        contents = all_bytes(store)
        first = fsck(store, repair=True)
        assert contents <= all_bytes(store)
        again = fsck(store)
        unmended = {finding.key for finding in left(first)}
        assert {finding.key for finding in again if finding.kind.counts} <= unmended, (first, again)
        named = {(entry.stored.uid, entry.place) for entry in map(_entry, (store / "names").iterdir())}
        if not unmended:
            assert {
                (int(place.parent.name), os.fsencode(place.name)) for place in places(store)
            } <= named | _copies(again)
        assert codes(fsck(store, repair=True)) == codes(again)


def _entry(path: Path) -> SetEntry:
    return decode(os.fsencode(os.readlink(path)))


def _copies(findings: list[Finding]) -> set[tuple[int, bytes]]:
    """Places that are left to the hand-over that they seem to be of."""
    paths = (finding.where.split(b"/", 2) for finding in findings if finding.kind is Kind.PLACE_HANDOVER)
    return {(int(uid), place) for _, uid, place in paths}
