"""What ``ckfs quota`` and ``ckfs room`` are told."""

from __future__ import annotations

import argparse
from typing import TypeVar

P = TypeVar("P", bound=argparse.ArgumentParser)
Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse gives this type no public name

_ACTIONS = ("show", "set", "default", "check")


def add(commands: Commands[P]) -> None:
    _add_quota(commands)
    _add_room(commands)


def with_action(argv: list[str]) -> list[str]:
    """``ckfs quota`` shows, unless it is told to do something else."""
    if argv[:1] == ["quota"] and argv[1:2] not in ([action] for action in (*_ACTIONS, "-h", "--help")):
        return ["quota", "show", *argv[1:]]
    return argv


def _add_quota(commands: Commands[P]) -> None:
    command = commands.add_parser(
        "quota", help="who uses how much, and what may be used (root sets it)", allow_abbrev=False
    )
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=type(command))
    showing = _quota_action(actions, "show", "how owners stand; 'ckfs quota [USER...]' is the same")
    showing.add_argument("users", metavar="USER", nargs="*", help="name or uid; by default all, or oneself")
    showing.add_argument("--json", action="store_true", help="one JSON document, in bytes")
    setting = _quota_action(actions, "set", "what one user may use (root)")
    setting.add_argument("user", metavar="USER", help="name or uid")
    _add_limits(setting)
    _add_limits(_quota_action(actions, "default", "what all others may use (root)"))
    checking = _quota_action(actions, "check", "count anew what is in the store (root)")
    checking.add_argument("users", metavar="USER", nargs="*", help="name or uid; by default all")
    checking.add_argument("--repair", action="store_true", help="let the ledger say what was counted")
    checking.add_argument("--json", action="store_true", help="one JSON document, in bytes")


def _quota_action(actions: Commands[P], name: str, meaning: str) -> P:
    action = actions.add_parser(name, help=meaning, allow_abbrev=False)
    action.add_argument(
        "--store", metavar="PATH", help="a mount or (root) a store; by default what is mounted here"
    )
    action.add_argument(
        "--state",
        metavar="DIR",
        help="where this host keeps ledgers, if its mounts have the option state=DIR",
    )
    action.set_defaults(run=_quota, action=name)
    return action


def _add_limits(action: argparse.ArgumentParser) -> None:
    sizes, counts = "as 400G, 1.5T, or bytes; 'none', 'default'", "a number, 10k; 'none', 'default'"
    action.add_argument("--soft", metavar="SIZE", help=f"may be passed for the grace time: {sizes}")
    action.add_argument("--hard", metavar="SIZE", help=f"is never passed: {sizes}")
    action.add_argument("--files-soft", metavar="N", help=f"the same, of files: {counts}")
    action.add_argument("--files-hard", "--files", metavar="N", help=f"the same, of files: {counts}")
    action.add_argument("--grace", metavar="TIME", help="as 7d, 12h; 'none' for ever, 'default'")


def _quota(arguments: argparse.Namespace) -> int:
    from ckfs.cli import quota, recount

    actions = {
        "show": quota.show,
        "set": quota.say_of_user,
        "default": quota.say_of_others,
        "check": recount.check,
    }
    return actions[arguments.action](arguments)


def _add_room(commands: Commands[P]) -> None:
    command = commands.add_parser(
        "room", help="whether a checkpoint of that size would find room", allow_abbrev=False
    )
    command.add_argument("user", metavar="USER", help="name or uid; only root asks for others")
    command.add_argument("size", metavar="SIZE", help="as 400G, 1.5T, or bytes")
    command.add_argument("--mount", metavar="PATH", help="a mount; by default what is mounted here")
    command.set_defaults(run=_room)


def _room(arguments: argparse.Namespace) -> int:
    from ckfs.cli.room import room

    return room(arguments.user, arguments.size, arguments.mount)
