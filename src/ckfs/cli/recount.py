"""``ckfs quota check``: whether the ledger says of everybody what lies in the store, counted anew. For root, on the store itself."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ckfs.cli.keeping import opened_ledger
from ckfs.cli.mounted import store_meant
from ckfs.cli.progress import Progress
from ckfs.cli.users import uid_of, user_name
from ckfs.errors import CkfsError, NotPermitted, StoreUnusable, Unreached
from ckfs.fs.liveness import Judge
from ckfs.fs.recounting import Recount, Recounting
from ckfs.fs.standing import known_accounts
from ckfs.ledger.ledger import Ledger
from ckfs.names import ROOT_UID, Uid, shown
from ckfs.policy.sizes import shown_size
from ckfs.store import counting
from ckfs.store.layout import Store

_ROUNDS = 3
"""How often an owner is counted who is busy meanwhile."""


@dataclass(frozen=True, slots=True)
class Row:
    """A difference, as ``--json`` shows it."""

    owner: str
    uid: int
    ledger_bytes: int
    ledger_files: int
    counted_bytes: int
    counted_files: int
    mended: bool


def check(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises CkfsError."""
    if os.geteuid() != ROOT_UID:
        raise NotPermitted("only root counts anew what is in a store; 'ckfs quota' shows your own quota")
    uids = [Uid(uid) for uid in dict.fromkeys(map(uid_of, arguments.users))]
    path = store_meant(arguments.store)
    with opened_ledger(path, arguments.state) as (store, ledger):
        report = _Report(arguments.json)
        try:
            _count(store, ledger, uids, report, repair=arguments.repair)
        except OSError as error:
            raise StoreUnusable(f"{shown(path)}: {error.strerror or error}") from None
        except Unreached as error:
            raise StoreUnusable(f"{shown(path)}: {error}") from None
        except RecursionError:
            raise CkfsError(f"{shown(path)}: a tree there is deeper than ckfs walks") from None
        finally:
            report.progress.clear()
        return report.end()


def _count(store: Store, ledger: Ledger, uids: Sequence[Uid], report: _Report, *, repair: bool) -> None:
    """Of *uids*, or of all who have something, or are said to have something."""
    judge, lease_s = Judge(store.mounts), store.read_policy().lease_s

    recounting = Recounting(store, ledger, lambda mount: judge.fate(mount, lease_s))
    left = list(uids) or sorted(counting.payers(store) | {account.uid for account in known_accounts(ledger)})
    report.count = len(left)
    for last in (*[False] * (_ROUNDS - 1), True):
        busy: list[Uid] = []
        for one in recounting.repair(left) if repair else recounting.compare(left):
            if one.counted is None and not last:
                busy.append(one.uid)
            else:
                report.tell(one)
        left = busy
        if not left:
            return


@dataclass(slots=True)
class _Report:
    as_json: bool
    count: int = 0
    progress: Progress = field(default_factory=lambda: Progress("owners counted"))
    _done: int = 0
    _rows: list[Row] = field(default_factory=list)
    _busy: int = 0

    def tell(self, one: Recount) -> None:
        """A line at once for one of whom the ledger was wrong."""
        self._done += 1
        self.progress.say(self._done, self.count)
        if one.counted is None:
            self._busy += 1
            self.progress.clear()
            print(
                f"ckfs: {user_name(one.uid)}: changed all the time that he was counted: try again",
                file=sys.stderr,
            )
            return
        if not one.differs:
            return
        row = Row(
            user_name(one.uid),
            one.uid,
            one.said.bytes,
            one.said.files,
            one.counted.bytes,
            one.counted.files,
            one.taken_up,
        )
        self._rows.append(row)
        if not self.as_json:
            self.progress.clear()
            print(_line(row), flush=True)

    def end(self) -> int:
        if self.as_json:
            print(json.dumps([asdict(row) for row in self._rows], indent=1))
        else:
            mended = sum(row.mended for row in self._rows)
            print(
                f"owners counted: {self._done - self._busy}; differences: {len(self._rows)}; mended: {mended}"
            )
        return CkfsError.exit_status if self._busy or not all(row.mended for row in self._rows) else 0


def _line(row: Row) -> str:
    def amount(size: int, files: int) -> str:
        return f"{size} bytes ({shown_size(size)}) and {files} files"

    counted = amount(row.counted_bytes, row.counted_files)
    end = ": mended" if row.mended else ""
    return (
        f"{row.owner}: the ledger says {amount(row.ledger_bytes, row.ledger_files)}, counted {counted}{end}"
    )
