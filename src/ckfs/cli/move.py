"""``ckfs move SET STORE``: a set's files go to another store that the policy names, or home, by a mount that reaches both."""

from __future__ import annotations

import argparse

from ckfs.cli.progress import Progress
from ckfs.cli.setpaths import set_at
from ckfs.control.client import Unanswered, ask
from ckfs.errors import NotMounted
from ckfs.names import shown


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("set", metavar="SET", help="the set's path on a mount that reaches both stores")
    command.add_argument("store", metavar="STORE", help="a store that the policy names, or home")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    print(move(arguments.set, arguments.store))
    return 0


def move(path: str, store: str) -> str:
    """Move the set at *path*. Returns the line to print; raises CkfsError, and the set is where it was then."""
    with set_at(path) as found:
        name, entry, device = found.shown, found.entry, found.mount.device
    progress, moved = Progress("MiB copied and compared"), False
    try:
        for said in ask(device, "move", {"set_name": entry, "store": store}):
            if said.get("moved") is not None:
                moved = said["moved"] is True
            else:
                progress.say(int(str(said.get("done_mib", 0))), int(str(said.get("of_mib", 0))))
    except Unanswered as error:
        raise NotMounted(f"{name}: {error}") from None
    finally:
        progress.clear()
    return f"{name}: lies in {shown(store)} {'now' if moved else 'already'}"
