"""What a mount has been granted for one owner, and what became of it. In memory, without any input or output.

Of the grant, as the ledger knows it, a part is *balance* (not needed yet), a part is *held* (by calls under way, and by files
that are being written), and the rest was given up and has yet to be posted: ``total == balance + held + unposted``, always.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container
from dataclasses import dataclass, field

from ckfs.ledger.ledger import Drawn, Opened, Posting, Settled, Spent
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import GRANT_BYTES, NOTHING, Amount

_ANOTHERS = -1
"""No grant has this number."""


@dataclass(slots=True)
class Purse:
    uid: Uid
    grant: int | None = None
    """The number of the ledger's grant; None before the first draw."""
    claims: int = 0
    """Calls under way that hold something for what they make."""
    is_used: bool = False
    """Something was taken, or asked for, since :meth:`idle_s` looked."""
    _used_s: float = 0.0
    piece_bytes: int = GRANT_BYTES
    """How much was asked for last, beyond what was needed, and when:"""
    drawn_s: float = -math.inf
    is_short: bool = False
    """Less was granted than was asked for: the owner is near a limit."""
    exact_until_s: float = 0.0
    """Until then nothing is drawn beyond what is needed: others want it."""
    fruitless_until_s: float = 0.0
    """Until then the others are not asked again to give back what they do not need: they have just been."""
    counted_until_s: float = 0.0
    """Until then the files that are being written are not counted to find what is claimed for them in vain."""
    _balance_bytes: int = 0
    _balance_files: int = 0
    _held_bytes: int = 0
    _held_files: int = 0
    """Plain numbers, since each write takes from them."""
    _changed: Amount = NOTHING
    _given_up: Amount = NOTHING
    _settled: list[Settled] = field(default_factory=list)
    _spent: list[Spent] = field(default_factory=list)
    _grown: list[Opened] = field(default_factory=list)
    _posted: Amount = NOTHING
    """Given up by a posting that is under way."""

    @property
    def balance(self) -> Amount:
        return Amount(self._balance_bytes, self._balance_files)

    @balance.setter
    def balance(self, amount: Amount) -> None:
        self._balance_bytes, self._balance_files = amount.bytes, amount.files

    @property
    def held(self) -> Amount:
        return Amount(self._held_bytes, self._held_files)

    @held.setter
    def held(self, amount: Amount) -> None:
        self._held_bytes, self._held_files = amount.bytes, amount.files

    def take_bytes(self, count: int) -> bool:
        """As :meth:`take`, of *count* bytes: what nearly every write does."""
        if count > self._balance_bytes:
            return False
        self._balance_bytes -= count
        self._held_bytes += count
        return True

    def take(self, amount: Amount) -> bool:
        """Move *amount* from the balance to what is held, if there is as much."""
        if not self.balance.covers(amount):
            return False
        self.balance -= amount
        self.held += amount
        return True

    def give_back(self, amount: Amount) -> None:
        """What was held is not needed after all."""
        self.balance += self._let_go(amount)

    def spend(self, change: Amount) -> None:
        """What is at rest has changed: of what was added as much as there is comes out of the balance."""
        self._changed += change
        self._give_up_from_balance(change.not_below_zero())

    def spend_held(self, amount: Amount) -> None:
        """What was held for it has become *amount* at rest."""
        self._changed += amount
        self._given_up += self._let_go(amount)

    def moved(self, amount: Amount) -> None:
        """As :meth:`spend_held`, of what the ledger has heard already."""
        self._let_go(amount)

    def settle(self, settled: Settled, held: Amount) -> None:
        """A file is written no more, or counted in between, for which *held* was."""
        self._settled.append(settled)
        if settled.is_last:  # by what it has grown since was seen with it
            self._grown = [one for one in self._grown if one.ino != settled.ino]
        self._given_up += self._let_go(held)

    def grown(self, file: Opened) -> None:
        """Of what was just spent, so much belongs to what a file counts with that is being written."""
        self._grown.append(file)

    def spent_by(self, dead: Collection[MountId], amount: Amount) -> None:
        """Of what was just spent, or settled, so much was granted to others, who are *dead*."""
        amount = amount.not_below_zero()
        if dead and amount:
            self._spent.append(Spent(tuple(sorted(dead)), amount))

    def _let_go(self, amount: Amount) -> Amount:
        """Of what is held, *amount*; or what is left of it, if the ledger took the grant back meanwhile."""
        part = Amount(min(self.held.bytes, amount.bytes), min(self.held.files, amount.files))
        self.held -= part
        return part

    def idle_s(self, now_s: float) -> float:
        """For how long nothing was taken, to within the time between two looks; in the loop's time."""
        if self.is_used:
            self.is_used, self._used_s = False, now_s
        return now_s - self._used_s

    def is_wanted_by_others(self, now_s: float) -> bool:
        """Another mount has asked for what is not needed here, a moment ago."""
        return now_s < self.exact_until_s

    def give_up_balance(self) -> None:
        self._give_up_from_balance(self.balance)

    def _give_up_from_balance(self, amount: Amount) -> None:
        part = Amount(min(self.balance.bytes, amount.bytes), min(self.balance.files, amount.files))
        self.balance -= part
        self._given_up += part

    @property
    def has_news(self) -> bool:
        return bool(self._changed or self._given_up or self._settled or self._spent or self._grown)

    @property
    def changes_room(self) -> bool:
        """Whether its owner may be granted more, or less, once everything is posted. Not by what was claimed and made."""
        return bool(self._settled or self._spent) or self._given_up != self._changed

    def has_news_of(self, files: Container[Inode]) -> bool:
        """Whether something is to be posted of one of *files*."""
        return any(one.ino in files for one in self._settled) or any(one.ino in files for one in self._grown)

    @property
    def is_empty(self) -> bool:
        """Nothing is granted, and nothing is to be posted."""
        return not (self.balance or self.held or self.has_news or self._posted)

    def posting(self) -> Posting:
        """What is to be posted; :meth:`posted` follows."""
        settled, spent, grown = tuple(self._settled), tuple(self._spent), tuple(self._grown)
        news = Posting(self.uid, self._changed, self._given_up, settled, spent, grown)
        self._posted += self._given_up
        self._changed = self._given_up = NOTHING
        self._settled, self._spent, self._grown = [], [], []
        return news

    def posted(self, posting: Posting) -> None:
        self._posted -= posting.given_up

    def disown(self) -> None:
        """Whatever was granted was another mount's: this one was fenced, and goes on under a new name."""
        if self.grant is not None:
            self.grant = _ANOTHERS

    def drawn(self, drawn: Drawn) -> bool:
        """Take up what the ledger says. False if the grant of before was taken back: then nothing is held any more."""
        kept = self.grant in (None, drawn.grant)
        self.grant = drawn.grant
        if not kept:
            self.held = self._given_up = self._posted = NOTHING
        self.balance = (drawn.total - self.held - self._given_up - self._posted).not_below_zero()
        return kept
