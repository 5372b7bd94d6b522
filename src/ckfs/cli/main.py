"""The ``ckfs`` command: arguments in, one line and an exit status out (docs/commands.md)."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ckfs import __version__
from ckfs.cli.output import ReaderGone, standard_output
from ckfs.cli.quota_arguments import with_action
from ckfs.errors import CkfsError, UsageError

_STDERR = 2

COMMANDS = {
    "init": ("make a store", "init:add_arguments"),
    "mount": ("mount a store", "mount:add_arguments"),
    "ls": ("list sets and images", "ls:add_arguments"),
    "give": ("give a set to a user (root)", "give:add_arguments"),
    "move": ("let a set lie in another store", "move:add_arguments"),
    "trash": ("what was removed: list, restore, remove for good", "trash:add_arguments"),
    "quota": ("who uses how much, and what may be used (root sets it)", "quota_arguments:add_arguments"),
    "room": ("whether a checkpoint of that size would find room", "room:add_arguments"),
    "cat": ("write an image to standard output", "cat:add_arguments"),
    "status": ("how a mount and its store are", "status:add_arguments"),
    "release": ("let protected checkpoints be removed (root)", "keep:add_arguments_of_release"),
    "protect": ("end a release (root)", "keep:add_arguments_of_protect"),
    "pin": ("keep checkpoints of one's own", "keep:add_arguments_of_pin"),
    "verify": ("compare images on a mount with their digests", "verify:add_arguments"),
    "scrub": ("compare every image of a store with its digest (root)", "scrub:add_arguments"),
    "gc": ("what was left behind in a store (root)", "gc:add_arguments"),
    "fsck": ("check all that must hold in a store, and mend it (root)", "fsck:add_arguments"),
    "ledger": ("the ledger of a store's quotas (root)", "ledger:add_arguments"),
    "selftest": ("whether a file system is fit for a store (root)", "selftest:add_arguments"),
    "bench": ("how fast a mount is, against a plain directory beside its store", "bench:add_arguments"),
    "prepare": ("let pbs_mom refuse to start where nothing is mounted", "prepare:add_arguments"),
    "demo": ("checkpoint on one node, restart on another", "demo:add_arguments"),
}
"""What each does, and the function of a module in ``ckfs.cli`` that adds its arguments to a parser, and what it runs: ``run``, which is
given the arguments and returns the exit status. Of these modules only the one that is needed is loaded: scripts call ckfs often."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    _open_standard_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = standard_output()
    try:
        try:
            words = with_action(sys.argv[1:] if argv is None else argv)
            arguments = _parser_for(words).parse_args(words)
            status: int = arguments.run(arguments)
        finally:  # --help ends by itself
            sys.stdout.flush()
        return status
    except CkfsError as error:
        print(f"ckfs: {error}", file=sys.stderr)
        return error.exit_status
    except (ReaderGone, BrokenPipeError):
        return 0
    except KeyboardInterrupt:
        return 130


def _open_standard_descriptors() -> None:
    """Give 0, 1 and 2 to /dev/null where they are closed: else the daemon's status pipe or a file of the store would get
    such a number, and be lost when the daemon turns away from its terminal."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(null, True)
    os.close(null)


def _parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """It knows all commands, and the arguments of the one that *words* begin with."""
    parser = _Parser(
        prog="ckfs", description="One virtual checkpoint directory for a cluster.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ckfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    meant = next((word for word in words if not word.startswith("-")), None)
    for name, (meaning, adding) in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, allow_abbrev=False)
        if name == meant:
            add_arguments: Callable[[argparse.ArgumentParser], None] = pkgutil.resolve_name(
                f"ckfs.cli.{adding}"
            )
            add_arguments(command)
    return parser
