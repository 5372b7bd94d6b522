"""``ckfs fsck``: what is wrong in a store, and mending it, for root. It works on the store itself."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field

from ckfs.cli import in_use
from ckfs.cli.progress import Progress
from ckfs.cli.stores import check_is_no_mount, prepare_for_stores
from ckfs.errors import CkfsError, FsError, NotPermitted, StoreUnusable
from ckfs.fs.liveness import Judge
from ckfs.names import shown
from ckfs.store.checking.check import check
from ckfs.store.checking.findings import Finding
from ckfs.store.checking.registry import HasDied
from ckfs.store.layout import check_format, registry

_PAUSE_S = 1.0
"""Between the two looks at what seems wrong: longer than anybody takes from a set's place to its name."""
_LONGEST_SHOWN = 4096


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("--repair", action="store_true", help="mend what can be mended")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.add_argument(
        "--even-if-mounted", action="store_true", help="repair although the store is mounted somewhere"
    )
    command.set_defaults(run=_fsck)


def _fsck(arguments: argparse.Namespace) -> int:
    return fsck(
        arguments.store,
        repair=arguments.repair,
        as_json=arguments.json,
        even_if_mounted=arguments.even_if_mounted,
    )


def fsck(path: str, *, repair: bool, as_json: bool, even_if_mounted: bool) -> int:
    """Check the store at *path*. Returns the exit status; raises CkfsError."""
    if os.geteuid() != 0:
        raise NotPermitted(f"{shown(path)}: only root checks a store")
    prepare_for_stores()
    check_is_no_mount(path)
    check_format(path)
    with registry(path) as registered:
        judge = Judge(registered)
        if repair and not even_if_mounted:
            in_use.check(path, registered, judge)
        return _run(path, repair=repair, as_json=as_json, has_died=judge.has_died_here)


def _run(path: str, *, repair: bool, as_json: bool, has_died: HasDied) -> int:
    report = _Report(as_json, Progress("sets looked at"))
    report.begin()
    try:
        for finding in check(
            path,
            repair=repair,
            pause=lambda: time.sleep(_PAUSE_S),
            progress=report.progress.say,
            has_died=has_died,
        ):
            report.tell(finding)
    except FsError as error:
        raise CkfsError(f"{shown(path)}: {error}") from None
    except OSError as error:
        raise StoreUnusable(f"{shown(path)}: {error.strerror or error}") from None
    finally:
        report.progress.clear()
    report.end()
    return 1 if report.left else 0


@dataclass(slots=True)
class _Report:
    as_json: bool
    progress: Progress
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.counts["left"]

    def begin(self) -> None:
        if self.as_json:
            print("[", end="", flush=True)

    def tell(self, finding: Finding) -> None:
        """A line at once, so that it is known what was done by the time that somebody interrupts it."""
        self.progress.clear()
        separator = ",\n " if self.counts.total() else "\n "
        self.counts["left" if finding.is_left else "mended" if finding.done else "notes"] += 1
        if self.as_json:
            print(separator + json.dumps(_row(finding)), end="", flush=True)
            return
        print(_line(finding), flush=True)

    def end(self) -> None:
        if self.as_json:
            print("\n]")
            return
        print(f"mended: {self.counts['mended']}; left: {self.left}; notes: {self.counts['notes']}")


def _row(finding: Finding) -> dict[str, str | bool]:
    return {
        "code": finding.kind.code,
        "severity": finding.kind.severity.value,
        "path": shown(finding.where),
        "finding": finding.kind.sentence,
        "detail": finding.detail,
        "mended": bool(finding.done),
        "done": finding.done,
        "failure": finding.failure,
    }


def _line(finding: Finding) -> str:
    kind, where = finding.kind, shown(finding.where)
    if len(where) > _LONGEST_SHOWN:
        where = f"{where[: _LONGEST_SHOWN // 2]}[…]{where[-_LONGEST_SHOWN // 2 :]}"
    text = f"{kind.severity.value}: {where}: {kind.sentence}"
    if finding.detail:
        text += f" ({finding.detail})"
    if finding.done:
        return f"{text}: mended: {finding.done} [{kind.code}]"
    if finding.failure:
        return f"{text}: not mended: {finding.failure} [{kind.code}]"
    return f"{text} [{kind.code}]"
