"""A store with something of everything in it, and every way in which one may be damaged by hand, by a crash or a backup."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from ckfs.fs.liveness import Judge, registration_here
from ckfs.fs.metadata import Changes
from ckfs.model import Owner, Record, State
from ckfs.names import Inode, MountId, SetName, Uid
from ckfs.store import record, removed, writers
from ckfs.store.checking.check import check
from ckfs.store.checking.findings import Finding
from ckfs.store.entries import SetEntry, decode, encode
from ckfs.store.layout import registry
from ckfs.store.mounts import encode as mount_line
from tests.fs.cores import ALICE, BOB, Mount, copied, keeper_of, mounted, new_store
from tests.support.nfs import is_on_client, on_client, on_server

IMAGE, ONE, TWO, SINGLE, JOB, CLAIMED, OLD = (
    b"an image " * 1000,
    b"one",
    b"two",
    b"single",
    b"of nobody yet",
    b"of a job",
    b"removed",
)
CONTENTS = {IMAGE, ONE, TWO, SINGLE, JOB, CLAIMED, OLD}
TARGET = b"dump/image"
ATTRIBUTE = "user.ckfs"
GONE = MountId(b"fedcba9876543210")
"""A mount that is not registered."""
NOTE = "user.ckfs.trash"
HOSTILE = b"\x1b[2J\xff~1f~copy"


async def _fill(mount: Mount) -> None:
    await mount.alice.mkdir("dump", 0o750)
    await mount.alice.save("dump/image", IMAGE)
    await mount.alice.mkdir("dump/tree")
    await mount.alice.save("dump/tree/one", ONE)
    await mount.alice.save("dump/tree/two", TWO)
    await mount.alice.symlink("dump/link", TARGET)
    await mount.alice.mknod("dump/fifo", stat.S_IFIFO | 0o600)
    await mount.alice.link("dump/tree/one", "dump/same")
    await mount.bob.save("single", SINGLE)
    await mount.bob.link("single", "double")
    await mount.root.mkdir("7.server.CK")
    await mount.root.save("7.server.CK/image", JOB)
    await mount.root.mkdir("8.server.CK")
    await mount.root.setattr("8.server.CK", Changes(uid=ALICE.uid, gid=ALICE.gid))
    await mount.alice.save("8.server.CK/image", CLAIMED)
    await mount.alice.save("dump/old", OLD)
    await mount.alice.unlink("dump/old")
    async with mount.alice.parent("") as (root, _):
        found = await mount.fs.naming.mkdir(root, HOSTILE, 0o755, BOB)
        mount.fs.forget(found.record.ino, 1)


def whole_store(directory: Path) -> Path:
    """Where root may damage it: on the server, if it lies on another one. There also all else here looks for it, but what only
    a host does."""
    store = new_store(directory)

    async def fill() -> None:
        async with mounted(store) as mount:
            await _fill(mount)

    trio.run(fill)
    return on_server(store)


def is_squashed(store: Path) -> bool:
    """Whether root is nobody on the hosts that have the store."""
    return is_on_client(on_client(store))


def fsck(
    store: Path, *, repair: bool = False, pause: Callable[[], None] = lambda: None, by_admin: bool = False
) -> list[Finding]:
    """All that it finds, on a host, or run *by_admin* where the store lies; no time passes between its two looks."""
    path = str(store if by_admin else on_client(store))
    with registry(path) as registered:
        has_died = Judge(registered).has_died_here
        return list(
            check(path, repair=repair, pause=pause, progress=lambda done, count: None, has_died=has_died)
        )


def codes(findings: list[Finding], *, notes: bool = False) -> set[str]:
    return {finding.kind.code for finding in findings if finding.kind.counts or notes}


def left(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.is_left]


def all_bytes(store: Path) -> set[bytes]:
    """The contents of all files that lie below ``users/`` and ``trash/``."""
    files = (
        Path(top) / name
        for part in ("users", "trash")
        for top, _, names in os.walk(store / part)
        for name in names
    )
    return {file.read_bytes() for file in files if stat.S_ISREG(file.lstat().st_mode)}


def listing(store: Path) -> dict[str, object]:
    """Everything in a store, with all that looking at it could change but access times, which this look changes itself, and the times of
    ``names/``, in which whoever opens a store tries whether its keeper may write."""
    found: dict[str, object] = {}
    for top, directories, names in os.walk(os.fsencode(store)):
        for name in (b".", *directories, *names):
            path = os.path.join(top, name)
            status = os.lstat(path)
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            is_tried = os.path.normpath(path).endswith(b"/store/names")
            times = () if is_tried else (status.st_mtime_ns, status.st_ctime_ns)
            found[repr(path)] = (*status[:7], *times, attributes, target)
    return found


# Reading and writing what ckfs keeps, by hand


def entry_of(store: Path, name: str) -> SetEntry:
    return decode(os.fsencode(os.readlink(store / "names" / name)))


def say(store: Path, name: str, entry: SetEntry) -> None:
    path = store / "names" / name
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    os.symlink(encode(entry), os.fsencode(path))


def record_of(path: Path) -> Record:
    known = record.decode(os.getxattr(path, ATTRIBUTE))
    assert known is not None
    return known


def put(path: Path, new: Record) -> None:
    os.setxattr(path, ATTRIBUTE, record.encode(new))


def unclaimed(store: Path) -> Path:
    """A batch set that nobody owns yet, which the keeper of the store has."""
    return store / "users" / str(keeper_of(store).uid) / "7.server.CK"


def dump(store: Path) -> Path:
    return store / "users" / str(ALICE.uid) / "dump"


def single(store: Path) -> Path:
    return store / "users" / str(BOB.uid) / "single"


def item(store: Path) -> Path:
    """What lies in Alice's trash."""
    return next((store / "trash" / str(ALICE.uid)).iterdir())


