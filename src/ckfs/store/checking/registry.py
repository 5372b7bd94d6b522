"""``mounts/``, and what mounts that are gone were writing.

What is silent may be cut off, and come back: nothing here ends it. That is for the mount that keeps house, which has listened
for long enough.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial

from ckfs.errors import Stale
from ckfs.model import Record, State
from ckfs.names import MountId, SetName, shown
from ckfs.policy import lifecycle, protection
from ckfs.policy.settings import Policy
from ckfs.store import attributes, writers, writing
from ckfs.store.checking import records
from ckfs.store.checking.below import Tree
from ckfs.store.checking.findings import Finding, Kind, Suspect
from ckfs.store.checking.walking import Directory, Seen, reach
from ckfs.store.checkpoints import checkpoints
from ckfs.store.identity import acting_as
from ckfs.store.layout import Store
from ckfs.store.mounts import NODE_PREFIX, Registration, is_id, is_passing
from ckfs.store.mountsdirectory import MOUNTS
from ckfs.store.realms import STAGING
from ckfs.store.spare import NAMES as SPARE
from ckfs.store.spots import Found, Spot

HasDied = Callable[[Registration], bool]
"""Whether a mount's process was on this host, and is not there any more."""

_ENDED = b".ended"
_TERM = b"housekeeper."


def mounts(store: Store, has_died: HasDied) -> Iterator[Suspect]:
    with Directory.at(store.path) as root:
        try:
            directory = root.inside(MOUNTS)
        except FileNotFoundError:  # made by the first mount
            return
        except NotADirectoryError:
            yield Suspect(Finding(Kind.MOUNT_DAMAGED, MOUNTS, "no directory: move it away"))
            return
        with directory:
            for name in directory.names():
                try:
                    status = directory.status_of(name)
                    yield from _entry(store, directory, name, status, has_died)
                except FileNotFoundError:
                    continue


def _entry(
    store: Store, directory: Directory, name: bytes, status: os.stat_result, has_died: HasDied
) -> Iterator[Suspect]:
    path = MOUNTS + b"/" + name
    if (name in SPARE and stat.S_ISREG(status.st_mode)) or is_passing(name):
        return
    if name.startswith(_TERM):
        if trouble := _trouble_with_term(directory, name, status):
            yield Suspect(Finding(Kind.MOUNT_DAMAGED, path, trouble), partial(_aside, store, name, status))
    elif name.startswith(NODE_PREFIX):
        if not stat.S_ISLNK(status.st_mode):
            yield Suspect(Finding(Kind.MOUNT_DAMAGED, path, "no link"), partial(_aside, store, name, status))
    elif not is_id(name.removesuffix(_ENDED)):
        yield Suspect(Finding(Kind.MOUNT_STRANGER, path))
    elif not stat.S_ISREG(status.st_mode):
        yield Suspect(Finding(Kind.MOUNT_DAMAGED, path, "no file"), partial(_aside, store, name, status))
    elif name.endswith(_ENDED):
        yield Suspect(Finding(Kind.MOUNT_ENDED, path))
    else:
        yield from _registration(store, MountId(name), path, has_died)


def _trouble_with_term(directory: Directory, name: bytes, status: os.stat_result) -> str:
    if not name.removeprefix(_TERM).isdigit():
        return "no number"
    if not stat.S_ISLNK(status.st_mode):
        return "no link"
    target = reach(directory.owner, lambda: os.readlink(name, dir_fd=directory.fd))
    return "" if is_id(target) else f"it names {shown(target[:100])}"


def _registration(store: Store, mount: MountId, path: bytes, has_died: HasDied) -> Iterator[Suspect]:
    registration = store.mounts.read(mount)
    if registration is None:
        return
    if not registration.node:
        yield Suspect(Finding(Kind.MOUNT_DAMAGED, path, "it cannot be read"))
    elif has_died(registration):
        finding = Finding(Kind.MOUNT_DEAD, path, f"of node {shown(registration.node)}")
        yield Suspect(finding, partial(_end, store, mount))


def _end(store: Store, mount: MountId) -> str:
    store.mounts.end(mount)
    return Kind.MOUNT_DEAD.mending


def _aside(store: Store, name: bytes, known: os.stat_result) -> str:
    """With it in the way no mount would keep house, or find out who is alive."""
    token = b"damaged-%s" % os.urandom(8).hex().encode()
    with (
        Directory.at(store.path) as root,
        root.inside(MOUNTS) as directory,
        root.inside(STAGING) as staging,
        acting_as(store.service),
    ):
        if not os.path.samestat(os.stat(name, dir_fd=directory.fd, follow_symlinks=False), known):
            raise Stale("it is another by now")
        os.rename(name, token, src_dir_fd=directory.fd, dst_dir_fd=staging.fd)
    return f"moved to staging/{token.decode()}"


def is_gone(store: Store, has_died: HasDied, mount: MountId) -> bool:
    try:
        registration = store.mounts.read(mount)
    except OSError:  # no file, and a finding of its own
        return False
    return registration is None or has_died(registration)


# What they were writing


def left_image(
    store: Store, tree: Tree, seen: Seen, policy: Policy, gone: Callable[[MountId], bool]
) -> Iterator[Suspect]:
    """Of the set that *tree* is: an image that is marked by mounts of which all are gone. Without any mark a mount says what it
    is worth whenever it is asked."""
    if tree.name is None or tree.stored is None or not seen.is_regular:
        return
    known = records.reading(seen.raw, seen.status)
    if not isinstance(known, Record) or not known.is_regular or known.state is not State.WRITING:
        return
    directory = seen.directory
    where = attributes.path_of(directory.fd, seen.name)
    marks = reach(directory.owner, lambda: writers.of(where))
    if not marks or not all(map(gone, marks)):
        return
    mounts = ", ".join(sorted(map(shown, marks)))
    spot = tree.spot(seen, tree.stored)
    yield Suspect(
        Finding(Kind.IMAGE_LEFT, seen.path, f"mount {mounts}"),
        partial(_settle, store, spot, tree.name, known, marks, policy),
    )


def _settle(
    store: Store, spot: Spot, name: SetName, known: Record, marks: frozenset[MountId], policy: Policy
) -> str:
    is_final = policy.is_final(_own_name(spot, name))
    number = _next_number(store, name, policy)

    def settled(found: Found) -> Record:
        event = lifecycle.as_left(
            found.record,
            marked=True,
            is_final=is_final,
            size=found.stat.st_size,
            mtime_ns=found.stat.st_mtime_ns,
        )
        after = found.record if event is None else lifecycle.after(found.record, event)
        return after.with_(completed=number) if after.state is State.COMPLETE else after

    after = writing.settle_left(store.door, spot, known.ino, marks, settled)
    if after.record.state is State.WRITING:
        raise Stale("somebody writes it again")
    return f"is {after.record.state.value}"


def _own_name(spot: Spot, name: SetName) -> bytes:
    """The set's own place may be called otherwise than the set."""
    _users, _user, _place, *below = spot.components
    return below[-1] if below else name


def _next_number(store: Store, name: SetName, policy: Policy) -> int:
    """As a mount numbers what is complete: later than all in the family of a batch set."""
    now_ns = time.time_ns()
    if not policy.is_batch(name):
        return now_ns
    of_family = checkpoints(store.names, store.door, protection.family(name), policy.is_final)
    return max(now_ns, *(one.order + 1 for one in of_family), 0)
