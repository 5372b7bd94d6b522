"""``python -m tests.bench``: ckfs against bindfs and a plain directory, on tmpfs and on disk, as ratios within one run.

Run it as root, from the checkout, with nothing else running. See docs/performance.md for what comes out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import hosts, ledger, protection, table
from tests.bench.compare import Measured, compare
from tests.bench.manysets import Size, measure
from tests.bench.places import forget_names
from tests.bench.workloads import FULL, QUICK, TINY, Scale

_SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}


def main(arguments: list[str] | None = None) -> int:
    options = _parsed(arguments)
    if os.geteuid() != 0:
        print("only root can mount: run this as root", file=sys.stderr)
        return 1
    scale = _SCALES[options.scale]
    if options.repetitions is not None:
        scale = dataclasses.replace(scale, repetitions=options.repetitions)
    if options.rounds is not None:
        scale = dataclasses.replace(scale, rounds=options.rounds)
    places = {"tmpfs": options.tmpfs, "disk": options.disk}
    chosen = list(places) if options.on == "both" else [options.on]
    titles = {kind: _title(kind, places[kind]) for kind in chosen}
    loads, results = [os.getloadavg()[0]], []
    for kind in chosen if options.only == "all" else []:
        results.append((titles[kind], *_measured(places[kind], scale, _say(kind), on_disk=kind == "disk")))
        loads.append(os.getloadavg()[0])
    costs, charged, together = [], [], []
    for kind in chosen:
        if options.only in ("all", "protection"):
            found = protection.measure(places[kind], scale.rounds, scale.images, _say(kind))
            costs.append((titles[kind], found))
        if options.only in ("all", "ledger"):
            turn = ledger.loads(scale.stream_bytes, scale.small_bytes, scale.images)
            amounts = scale.stream_bytes, scale.small_bytes
            spent = ledger.measure(places[kind], scale.rounds, turn, amounts, _say(kind))
            charged.append((titles[kind], spent))
    if options.only in ("all", "ledger"):
        streams, say = (scale.stream_bytes, scale.small_bytes), _say(chosen[0])
        together = hosts.measure(places[chosen[0]], scale.rounds, *streams, say)
    if options.only == "all":
        document = table.text(scale, results, costs, charged, together, loads, dropped=forget_names())
    else:
        document = (
            table.of_protection(costs) if options.only == "protection" else table.of_ledger(charged, together)
        )
    print(document)
    if options.write is not None:
        Path(options.write).write_text(document, encoding="utf-8")
    return 0


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--scale", choices=_SCALES, default="full", help="how much of everything")
    parser.add_argument(
        "--quick", action="store_const", const="quick", dest="scale", help="the same as --scale quick"
    )
    parser.add_argument("--repetitions", type=int, metavar="N", help="how often; the scale says it otherwise")
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="how often costs are measured, at least 2; the scale says it otherwise",
    )
    parser.add_argument("--on", choices=("tmpfs", "disk", "both"), default="both")
    parser.add_argument(
        "--tmpfs", default="/dev/shm", metavar="DIR", help="a directory on a tmpfs (default: %(default)s)"
    )
    parser.add_argument(
        "--disk", default="/var/tmp", metavar="DIR", help="a directory on a disk (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        choices=("all", "protection", "ledger"),
        default="all",
        help="only what protection and the trash cost, or what the ledger does",
    )
    parser.add_argument("--write", metavar="FILE", help="where to write the table, besides standard output")
    return parser.parse_args(arguments)


def _measured(
    directory: str, scale: Scale, say: Callable[[str], None], *, on_disk: bool
) -> tuple[list[Measured], Size]:
    return compare(directory, scale, say, on_disk=on_disk), measure(directory, scale.sets, say)


def _say(kind: str) -> Callable[[str], None]:
    begin = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s, {kind}] {line}", file=sys.stderr, flush=True)

    return say


def _title(kind: str, directory: str) -> str:
    if kind == "tmpfs":
        return kind
    found = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    return f"{kind} ({found.stdout.strip().removesuffix('/ext3').replace('ext2', 'ext4')})"


if __name__ == "__main__":
    sys.exit(main())