def without_attributes(store: Path, *parts: str) -> None:
    for part in parts or ("names", "users", "trash", "staging"):
        for top, _, names in os.walk(store / part):
            for path in (Path(top), *(Path(top) / name for name in names)):
                for attribute in os.listxattr(path, follow_symlinks=False):
                    os.removexattr(path, attribute, follow_symlinks=False)


# The damages


GIVEN_AWAY = frozenset({"top-owner", "user-owner", "owner", "name-follows"})
"""What is mended by a chown."""


OF_MODES = frozenset({"mode", "user-mode", "top-mode"})


@dataclass(frozen=True)
class Damage:
    """*finds*: the codes that fsck reports, other than notes unless *notes*; the rest may show once these are mended.
    *stays*: those that it does not mend."""

    name: str
    act: Callable[[Path], object]
    finds: frozenset[str]
    stays: frozenset[str] = frozenset()
    notes: bool = False

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """Where root is squashed it is shown in time what looks different then: whose it is, what is closed, and what follows or was made
        by the keeper of the store."""
        looks_different = self.finds & (
            GIVEN_AWAY | OF_MODES | {"name-lost", "name-misplaced", "place-orphan"}
        )
        return [] if looks_different else [pytest.mark.long_on_nfs]

    def given_away(self, store: Path) -> frozenset[str]:
        """What of it no host can mend, since root is squashed there."""
        return self.finds & GIVEN_AWAY if is_squashed(store) else frozenset()

    def __str__(self) -> str:
        return self.name


def _move(store: Path, old: str, new: str) -> None:
    (store / old).rename(store / new)


def _rename_died(store: Path) -> None:
    """The new name is there, and the old one not gone yet."""
    os.link(store / "names/dump", store / "names/dump2", follow_symlinks=False)


def _same_place(store: Path) -> None:
    say(store, "dump2", entry_of(store, "dump"))


def _place_not_said(store: Path) -> None:
    """A rename of the set dump to dump2 died after it had moved the place, before it could say so."""
    _move(store, "names/dump", "names/dump2")
    _move(store, f"users/{ALICE.uid}/dump", f"users/{ALICE.uid}/dump2")


def _place_taken_again(store: Path) -> None:
    """The same, and since then another set lies where its name says."""
    _place_not_said(store)
    new = dump(store)
    new.mkdir(0o700)
    os.chown(new, ALICE.uid, ALICE.gid)
    known = replace(record_of(store / f"users/{ALICE.uid}/dump2"), ino=record.new_inode())
    put(new, known)
    owner = Owner(ALICE.uid, ALICE.gid)
    say(store, "dump", SetEntry(known.ino, owner, owner, b"dump"))


def _put_back_half(store: Path) -> None:
    """Another mount's link came out of a change, and the mount died before it could put it back."""
    _move(store, "names/7.server.CK", "staging/staging-0123456789abcdef")


