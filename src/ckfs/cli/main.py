"""The ``ckfs`` command: arguments in, one line and an exit status out (docs/commands.md)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ckfs import __version__
from ckfs.cli import quota_arguments
from ckfs.cli.output import ReaderGone, standard_output
from ckfs.errors import CkfsError, UsageError

_STDERR = 2


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
            arguments = _parser().parse_args(
                quota_arguments.with_action(sys.argv[1:] if argv is None else argv)
            )
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ckfs", description="One virtual checkpoint directory for a cluster.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ckfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_init(commands)
    _add_mount(commands)
    _add_ls(commands)
    _add_give(commands)
    _add_trash(commands)
    quota_arguments.add(commands)
    _add_cat(commands)
    _add_status(commands)
    _add_release(commands)
    _add_protect(commands)
    _add_pin(commands)
    _add_verify(commands)
    _add_scrub(commands)
    _add_gc(commands)
    _add_fsck(commands)
    _add_ledger(commands)
    _add_selftest(commands)
    _add_prepare(commands)
    _add_demo(commands)
    return parser


Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse gives this type no public name


def _add_init(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("init", help="make a store", allow_abbrev=False)
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument(
        "--service-user", metavar="NAME", help="account that keeps it, where root is squashed"
    )
    command.add_argument(
        "--quota",
        choices=["ledger", "engine", "none"],
        default="ledger",
        help="who enforces quotas: ckfs, by its ledger; the store's own file system; or nobody (default: %(default)s)",
    )
    command.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> int:
    from ckfs.daemon.serve import account_of
    from ckfs.policy import settings
    from ckfs.policy.enforcing import QuotaMode
    from ckfs.store import layout
    from ckfs.store.realms import Arrangement

    path = arguments.store
    mode = QuotaMode(arguments.quota)
    arrangement = Arrangement.REALMS if mode is QuotaMode.ENGINE else Arrangement.SHARED
    policy = settings.default_text(mode)
    if layout.initialise(path, account_of(arguments.service_user), arrangement, policy):
        print(f"{path}: a new store; its policy is in {os.path.join(path, 'policy.toml')}")
    else:
        print(f"{path}: is a store already; nothing changed")
    if mode is QuotaMode.ENGINE:
        print(f"{path}: its quotas are left to {_engine_under(path)}; docs/quotas.md says what that needs")
    if layout.reachable_by_users(path):
        print(
            f"{path}: users can reach it around ckfs: put it below a local directory of root with mode 0700"
        )
    return 0


def _engine_under(path: str) -> str:
    from ckfs.engines.opening import detect, mounted_on

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = mounted_on(fd).kind
    finally:
        os.close(fd)
    return f"its file system, {kind}, by the engine {detect(kind)}"


def _add_mount(commands: Commands[_Parser]) -> None:
    from ckfs.daemon.options import KNOWN

    command = commands.add_parser("mount", help="mount a store", allow_abbrev=False)
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="where programs see it")
    command.add_argument(
        "-o",
        dest="options",
        metavar="OPT[,OPT...]",
        action="append",
        default=[],
        help=f"of ckfs: {', '.join(KNOWN)}; docs/commands.md has their meaning",
    )
    command.add_argument("-f", dest="in_front", action="store_true", help="stay in front and log to stderr")
    command.set_defaults(run=_mount)


def _mount(arguments: argparse.Namespace) -> int:
    from ckfs.daemon import logs, options
    from ckfs.daemon.background import run_in_background
    from ckfs.daemon.serve import serve

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


def _add_ls(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("ls", help="list sets and images", allow_abbrev=False)
    command.add_argument(
        "path", metavar="PATH", nargs="?", help="a mount, something on it, or (root) a store"
    )
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_ls)


def _ls(arguments: argparse.Namespace) -> int:
    from ckfs.cli.ls import list_sets

    return list_sets(arguments.path, as_json=arguments.json)


def _add_give(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("give", help="give a set to a user (root)", allow_abbrev=False)
    command.add_argument("set", metavar="SET", help="the set's path on a mount")
    command.add_argument("user", metavar="USER", help="name or uid")
    command.set_defaults(run=_give)


def _give(arguments: argparse.Namespace) -> int:
    from ckfs.cli.give import give

    print(give(arguments.set, arguments.user))
    return 0


def _add_trash(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "trash", help="what was removed: list, restore, remove for good", allow_abbrev=False
    )
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    listing = _trash_action(actions, "ls", "list what was removed")
    _add_choice(listing)
    listing.add_argument("--json", action="store_true", help="one JSON document")
    showing = _trash_action(actions, "show", "all that is known of one item")
    showing.add_argument("item", metavar="ITEM", help="as 'ckfs trash ls' shows it, or its beginning")
    restoring = _trash_action(actions, "restore", "put items back")
    _add_choice(restoring)
    restoring.add_argument(
        "items", metavar="ITEM", nargs="*", help="as 'ckfs trash ls' shows it, or its beginning"
    )
    where = restoring.add_mutually_exclusive_group()
    where.add_argument("--to", metavar="SET", help="as, or into, the set of this name")
    where.add_argument("--put-back", action="store_true", help="where they were; the default")
    purging = _trash_action(actions, "purge", "remove items for good")
    _add_choice(purging)
    purging.add_argument(
        "items", metavar="ITEM", nargs="*", help="as 'ckfs trash ls' shows it, or its beginning"
    )
    purging.add_argument("--all", action="store_true", help="all that there is")


def _trash_action(actions: Commands[_Parser], name: str, meaning: str) -> _Parser:
    action = actions.add_parser(name, help=meaning, allow_abbrev=False)
    action.add_argument(
        "--store", metavar="PATH", help="a store, or something on a mount; by default what is mounted here"
    )
    action.set_defaults(run=_trash, action=name)
    return action


def _add_choice(action: _Parser) -> None:
    action.add_argument("--set", metavar="SET", help="what was in this set, or was it")
    action.add_argument(
        "--image", metavar="SET/PATH", help="what was this image, or this directory and all in it"
    )
    action.add_argument("--owner", metavar="USER", help="what was in this user's sets (name or uid)")
    action.add_argument(
        "--older-than", metavar="AGE", help="what was removed longer ago: 90s, 30m, 12h, 3d, 2w"
    )
    action.add_argument("--since", metavar="TIME", help="what was removed then or later: ISO 8601, or an age")
    action.add_argument("--before", metavar="TIME", help="what was removed earlier: ISO 8601, or an age")


def _trash(arguments: argparse.Namespace) -> int:
    from ckfs.cli import trash

    return trash.run(arguments)


def _add_cat(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("cat", help="write an image to standard output", allow_abbrev=False)
    command.add_argument("path", metavar="PATH", help="an image on a mount")
    command.add_argument("--partial", action="store_true", help="even if it is not complete")
    command.set_defaults(run=_cat)


def _cat(arguments: argparse.Namespace) -> int:
    from ckfs.cli.cat import cat

    cat(arguments.path, partial=arguments.partial)
    return 0


def _add_status(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("status", help="how a mount and its store are", allow_abbrev=False)
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="a mount, or something on it")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from ckfs.cli.status import print_status

    print_status(arguments.mountpoint, as_json=arguments.json)
    return 0


def _add_release(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "release", help="let protected checkpoints be removed (root)", allow_abbrev=False
    )
    command.add_argument("paths", metavar="SET|IMAGE", nargs="+", help="its path on a mount")
    command.set_defaults(run=_release)


def _release(arguments: argparse.Namespace) -> int:
    from ckfs.cli.keep import release

    return _for_each(arguments.paths, release)


def _add_protect(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("protect", help="end a release (root)", allow_abbrev=False)
    command.add_argument("paths", metavar="SET|IMAGE", nargs="+", help="its path on a mount")
    command.set_defaults(run=_protect)


def _protect(arguments: argparse.Namespace) -> int:
    from ckfs.cli.keep import protect

    return _for_each(arguments.paths, protect)


def _add_pin(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("pin", help="keep checkpoints of one's own", allow_abbrev=False)
    command.add_argument("paths", metavar="SET|IMAGE", nargs="+", help="its path on a mount")
    command.add_argument("--undo", action="store_true", help="keep them no longer than the rule says")
    command.set_defaults(run=_pin)


def _pin(arguments: argparse.Namespace) -> int:
    from ckfs.cli.keep import pin

    return _for_each(arguments.paths, lambda path: pin(path, undo=arguments.undo))


def _for_each(paths: list[str], act: Callable[[str], str]) -> int:
    """A line for each; those that fail do not keep the others from being done. The status is the first failure's."""
    status = 0
    for path in paths:
        try:
            print(act(path))
        except CkfsError as error:
            print(f"ckfs: {error}", file=sys.stderr)
            status = status or error.exit_status
    return status


