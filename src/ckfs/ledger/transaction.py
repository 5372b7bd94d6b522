"""What a database is to the ledger: something that runs transactions, as a whole, one after the other for each owner.

SQL is written once, for SQLite and PostgreSQL: parameters are named (``:uid``), and ``:store`` is always there. How many rows
a statement changed is told by ``RETURNING 1``. A row that is read ``FOR UPDATE`` stays as it is until the transaction ends; where there is one writer at a time, that says nothing new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]
Clock = Callable[[], int]
"""The time in ns since the epoch. Grace times bear with one that is set back."""


class Transaction(Protocol):
    """Statements that happen together."""

    def rows(self, sql: str, **values: object) -> list[Row]: ...

    def row(self, sql: str, **values: object) -> Row | None: ...

    def rows_of_each(self, sql: str, each: Sequence[Mapping[str, object]]) -> list[list[Row]]:
        """The rows for each of many values, asked for together."""

    def row_now(self, sql: str, **values: object) -> tuple[Row | None, int]:
        """With the time after it was read, in ns since the epoch: of the one clock that all who use the ledger share."""

    def run(self, sql: str, **values: object) -> None:
        """It may be sent later only, with what follows; what fails then fails the transaction."""


class Backend(Protocol):
    """A database. Both ways to run a transaction raise LedgerDown if it does not answer in time, and LedgerUnusable if it is
    damaged; *work* is done again if it got into the way of another. *kind* is its name for people."""

    @property
    def kind(self) -> str: ...

    def write(self, work: Callable[[Transaction], T]) -> T: ...

    def read(self, work: Callable[[Transaction], T]) -> T:
        """*work* changes nothing, and all of it sees the same state."""

    def damage(self) -> list[str]:
        """What the database itself finds wrong with its tables, a line each."""

    def close(self) -> None: ...
