"""``ckfs scrub``: every image of a store is read and compared with its digest, mounted or not, for root."""

from __future__ import annotations

import argparse
import contextlib
import os
import time

from ckfs.cli.ls import OUT_OF_REACH
from ckfs.cli.report import About, Report
from ckfs.cli.stores import check_is_no_mount, prepare_for_stores, service_of
from ckfs.cli.users import user_name
from ckfs.errors import FsError, NotPermitted, Stale, StoreUnusable
from ckfs.names import iso_time, shown
from ckfs.policy import lifecycle
from ckfs.store import everywhere
from ckfs.store.everywhere import Where
from ckfs.store.layout import Store, open_store
from ckfs.store.rereading import Checker, Result
from ckfs.store.spots import Found

MARKED = "its content is not what was completed; marked, and not opened until it is written anew"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=lambda arguments: scrub(arguments.store, as_json=arguments.json))


def scrub(path: str, *, as_json: bool) -> int:
    """Returns the exit status; raises CkfsError."""
    if os.geteuid() != 0:
        raise NotPermitted("only root scrubs a store; 'ckfs verify' verifies what you may read on a mount")
    prepare_for_stores()
    check_is_no_mount(path)
    with contextlib.closing(open_store(path, service_of(path))) as store, Report(as_json=as_json) as report:
        _scrub(store, report)
        return report.status


def _scrub(store: Store, report: Report) -> None:
    def unreadable(where: Where, error: OSError | FsError) -> None:
        if isinstance(error, OSError) and error.errno in OUT_OF_REACH:
            raise StoreUnusable(f"{shown(store.path)}: {error.strerror}") from None
        report.cannot_read(about(where, None), reason_of(error))

    checker = Checker(store.door, marks=True, makes=True, progress=report.progress)
    for where in everywhere.images(store, unreadable):
        report.begins(shown(b"/".join(filter(None, (where.set_name, where.path)))))
        try:
            result, found = checker.check(where.spot, time.time_ns())
        except (FileNotFoundError, Stale):  # removed or moved meanwhile
            continue
        except (OSError, FsError) as error:
            unreadable(where, error)
            continue
        report.counts[result] += 1
        if result is Result.DAMAGED:
            report.damaged(about(where, found), MARKED)


def reason_of(error: OSError | FsError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def about(where: Where, found: Found | None) -> About:
    """*found* None: it could not be looked at."""
    owner = where.owner
    completed = modified = written_by = "-"
    if found is not None:
        modified = iso_time(found.stat.st_mtime_ns)
        written_by = shown(found.record.node) or "-"
        if found.record.completed and lifecycle.is_worth_keeping(found.record):
            completed = iso_time(found.record.completed)
    return About(
        set=shown(where.set_name),
        image=shown(where.path),
        owner="-" if owner is None else shown(user_name(owner.uid)),
        uid=None if owner is None else owner.uid,
        written_by=written_by,
        completed=completed,
        modified=modified,
        item=shown(where.item),
    )
