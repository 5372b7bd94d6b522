"""What ``ckfs quota`` is told."""

from __future__ import annotations

import argparse

_ACTIONS = ("show", "set", "default", "check")


def with_action(argv: list[str]) -> list[str]:
    """``ckfs quota`` shows, unless it is told to do something else."""
    if argv[:1] == ["quota"] and argv[1:2] not in ([action] for action in (*_ACTIONS, "-h", "--help")):
        return ["quota", "show", *argv[1:]]
    return argv


def add_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, meaning: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=meaning, allow_abbrev=False)
        added.add_argument(
            "--store", metavar="PATH", help="a mount or (root) a store; by default what is mounted here"
        )
        added.add_argument(
            "--state",
            metavar="DIR",
            help="where this host keeps ledgers, if its mounts have the option state=DIR",
        )
        added.set_defaults(run=_run, action=name)
        return added

    showing = action("show", "how owners stand; 'ckfs quota [USER...]' is the same")
    showing.add_argument("users", metavar="USER", nargs="*", help="name or uid; by default all, or oneself")
    showing.add_argument("--json", action="store_true", help="one JSON document, in bytes")
    setting = action("set", "what one user may use (root)")
    setting.add_argument("user", metavar="USER", help="name or uid")
    _add_limits(setting)
    _add_limits(action("default", "what all others may use (root)"))
    checking = action("check", "count anew what is in the store (root)")
    checking.add_argument("users", metavar="USER", nargs="*", help="name or uid; by default all")
    checking.add_argument("--repair", action="store_true", help="let the ledger say what was counted")
    checking.add_argument("--json", action="store_true", help="one JSON document, in bytes")


def _add_limits(action: argparse.ArgumentParser) -> None:
    sizes, counts = "as 400G, 1.5T, or bytes; 'none', 'default'", "a number, 10k; 'none', 'default'"
    action.add_argument("--soft", metavar="SIZE", help=f"may be passed for the grace time: {sizes}")
    action.add_argument("--hard", metavar="SIZE", help=f"is never passed: {sizes}")
    action.add_argument("--files-soft", metavar="N", help=f"the same, of files: {counts}")
    action.add_argument("--files-hard", "--files", metavar="N", help=f"the same, of files: {counts}")
    action.add_argument("--grace", metavar="TIME", help="as 7d, 12h; 'none' for ever, 'default'")


def _run(arguments: argparse.Namespace) -> int:
    from ckfs.cli import quota, recount  # not needed to know what is meant

    actions = {
        "show": quota.show,
        "set": quota.say_of_user,
        "default": quota.say_of_others,
        "check": recount.check,
    }
    return actions[arguments.action](arguments)
