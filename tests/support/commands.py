"""ckfs commands in a forked child: as other users, whose uids have neither accounts nor a way to the source; and as root, where a
test runs so many of them that starting Python anew for each would take most of its time.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ckfs.cli import bench as _bench
from ckfs.cli import cat as _cat
from ckfs.cli import init as _init
from ckfs.cli import quota as _quota
from ckfs.cli import recount as _recount
from ckfs.cli import room as _room
from ckfs.cli import status as _status
from ckfs.cli import trash as _trash
from ckfs.cli.main import main
from ckfs.ledger import postgres as _postgres
from tests.support.users import ROOT, as_user

_IMPORTED = (_bench, _cat, _init, _postgres, _quota, _recount, _room, _status, _trash)
"""Here, before the child is another user who may not read the modules; and once for all of root's."""


@dataclass(frozen=True)
class Ran:
    status: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode()


def ckfs_as(uid: int, *arguments: str | Path, gid: int | None = None) -> Ran:
    """Run a command as *uid* to its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:

        def run() -> int:
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
            try:
                return main(list(map(str, arguments)))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

        status = as_user(uid, run, gid=gid)
        for file in (out, errors):
            file.seek(0)
        return Ran(status, out.read(), errors.read().decode())


def ckfs_as_root(*arguments: str | Path) -> str:
    """Run a command that must succeed, and has nothing to complain of: what it prints."""
    ran = ckfs_as(ROOT, *arguments)
    assert (ran.status, ran.errors) == (0, ""), (arguments, ran)
    return ran.text