def _other_number(store: Path) -> None:
    say(store, "dump", replace(entry_of(store, "dump"), ino=record.new_inode()))


def _given_to_bob(store: Path) -> None:
    say(store, "dump", replace(entry_of(store, "dump"), owner=Owner(BOB.uid, BOB.gid)))


def _half_given_to_bob(store: Path) -> None:
    _given_to_bob(store)
    os.chown(dump(store) / "image", BOB.uid, BOB.gid)


def _moved_to_bob(store: Path) -> None:
    """The hand-over died after it had moved the place."""
    _given_to_bob(store)
    for path in (dump(store), *dump(store).rglob("*")):
        os.chown(path, BOB.uid, BOB.gid)
    _move(store, f"users/{ALICE.uid}/dump", f"users/{BOB.uid}/dump")


def _old_files_left(store: Path) -> None:
    """A set was copied to its owner, and the mount died before it had removed the old files."""
    old = store / f"users/{BOB.uid}/dump~{entry_of(store, 'dump').ino:x}~old"
    copied(dump(store), old)
    for path in (old, *old.rglob("*")):
        os.chown(path, BOB.uid, BOB.gid)


def _being_restored(store: Path) -> None:
    """The mount died between a restored set's place and its name: its note is still on it."""
    known = entry_of(store, "7.server.CK")
    path = unclaimed(store)
    note = removed.Note(Uid(0), 1, b"a", b"", SetName(b"7.server.CK"), b"", None, known.ino)
    os.setxattr(path, NOTE, removed.encode(note))
    (store / "names/7.server.CK").unlink()


def _copied_by_hand(store: Path) -> None:
    copied(dump(store), dump(store).with_name("copy of dump"))


def _image_copied_by_hand(store: Path) -> None:
    copied(dump(store) / "image", dump(store) / "tree/copy")


def _renewed_half(store: Path) -> None:
    """An image was emptied, and the mount died before what it was had a number of its own in the trash."""
    put(item(store), replace(record_of(item(store)), ino=record_of(dump(store) / "image").ino))


def _linked_across(store: Path) -> None:
    os.link(dump(store) / "image", store / f"users/{BOB.uid}/" / os.fsdecode(HOSTILE) / "image")


def _later_state(store: Path) -> None:
    path = dump(store) / "image"
    os.setxattr(path, ATTRIBUTE, record.encode(record_of(path)).replace(b";s=c;", b";s=x;"))


def _says(store: Path, text: str) -> None:
    (store / "names/dump").unlink()
    os.symlink(text, store / "names/dump")


def _without_names(store: Path) -> None:
    for path in (store / "names").iterdir():
        path.unlink()


def _nameless_later(store: Path) -> None:
    os.setxattr(dump(store), ATTRIBUTE, b"2;i=5")
    (store / "names/dump").unlink()


def left_by_mount(store: Path, mount: MountId = GONE) -> Path:
    """An image that a mount was writing which has ended."""
    path = dump(store) / "image"
    put(path, replace(record_of(path), state=State.WRITING))
    os.setxattr(path, writers.mark_of(mount), b"1")
    return path


def _directory_for_a_registration(store: Path) -> None:
    made, keeper = store / "mounts/0123456789abcdef", keeper_of(store)
    made.mkdir()
    os.chown(made, keeper.uid, keeper.gid)


def _register_dead(store: Path) -> None:
    """Of a process that has had its number before this one."""
    dead = replace(registration_here(b"n1"), id=GONE, started=1)
    (store / "mounts" / os.fsdecode(GONE)).write_bytes(mount_line(dead))


def _d(
    name: str, act: Callable[[Path], object], *finds: str, stays: tuple[str, ...] = (), notes: bool = False
) -> Damage:
    return Damage(name, act, frozenset(finds), frozenset(stays), notes)


