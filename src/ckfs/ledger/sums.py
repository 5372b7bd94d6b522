"""What must add up in a ledger."""

from __future__ import annotations

from collections.abc import Iterator

from ckfs.ledger.transaction import Transaction
from ckfs.names import shown

_NEGATIVE = (
    ("accounts", "claimed_bytes < 0 OR claimed_files < 0", "for uid {0} less than nothing is claimed"),
    ("grants", "bytes < 0 OR files < 0", "a mount has a grant of less than nothing for uid {0}"),
    ("open_files", "base_bytes < 0 OR base_files < 0", "a file of uid {0} counts with less than nothing"),
    (
        "limits",
        "soft_bytes < -1 OR hard_bytes < -1 OR soft_files < -1 OR hard_files < -1 OR grace_s < -1",
        "a limit of uid {0} (-1: of all others) is less than nothing",
    ),
)
_CLAIMED = """
    SELECT accounts.uid, accounts.claimed_bytes, accounts.claimed_files,
           COALESCE(SUM(grants.bytes), 0), COALESCE(SUM(grants.files), 0)
    FROM accounts LEFT JOIN grants ON grants.store = accounts.store AND grants.uid = accounts.uid
    WHERE accounts.store = :store
    GROUP BY accounts.uid, accounts.claimed_bytes, accounts.claimed_files
    HAVING accounts.claimed_bytes <> COALESCE(SUM(grants.bytes), 0)
        OR accounts.claimed_files <> COALESCE(SUM(grants.files), 0)
    ORDER BY accounts.uid
"""
_WITHOUT_ACCOUNT = """
    SELECT DISTINCT grants.uid FROM grants
    LEFT JOIN accounts ON accounts.store = grants.store AND accounts.uid = grants.uid
    WHERE grants.store = :store AND accounts.uid IS NULL ORDER BY grants.uid
"""
_WITHOUT_GRANT = """
    SELECT open_files.uid, open_files.mount, COUNT(*) FROM open_files
    LEFT JOIN grants ON grants.store = open_files.store AND grants.uid = open_files.uid AND grants.mount = open_files.mount
    WHERE open_files.store = :store AND grants.uid IS NULL
    GROUP BY open_files.uid, open_files.mount ORDER BY open_files.uid, open_files.mount
"""
_TWICE = """
    SELECT ino FROM open_files WHERE store = :store GROUP BY ino
    HAVING MIN(uid) <> MAX(uid) OR MIN(base_bytes) <> MAX(base_bytes) OR MIN(base_files) <> MAX(base_files)
    ORDER BY ino
"""
_WAY_OUT = '; "ckfs quota check --repair" counts anew'


def wrong(tx: Transaction) -> list[str]:
    """What does not add up, a line each."""
    return [line + _WAY_OUT for line in _wrong(tx)]


def _wrong(tx: Transaction) -> Iterator[str]:
    for table, condition, line in _NEGATIVE:
        sql = f"SELECT DISTINCT uid FROM {table} WHERE store = :store AND ({condition}) ORDER BY uid"  # noqa: S608 - names of our own tables and columns
        yield from (line.format(*row) for row in tx.rows(sql))
    for uid, claimed_bytes, claimed_files, granted_bytes, granted_files in tx.rows(_CLAIMED):
        yield (
            f"for uid {uid} {claimed_bytes} bytes and {claimed_files} files are claimed, "
            f"but mounts have grants of {granted_bytes} bytes and {granted_files} files"
        )
    for (uid,) in tx.rows(_WITHOUT_ACCOUNT):
        yield f"mounts have grants for uid {uid}, who has no account"
    for uid, mount, number in tx.rows(_WITHOUT_GRANT):
        yield f"the mount {shown(mount)} writes files of uid {uid} ({number}), but has no grant for him"
    for (ino,) in tx.rows(_TWICE):
        yield f"the file with the inode number {ino} counts differently for the mounts that write it"
