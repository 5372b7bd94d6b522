"""``ckfs mount``: the process that serves a mount, behind or in front."""

from __future__ import annotations

import argparse
import os
import sys

from ckfs.daemon import logs, options
from ckfs.daemon.background import run_in_background
from ckfs.daemon.serve import serve
from ckfs.errors import CkfsError


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="where programs see it")
    command.add_argument(
        "-o",
        dest="options",
        metavar="OPT[,OPT...]",
        action="append",
        default=[],
        help=f"of ckfs: {', '.join(options.KNOWN)}; docs/commands.md has their meaning",
    )
    command.add_argument("-f", dest="in_front", action="store_true", help="stay in front and log to stderr")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    chosen = options.parse(arguments.options)
    store, mountpoint = os.path.abspath(arguments.store), os.path.abspath(arguments.mountpoint)
    logs.set_up(in_front=arguments.in_front, log_file=chosen.log_file)
    if arguments.in_front:
        status = 0
        try:
            serve(store, mountpoint, chosen, lambda: None)
        except CkfsError as error:
            print(f"ckfs: {error}", file=sys.stderr)
            status = error.exit_status
        sys.stderr.flush()
        os._exit(status)  # threads that a hung store holds must not keep the process
    run_in_background(lambda ready: serve(store, mountpoint, chosen, ready))
    return 0
