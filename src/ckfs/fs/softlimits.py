"""Soft limits in the mount's log: who has passed one, once each time, and whose grace time has ended."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from ckfs.names import Uid
from ckfs.policy.quota import Account, Limit, Over, grace_left_s
from ckfs.policy.sizes import shown_size, shown_span

log = logging.getLogger(__name__)


class _Said(enum.Enum):
    PASSED = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True)
class SoftLimits:
    """What this mount has said of accounts that it saw. Belongs to the event loop's thread; quick enough for every draw."""

    _said: dict[tuple[Uid, str], _Said] = field(default_factory=dict)
    """Of those who are over a soft limit as far as this mount knows."""

    def see(self, account: Account) -> None:
        """*account* as it was just heard of."""
        limits = account.limits
        if limits.bytes.soft is None and limits.files.soft is None and not self._said:
            return
        self._see(account, "bytes", account.over_bytes, limits.bytes, account.total.bytes, shown_size)
        self._see(account, "files", account.over_files, limits.files, account.total.files, str)

    def _see(
        self,
        account: Account,
        kind: str,
        over: Over | None,
        limit: Limit,
        total: int,
        show: Callable[[int], str],
    ) -> None:
        key = account.uid, kind
        if over is None or limit.soft is None:
            self._said.pop(key, None)
            return
        left_s, before = grace_left_s(over, account.limits), self._said.get(key)
        of_files = " files" if kind == "files" else ""
        if left_s == 0:
            if before is not _Said.ENDED:
                log.warning(
                    "uid %d gets nothing more: over the soft limit of %s%s (he has %s), and the grace time has ended",
                    account.uid, show(limit.soft), of_files, show(total), extra={"always": True},
                )  # fmt: skip
            self._said[key] = _Said.ENDED
        elif before is None:
            until = "without a time limit" if left_s is None else f"with {shown_span(left_s)} of grace left"
            log.warning(
                "uid %d has passed the soft limit of %s%s (he has %s), %s",
                account.uid, show(limit.soft), of_files, show(total), until, extra={"always": True},
            )  # fmt: skip
            self._said[key] = _Said.PASSED
