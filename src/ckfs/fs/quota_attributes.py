"""``user.ckfs.quota.*``: how the owner of a set stands by his quota, and on the mount's root, how whoever asks does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckfs.errors import Denied, NoAttribute
from ckfs.fs.asking import Asking
from ckfs.fs.core import Core
from ckfs.fs.inodes import Node
from ckfs.model import Caller
from ckfs.policy.quota import Account, grace_left_s

PREFIX = b"user.ckfs.quota."


@dataclass(frozen=True, slots=True)
class QuotaAttributes:
    core: Core

    async def get(self, node: Node, name: bytes, caller: Caller) -> bytes:
        """NoAttribute if there is none of that name, or nobody keeps quotas; Denied to whom the figures are no business of."""
        show = _SHOWN.get(name.removeprefix(PREFIX))
        if show is None or self.core.quotas is None:
            raise NoAttribute("there is no such attribute")
        owner = None if node.is_root else node.set_entry.owner
        uid = caller.uid if node.is_root else self.core.stored_as(owner).uid
        if not caller.is_root and uid != caller.uid:
            raise Denied("only the owner and root see how he stands by his quota")
        account = await Asking(self.core).account(uid, caller.uid)
        return show(account).encode()


def _limit(limit: int | None) -> str:
    return "none" if limit is None else str(limit)


def _files(account: Account) -> str:
    limit = account.limits.files
    return f"{account.used.files} {_limit(limit.soft)} {_limit(limit.hard)}"


def _grace(account: Account) -> str:
    """In whole seconds, of the limit whose grace ends first."""
    over = [one for one in (account.over_bytes, account.over_files) if one is not None]
    if not over:
        raise NoAttribute("no soft limit is passed")
    left = [left_s for one in over if (left_s := grace_left_s(one, account.limits)) is not None]
    return str(int(min(left))) if left else "none"


_SHOWN: Mapping[bytes, Callable[[Account], str]] = {
    b"used": lambda account: str(account.used.bytes),
    b"claimed": lambda account: str(account.claimed.bytes),
    b"soft": lambda account: _limit(account.limits.bytes.soft),
    b"hard": lambda account: _limit(account.limits.bytes.hard),
    b"files": _files,
    b"grace": _grace,
}
