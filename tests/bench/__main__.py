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

from ckfs.bench.running import interrupted_once
from tests.bench import criu, hosts, ledger, protection, table
from tests.bench.compare import Compared, compare
from tests.bench.manysets import measure
from tests.bench.markdown import merged
from tests.bench.places import forget_names
from tests.bench.targets import Reached
from tests.bench.workloads import FULL, QUICK, TINY, Scale

_SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}
_SPEED, _SETS, _CRIU, _PROTECTION, _LEDGER = "speed", "sets", "criu", "protection", "ledger"
_PARTS = (_SPEED, _CRIU, _SETS, _PROTECTION, _LEDGER)


def main(arguments: list[str] | None = None) -> int:
    options = _parsed(arguments)
    if os.geteuid() != 0:
        print("only root can mount: run this as root", file=sys.stderr)
        return 1
    try:
        with interrupted_once():
            document = _document(options)
    except KeyboardInterrupt:
        print("interrupted: nothing is left", file=sys.stderr)
        return 130
    print(document)
    if options.write is not None:
        path = Path(options.write)
        before = path.read_text("utf-8") if path.exists() else ""
        path.write_text(merged(before, document), encoding="utf-8")
    return 0


def _document(options: argparse.Namespace) -> str:
    """Everything that was asked for is measured."""
    scale = _SCALES[options.scale]
    if options.repetitions is not None:
        scale = dataclasses.replace(scale, repetitions=options.repetitions)
    if options.rounds is not None:
        scale = dataclasses.replace(scale, rounds=options.rounds)
    places = {"tmpfs": options.tmpfs, "disk": options.disk}
    chosen = list(places) if options.on == "both" else [options.on]
    titles = {kind: _title(kind, places[kind]) for kind in chosen}
    loads, reached = [os.getloadavg()[0]], []
    for kind in chosen:
        reached.append(_reached(options, scale, kind, places[kind], titles[kind]))
        loads.append(os.getloadavg()[0])
    costs, charged, together = [], [], []
    for kind in chosen:
        if _PROTECTION in options.only:
            found = protection.measure(places[kind], scale.rounds, scale.images, _say(kind))
            costs.append((titles[kind], found))
        if _LEDGER in options.only:
            turn = ledger.loads(scale.stream_bytes, scale.small_bytes, scale.images)
            amounts = scale.stream_bytes, scale.small_bytes
            spent = ledger.measure(places[kind], scale.rounds, turn, amounts, _say(kind))
            charged.append((titles[kind], spent))
    if _LEDGER in options.only:
        streams, say = (scale.stream_bytes, scale.small_bytes), _say(chosen[0])
        together = hosts.measure(places[chosen[0]], scale.rounds, *streams, say)
    run = table.Run(_command(options), scale, loads, dropped=forget_names())
    return table.text(run, reached, costs, charged, together)


def _reached(options: argparse.Namespace, scale: Scale, kind: str, directory: str, title: str) -> Reached:
    """What has a target, on one file system."""
    say = _say(kind)
    compared, dumped, size = Compared([], passes=False), None, None
    if _SPEED in options.only:
        compared = compare(directory, scale, say, on_disk=kind == "disk", examples=options.examples)
    if _CRIU in options.only:
        dumped = criu.measure(directory, scale.memory_bytes, scale.repetitions, say)
    if _SETS in options.only:
        size = measure(directory, scale.sets, say)
    return Reached(title, compared.measured, compared.passes, dumped, size)


def _command(options: argparse.Namespace) -> str:
    """As it was called, without directories."""
    words = ["python -m tests.bench", f"--scale {options.scale}"]
    words += [] if options.repetitions is None else [f"--repetitions {options.repetitions}"]
    words += [] if set(options.only) == set(_PARTS) else [f"--only {' '.join(options.only)}"]
    return " ".join(words)


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
        nargs="+",
        choices=_PARTS,
        default=_PARTS,
        help="only the comparison with other file systems, CRIU's dumps, many sets, what protection and the trash cost, or what the ledger does",
    )
    parser.add_argument(
        "--examples",
        metavar="DIR",
        help="where libfuse's passthrough_hp is, if not on PATH or where libfuse puts it",
    )
    parser.add_argument(
        "--write",
        metavar="FILE",
        help="where to write the tables, besides standard output; sections that it has and that were not measured stay",
    )
    return parser.parse_args(arguments)


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