def _add_verify(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "verify", help="compare images on a mount with their digests", allow_abbrev=False
    )
    command.add_argument("paths", metavar="PATH", nargs="*", help="by default all ckfs mounts of this host")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON document")
    how.add_argument(
        "--accept", action="store_true", help="let images of unknown state count as complete (root)"
    )
    command.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from ckfs.cli import accept, verify

    if arguments.accept:
        return accept.accept(arguments.paths)
    return verify.verify(arguments.paths, as_json=arguments.json)


def _add_scrub(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "scrub", help="compare every image of a store with its digest (root)", allow_abbrev=False
    )
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_scrub)


def _scrub(arguments: argparse.Namespace) -> int:
    from ckfs.cli.scrub import scrub

    return scrub(arguments.store, as_json=arguments.json)


def _add_gc(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("gc", help="what was left behind in a store (root)", allow_abbrev=False)
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("--apply", action="store_true", help="move it to the trash")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_gc)


def _gc(arguments: argparse.Namespace) -> int:
    from ckfs.cli.gc import gc

    return gc(arguments.store, apply=arguments.apply, as_json=arguments.json)


def _add_fsck(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "fsck", help="check all that must hold in a store, and mend it (root)", allow_abbrev=False
    )
    command.add_argument("store", metavar="STORE", help="the store's directory")
    command.add_argument("--repair", action="store_true", help="mend what can be mended")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.add_argument(
        "--even-if-mounted", action="store_true", help="repair although the store is mounted somewhere"
    )
    command.set_defaults(run=_fsck)


