"""``ckfs verify --accept``: images of unknown state are whole, says an admin."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from ckfs.cli.ls import places
from ckfs.cli.scrub import about, reason_of
from ckfs.cli.stores import prepare_for_stores
from ckfs.cli.verify import mount_of, store_of
from ckfs.errors import CkfsError, FsError, NotPermitted, Stale, UsageError
from ckfs.fs.liveness import Fate, Judge
from ckfs.model import State
from ckfs.names import SetName, shown
from ckfs.policy import protection
from ckfs.store import everywhere, rereading
from ckfs.store.checkpoints import checkpoints
from ckfs.store.everywhere import Unreadable, Where
from ckfs.store.layout import Store
from ckfs.store.spots import Found

Unknown = tuple[Where, Found]


def accept(paths: list[str]) -> int:
    """Let what is of unknown state at *paths* be complete. Returns the exit status; raises CkfsError."""
    if os.geteuid() != 0:
        raise NotPermitted("only root accepts images of unknown state: ask an admin")
    if not paths:
        raise UsageError("say what is whole: a file, a set, or a mount for all on it")
    prepare_for_stores()
    on = [(mount_of(path), path) for given in paths for path in places(given)]
    accepted = failed = 0
    for mount, path in on:
        there = 0
        with store_of(mount) as store:
            set_name, _, inner = (
                os.fsencode(os.path.relpath(path, mount)).partition(b"/") if path != mount else (b"",) * 3
            )
            for name in [SetName(set_name)] if set_name else sorted(store.names.all()):
                done, not_done = _accept_in_set(store, name, inner)
                accepted, failed = accepted + done, failed + not_done
                there += done + not_done
        if not there:
            print(f"ckfs: {shown(path)}: nothing of unknown state there", file=sys.stderr)
    print(f"{accepted} accepted" + (f", {failed} not" if failed else ""))
    return CkfsError.exit_status if failed else 0


def _accept_in_set(store: Store, name: SetName, inner: bytes) -> tuple[int, int]:
    """How many were accepted, and how many not."""
    failed: list[Where] = []

    def unreadable(where: Where, error: OSError | FsError) -> None:
        failed.append(where)
        print(f"ckfs: {_shown(where)}: cannot be read: {reason_of(error)}", file=sys.stderr)

    unknown = _unknown(store, name, inner, unreadable)
    images = sorted(unknown, key=lambda one: (one[1].stat.st_mtime_ns, one[0].path))
    numbers = _numbers(store, name, len(images))
    done = [_accepted(store, *image, number) for image, number in zip(images, numbers, strict=True)]
    return sum(done), len(done) - sum(done) + len(failed)


def _unknown(store: Store, name: SetName, inner: bytes, unreadable: Unreadable) -> Iterator[Unknown]:

    for where in everywhere.images_of_set(store, name, unreadable):
        if inner and where.path != inner and not where.path.startswith(inner + b"/"):
            continue
        try:
            found = store.door.examine(where.spot)
        except (FileNotFoundError, Stale):
            continue
        except (OSError, FsError) as error:
            unreadable(where, error)
            continue
        if found.record.state is State.UNKNOWN:
            yield where, found


def _numbers(store: Store, name: SetName, count: int) -> range:
    """Completion numbers, the oldest first, for what nobody knows the order of: before all that have one in a batch set and
    the one beside it."""
    known = [time.time_ns()]
    policy = store.read_policy()
    if policy.is_batch(name):
        for one in checkpoints(store.names, store.door, protection.family(name), policy.is_final):
            known += (
                image.record.completed
                for image in one.images
                if image.record.completed and image.record.state is not State.UNKNOWN
            )
    last = max(min(known), count + 1)
    return range(last - count, last)


def _accepted(store: Store, where: Where, found: Found, number: int) -> bool:
    judge, lease_s = Judge(store.mounts), store.read_policy().lease_s
    try:
        digest = rereading.accept(
            store.door,
            where.spot,
            found,
            number,
            lambda mount: judge.fate(mount, lease_s) is Fate.GONE,
            lambda _: None,
        )
    except (OSError, FsError) as error:
        print(f"ckfs: {_shown(where)}: not accepted: {reason_of(error)}", file=sys.stderr)
        return False
    if digest is None:
        print(
            f"ckfs: {_shown(where)}: not accepted: it changed while it was read, or is being written",
            file=sys.stderr,
        )
        return False
    print(f"accepted: {about(where, found)}: {digest}")
    return True


def _shown(where: Where) -> str:
    return shown(b"/".join(filter(None, (where.set_name, where.path))))