DAMAGES = (
    _d("names/ is gone", lambda s: shutil.rmtree(s / "names"), "top-missing"),
    _d("staging/ is gone", lambda s: (s / "staging").rmdir(), "top-missing"),
    _d("users/ is another's", lambda s: os.chown(s / "users", ALICE.uid, 0), "top-owner"),
    _d("trash/ is another's", lambda s: os.chown(s / "trash", ALICE.uid, 0), "top-owner"),
    _d("staging/ is closed", lambda s: (s / "staging").chmod(0o755), "top-mode"),
    _d("names/ is open", lambda s: (s / "names").chmod(0o777), "top-mode"),
    _d("names/ without attribute", lambda s: os.removexattr(s / "names", ATTRIBUTE), "top-record"),
    _d("names/ with a damaged one", lambda s: os.setxattr(s / "names", ATTRIBUTE, b"1;i=1"), "top-record"),
    _d("names/ of a later version", lambda s: os.setxattr(s / "names", ATTRIBUTE, b"2;x"), "record-newer", stays=("record-newer",)),
    _d("broken policy", lambda s: (s / "policy.toml").write_text("trash = ["), "policy", stays=("policy",)),
    _d("no policy", lambda s: (s / "policy.toml").unlink(), "policy", stays=("policy",)),
    _d("a file in names/", lambda s: (s / "names/readme").write_bytes(b""), "name-stranger", stays=("name-stranger",)),
    _d("a damaged entry", lambda s: _says(s, "1:zz"), "name-damaged", "place-orphan"),
    _d("a damaged entry alone", lambda s: os.symlink("nonsense", s / "names/none"), "name-damaged"),
    _d("a later entry", lambda s: os.symlink("2:abc", s / "names/none"), "name-newer", stays=("name-newer",)),
    _d(
        "a later entry of a set",
        lambda s: _says(s, "2:abc"),
        "name-newer",
        "place-orphan",
        stays=("name-newer", "place-orphan"),
    ),
    _d("a remover died", lambda s: shutil.rmtree(unclaimed(s)), "name-lost"),
    _d("a user's directory is gone", lambda s: _move(s, f"users/{BOB.uid}", "../away"), "name-lost"),
    _d("a place was renamed", lambda s: _move(s, f"users/{ALICE.uid}/dump", f"users/{ALICE.uid}/x"), "name-misplaced"),
    _d("a rename died before it said so", _place_not_said, "name-misplaced"),
    _d("the same, and another is there", _place_taken_again, "name-misplaced"),
    _d("another number in the name", _other_number, "name-number"),
    _d("a rename died between its links", _rename_died, "name-twin"),
    _d("two names of one place", _same_place, "name-twin"),
    _d("a hand-over began", _given_to_bob, "name-follows", notes=True),
    _d("a hand-over died half-way", _half_given_to_bob, "name-follows", notes=True),
    _d("a hand-over died at its end", _moved_to_bob, "name-misplaced"),
    _d("old files of a copy", _old_files_left, "place-handover", notes=True, stays=("place-handover",)),
    _d("a file in users/", lambda s: (s / "users/readme").write_bytes(b""), "users-stranger", stays=("users-stranger",)),
    _d("no uid in users/", lambda s: (s / "users/007").mkdir(), "users-stranger", stays=("users-stranger",)),
    _d("a user's directory is another's", lambda s: os.chown(dump(s).parent, 0, 0), "user-owner"),
    _d("a user's directory is open", lambda s: dump(s).parent.chmod(0o755), "user-mode"),
    _d("a user's trash is another's", lambda s: os.chown(item(s).parent, 0, 0), "user-owner"),
    _d("a user's trash is closed", lambda s: item(s).parent.chmod(0o000), "user-mode"),
    _d("a name was removed", lambda s: (s / "names/dump").unlink(), "place-orphan"),
    _d("the name of a set of nobody", lambda s: (s / "names/7.server.CK").unlink(), "place-orphan"),
    _d("a link left in staging", _put_back_half, "place-orphan"),
    _d("a restore died", _being_restored, "place-orphan"),
    _d("all names were lost", lambda s: _without_names(s), "place-orphan"),
    _d("a copy by hand", _copied_by_hand, "place-orphan", "number-shared"),
    _d("an image's copy by hand", _image_copied_by_hand, "number-shared"),
    _d("an emptying died", _renewed_half, "number-shared"),
    _d("a symbolic link in a set", lambda s: os.symlink("/etc/passwd", dump(s) / "evil"), "special", stays=("special",)),
    _d("a fifo for a set", lambda s: os.mkfifo(dump(s).with_name("pipe")), "special", stays=("special",)),
    _d("a link across users", _linked_across, "linked-across", stays=("linked-across",)),
    _d("an image of root's", lambda s: os.chown(dump(s) / "image", 0, 0), "owner"),
    _d("another group", lambda s: os.chown(dump(s) / "tree", ALICE.uid, 0), "owner"),
    _d("a set of another's", lambda s: os.chown(dump(s), BOB.uid, BOB.gid), "owner"),
    _d("in the trash another's", lambda s: os.chown(item(s), 0, 0), "owner"),
    _d("a closed image", lambda s: (dump(s) / "image").chmod(0o400), "mode"),
    _d("a closed directory", lambda s: (dump(s) / "tree").chmod(0), "mode"),
    _d("a closed set", lambda s: single(s).chmod(0), "mode"),
    _d("no record", lambda s: os.removexattr(dump(s) / "image", ATTRIBUTE), "record-missing"),
    _d("no record on a set", lambda s: os.removexattr(dump(s), ATTRIBUTE), "record-missing"),
    _d("a damaged record", lambda s: os.setxattr(dump(s) / "image", ATTRIBUTE, b"\xff"), "record-damaged"),
    _d("a damaged record on a set", lambda s: os.setxattr(dump(s), ATTRIBUTE, b"1;i=zz"), "record-damaged"),
    _d("a record of the root's", lambda s: put(dump(s) / "image", replace(record_of(dump(s) / "image"), ino=Inode(1))), "record-damaged"),
    _d("a directory's on a file", lambda s: put(dump(s) / "image", record_of(dump(s))), "record-damaged"),
    _d("a later record", lambda s: os.setxattr(dump(s) / "image", ATTRIBUTE, b"2;i=5"), "record-newer", stays=("record-newer",)),
    _d("a state of a later version", _later_state, "record-newer", stays=("record-newer",)),
    _d("a later record on a nameless set", lambda s: _nameless_later(s),
       "record-newer", "place-orphan", stays=("record-newer", "place-orphan")),
    _d("a link without target", lambda s: (dump(s) / "link").write_bytes(b""), "link-empty", stays=("link-empty",)),
    _d("a file in trash/", lambda s: (s / "trash/readme").write_bytes(b""), "trash-stranger", notes=True, stays=("trash-stranger",)),
    _d("no note", lambda s: os.removexattr(item(s), NOTE), "trash-unknown", notes=True, stays=("trash-unknown",)),
    _d("half purged", lambda s: item(s).rename(item(s).with_name("0123456789abcdef.purged")), "trash-purged", notes=True, stays=("trash-purged",)),
    _d("left in staging", lambda s: (s / "staging/file-0123456789abcdef").write_bytes(b"half"), "staging-left", notes=True, stays=("staging-left",)),
    _d("a lock", lambda s: (s / "staging/copying-zz").write_bytes(b""), "staging-left", notes=True, stays=("staging-left",)),
    _d("locks of programs", lambda s: (s / "staging/locks-7f").write_bytes(b""), "staging-left", notes=True, stays=("staging-left",)),
    _d("an image of a mount that is gone", left_by_mount, "image-left", notes=True),
    _d("a directory for a registration", _directory_for_a_registration, "mount-damaged"),
    _d("a link for a registration", lambda s: (s / "mounts/0123456789abcdef").symlink_to("x"), "mount-damaged"),
    _d("a file for a term of house-keeping", lambda s: (s / "mounts/housekeeper.7").write_bytes(b""), "mount-damaged"),
    _d("a file for a node's name", lambda s: (s / "mounts/node.tqn1").write_bytes(b""), "mount-damaged"),
    _d("a term of nobody's", lambda s: (s / "mounts/housekeeper.7").symlink_to("../users"), "mount-damaged"),
    _d("a registration that says nothing", lambda s: (s / "mounts/0123456789abcdef").write_bytes(b"2;x"),
       "mount-damaged", stays=("mount-damaged",)),
    _d("a mount died on this host", _register_dead, "mount-dead", notes=True, stays=("mount-ended",)),
    _d("a mount was ended", lambda s: (s / "mounts/0123456789abcdef.ended").write_bytes(b""),
       "mount-ended", notes=True, stays=("mount-ended",)),
    _d("a file in mounts/", lambda s: (s / "mounts/readme").write_bytes(b""), "mount-stranger", notes=True, stays=("mount-stranger",)),
    _d("all attributes were lost", without_attributes, "top-record", "record-missing"),
)  # fmt: skip
