"""Questions to whoever keeps quotas, a ledger or an engine: never in the store's gate, and bounded in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from ckfs.errors import CkfsError, LedgerDown
from ckfs.fs.core import Core
from ckfs.ledger.ledger import Quotas
from ckfs.names import Uid
from ckfs.policy.enforcing import QuotaMode
from ckfs.policy.quota import Account

T = TypeVar("T")

_BRIEFLY_S = 1.0


class NoQuotas(CkfsError):
    """Nobody keeps quotas here."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Belongs to the event loop's thread."""

    core: Core

    @property
    def quotas(self) -> Quotas:
        """NoQuotas if this mount has none."""
        quotas = self.core.quotas
        if quotas is not None:
            return quotas
        if self.core.policy.quota.mode is QuotaMode.NONE:
            raise NoQuotas('quotas are off: policy.toml of the store says mode = "none" in [quota]')
        raise NoQuotas(
            "this mount keeps no quotas, since it is read-only or began without them: name another mount, or the store"
        )

    async def ask(self, question: Callable[[Quotas], T], asker: Uid) -> T:
        """The answer for *asker*. NoQuotas; LedgerDown if there is none in time; what *question* raises."""
        quotas = self.quotas
        answer = await self.core.questions.ask(lambda: (question(quotas),), asker)
        if answer is None:
            raise LedgerDown("quotas cannot be asked for just now: try again")
        return answer[0]

    async def account(self, uid: Uid, asker: Uid) -> Account:
        """A second old at most, where each look costs an engine a run of its tool."""
        engine = self.core.engine
        if self.core.ledger is None and engine is not None:
            recent = engine.recent
            return await self.ask(lambda _: recent(uid), asker)
        return await self.ask(lambda quotas: quotas.account(uid), asker)

    async def account_at_once(self, uid: Uid) -> Account | None:
        """None if it is not to be had in a moment, for calls that have another answer then."""
        if self.core.quotas is None:
            return None
        try:
            with trio.move_on_after(_BRIEFLY_S):
                return await self.account(uid, uid)
        except (LedgerDown, OSError):
            pass
        return None
