"""``ckfs room``: whether a checkpoint would find room, for scripts that ask before they dump."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ckfs.cli.mounted import mount_at, only_mount
from ckfs.cli.users import uid_of, user_name
from ckfs.control.client import ask, made
from ckfs.control.protocol import Values
from ckfs.errors import CkfsError
from ckfs.fs.room import Answer, Lack
from ckfs.policy.sizes import shown_size, size_of


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("user", metavar="USER", help="name or uid; only root asks for others")
    command.add_argument("size", metavar="SIZE", help="as 400G, 1.5T, or bytes")
    command.add_argument("--mount", metavar="PATH", help="a mount; by default what is mounted here")
    command.set_defaults(run=lambda arguments: room(arguments.user, arguments.size, arguments.mount))


def room(user: str, size: str, path: str | None) -> int:
    """Print in a line whether *size* more would find room for *user*. Returns 0 if so, else 1; raises CkfsError."""
    uid, size_bytes = uid_of(user), size_of(size)
    device = only_mount("--mount").device if path is None else mount_at(path).device
    for said in ask(device, "room", {"uid": str(uid), "size_bytes": size_bytes}):
        answer = _answer(said)
        asked = f"{shown_size(size_bytes)} for {user_name(uid)}"
        print(f"room: {asked}: {_left(answer)}" if answer.fits else f"no room: {asked}: {_short(answer)}")
        return 0 if answer.fits else 1
    raise CkfsError("the mount's daemon is of another version of ckfs")


def _answer(said: Values) -> Answer:
    lacks = said.get("lacks")
    if not isinstance(lacks, Sequence) or not all(isinstance(lack, dict) for lack in lacks):
        raise CkfsError("the mount's daemon is of another version of ckfs")
    return made(Answer, {**said, "lacks": tuple(made(Lack, lack) for lack in lacks)})


def _left(answer: Answer) -> str:
    own = (
        "no limit of his own" if answer.own_bytes is None else f"{shown_size(answer.own_bytes)} by his limits"
    )
    return f"{own}, {shown_size(answer.store_bytes)} in the store{_counting(answer)}"


def _short(answer: Answer) -> str:
    return "; ".join(map(_lack, answer.lacks)) + _counting(answer)


def _counting(answer: Answer) -> str:
    if not answer.giving_bytes:
        return ""
    return f" (counting {shown_size(answer.giving_bytes)} of his own that would give way)"


def _lack(lack: Lack) -> str:
    match lack.of:
        case "hard":
            return f"his hard limit of {shown_size(lack.limit)} is short by {shown_size(lack.short)}"
        case "soft":
            return f"his soft limit of {shown_size(lack.limit)}, whose grace time has ended, is short by {shown_size(lack.short)}"
        case "files":
            return f"his limit of {lack.limit} files is short by {lack.short}"
        case "inodes":
            return "the store has no inode left"
        case _:
            reserve = f" ({shown_size(lack.limit)} are kept in reserve)" if lack.limit else ""
            return f"the store is short by {shown_size(lack.short)}{reserve}"