def _fsck(arguments: argparse.Namespace) -> int:
    from ckfs.cli.fsck import fsck

    return fsck(
        arguments.store,
        repair=arguments.repair,
        as_json=arguments.json,
        even_if_mounted=arguments.even_if_mounted,
    )


def _add_ledger(commands: Commands[_Parser]) -> None:
    command = commands.add_parser("ledger", help="the ledger of a store's quotas (root)", allow_abbrev=False)
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    for name, meaning in (
        ("check", "say what is wrong with it"),
        ("upgrade", "bring it to the form that this ckfs knows"),
        ("adopt", "let this host keep it, since the one that did is gone"),
    ):
        action = actions.add_parser(name, help=meaning, allow_abbrev=False)
        action.add_argument("store", metavar="STORE", help="the store's directory")
        action.add_argument(
            "--state", metavar="DIR", help="where this host keeps its ledgers, if the mounts are told so too"
        )
        action.set_defaults(run=_ledger, action=name)


def _ledger(arguments: argparse.Namespace) -> int:
    from ckfs.cli import ledger

    return ledger.run(arguments)


def _add_selftest(commands: Commands[_Parser]) -> None:
    from ckfs.policy.enforcing import AUTO, ENGINES

    command = commands.add_parser(
        "selftest", help="whether a file system is fit for a store (root)", allow_abbrev=False
    )
    command.add_argument(
        "store", metavar="STORE", nargs="?", help="the store's directory, or where it is to be"
    )
    command.add_argument(
        "--hosts",
        metavar="HOST,…",
        action="append",
        default=[],
        help="other hosts with the same path, by ssh",
    )
    command.add_argument(
        "--other", metavar="PATH", action="append", default=[], help="another mount of it on this host"
    )
    command.add_argument(
        "--users", metavar="NAME,NAME", help="two users to act as; accounts of the system by default"
    )
    command.add_argument(
        "--engine", choices=[AUTO, *ENGINES], help="try quotas by this engine, whatever the policy says"
    )
    command.add_argument("--limited", metavar="USER", help="a user who may have at most 256 MiB more there")
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="what each check may take (default: %(default)g)",
    )
    command.add_argument(
        "--only", metavar="GROUP,…", help="these checks alone, or groups of them: names, coherence"
    )
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(run=_selftest)


def _selftest(arguments: argparse.Namespace) -> int:
    from ckfs.cli.selftest import selftest

    return selftest(arguments)


def _add_prepare(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "prepare", help="let pbs_mom refuse to start where nothing is mounted", allow_abbrev=False
    )
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="the directory under the mount")
    command.add_argument("--undo", action="store_true", help="give the directory back")
    command.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    from ckfs.cli.prepare import prepare

    print(prepare(arguments.mountpoint, undo=arguments.undo))
    return 0


def _add_demo(commands: Commands[_Parser]) -> None:
    command = commands.add_parser(
        "demo", help="checkpoint on one node, restart on another", allow_abbrev=False
    )
    command.add_argument("-v", "--verbose", action="store_true")
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from ckfs.demo import run_demo

    return run_demo(verbose=arguments.verbose)
