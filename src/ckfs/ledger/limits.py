"""What was said of owners, as rows: a number, no limit at all, or nothing."""

from __future__ import annotations

from ckfs.errors import UsageError
from ckfs.ledger.transaction import Row, Transaction
from ckfs.names import Uid
from ckfs.policy.quota import Limits, Said, Setting, Settings, limits_of

LIMITS = ("soft_bytes", "hard_bytes", "soft_files", "hard_files", "grace_s")
"""The columns, and the fields of Settings."""
_OTHERS = Uid(-1)
"""No user's: what holds for all of whom nothing is said."""
_NO_LIMIT = -1
_LARGEST = 1 << 62
_ALL = f"SELECT uid, {', '.join(LIMITS)} FROM limits WHERE store = :store ORDER BY uid"  # noqa: S608 - names of our own tables and columns
_ONE = f"SELECT {', '.join(LIMITS)} FROM limits WHERE store = :store AND uid = :uid"  # noqa: S608 - names of our own tables and columns
_SAY = (
    f"INSERT INTO limits (store, uid, {', '.join(LIMITS)})"  # noqa: S608 - names of our own tables and columns
    f" VALUES (:store, :uid, {', '.join(f':{name}' for name in LIMITS)})"
    f" ON CONFLICT (store, uid) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in LIMITS)}"
)


def settings_in(row: Row | None) -> Settings:
    return Settings() if row is None else Settings(*map(_setting, row))


def limits_in(own: Row, others: Row) -> Limits:
    """What holds for one of whom the row *own* says something, and *others* of all."""
    return limits_of(settings_in(own), settings_in(others))


def all_settings(tx: Transaction) -> dict[Uid | None, Settings]:
    return {None if uid == _OTHERS else Uid(uid): settings_in(tuple(row)) for uid, *row in tx.rows(_ALL)}


def settings(tx: Transaction, uid: Uid | None) -> Settings:
    return settings_in(tx.row(_ONE, uid=_OTHERS if uid is None else uid))


def say(tx: Transaction, uid: Uid | None, said: Settings) -> None:
    key = _OTHERS if uid is None else uid
    if said == Settings():
        tx.run("DELETE FROM limits WHERE store = :store AND uid = :uid", uid=key)
    else:
        tx.run(_SAY, uid=key, **{name: _number(getattr(said, name)) for name in LIMITS})


def check_settings(said: Settings) -> None:
    """Raises UsageError for numbers that no ledger can hold."""
    for name in LIMITS:
        value = getattr(said, name)
        if isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise UsageError(
                f"{name.replace('_', ' of ')}: {value} is out of range, from 0 to {_LARGEST}; for no limit say none"
            )


def _setting(value: int | None) -> Setting:
    if value is None:
        return Said.DEFAULT
    return Said.NONE if value == _NO_LIMIT else value


def _number(value: Setting) -> int | None:
    if isinstance(value, int):
        return value
    return _NO_LIMIT if value is Said.NONE else None
