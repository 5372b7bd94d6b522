"""``ckfs demo``: what :mod:`ckfs.demo` tells."""

from __future__ import annotations

import argparse

from ckfs.demo import run_demo


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("-v", "--verbose", action="store_true")
    command.set_defaults(run=lambda arguments: run_demo(verbose=arguments.verbose))
