"""The accounts of some owners, locked, as one transaction changes them.

Whoever changes a grant, an open file or an account holds the lock of that account, and takes several by uid, so that nobody waits
in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ckfs.ledger.ledger import Opened, Settled, Spent
from ckfs.ledger.limits import LIMITS, limits_in
from ckfs.ledger.transaction import Row, Transaction
from ckfs.names import Inode, MountId, Uid
from ckfs.policy import quota
from ckfs.policy.quota import NOTHING, Account, Amount, Over

COLUMNS = (
    "version, used_bytes, used_files, claimed_bytes, claimed_files,"
    " over_bytes_s, over_bytes_ns, over_files_s, over_files_ns"
)
_LOCK = f"SELECT {COLUMNS} FROM accounts WHERE store = :store AND uid = :uid FOR UPDATE"  # noqa: S608 - names of our own tables and columns
_OPEN = (
    f"INSERT INTO accounts (store, uid, {COLUMNS}) VALUES (:store, :uid, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL)"  # noqa: S608 - names of our own tables and columns
    " ON CONFLICT (store, uid) DO NOTHING"
)
_SAVE = (
    "UPDATE accounts SET version = :version, used_bytes = :used_bytes, used_files = :used_files,"
    " claimed_bytes = :claimed_bytes, claimed_files = :claimed_files,"
    " over_bytes_s = :over_bytes_s, over_bytes_ns = :over_bytes_ns,"
    " over_files_s = :over_files_s, over_files_ns = :over_files_ns"
    " WHERE store = :store AND uid = :uid"
)
_TERMS = f"""
    SELECT {", ".join(f"{table}.{column}" for table in ("own", "others") for column in LIMITS)}, mine.number, mine.bytes, mine.files
    FROM (SELECT 1 AS one) AS always
    LEFT JOIN limits AS own ON own.store = :store AND own.uid = :uid
    LEFT JOIN limits AS others ON others.store = :store AND others.uid = -1
    LEFT JOIN grants AS mine ON mine.store = :store AND mine.uid = :uid AND mine.mount = :mount
"""  # noqa: S608 - names of our own tables and columns
_GRANT = (
    "INSERT INTO grants (store, uid, mount, number, bytes, files, recalled)"
    " VALUES (:store, :uid, :mount, :number, :bytes, :files, 0)"
    " ON CONFLICT (store, uid, mount) DO UPDATE SET bytes = excluded.bytes, files = excluded.files"
)
_TOUCH = (
    "INSERT INTO grants (store, uid, mount, number, bytes, files, recalled)"
    " VALUES (:store, :uid, :mount, :number, 0, 0, 0) ON CONFLICT (store, uid, mount) DO NOTHING"
)
_GRANTED = "SELECT bytes, files FROM grants WHERE store = :store AND uid = :uid AND mount = :mount"
_LESS = (
    "UPDATE grants SET bytes = bytes - :bytes, files = files - :files"
    " WHERE store = :store AND uid = :uid AND mount = :mount"
)
_FILES = "SELECT mount, uid, base_bytes, base_files FROM open_files WHERE store = :store AND ino = :ino"
_NOTE = (
    "INSERT INTO open_files (store, ino, mount, uid, base_bytes, base_files)"
    " VALUES (:store, :ino, :mount, :uid, :bytes, :files)"
)
_NOTE_NO_MORE = "DELETE FROM open_files WHERE store = :store AND ino = :ino AND mount = :mount"


def over_in(seconds: float | None, seen_ns: int | None) -> Over | None:
    return None if seconds is None or seen_ns is None else Over(seconds, seen_ns)


def account_in(uid: Uid, row: Row, limits: quota.Limits) -> Account:
    """The account of *uid* from a row of :data:`COLUMNS`."""
    _, used_bytes, used_files, claimed_bytes, claimed_files, *over = row
    return Account(
        uid,
        Amount(used_bytes, used_files),
        Amount(claimed_bytes, claimed_files),
        limits,
        over_in(over[0], over[1]),
        over_in(over[2], over[3]),
    )


@dataclass(frozen=True, slots=True)
class Noted:
    """A row of a file that *mount* writes."""

    mount: str
    uid: Uid
    base: Amount


@dataclass(slots=True)
class Standing:
    """One owner, as he is after what was done so far. *number* and *mine* are the acting mount's grant."""

    before: Account
    version: int
    number: int | None
    before_mine: Amount
    used: Amount = field(init=False)
    claimed: Amount = field(init=False)
    mine: Amount = field(init=False)
    is_posted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.used, self.claimed, self.mine = self.before.used, self.before.claimed, self.before_mine

    def post(self, used: Amount) -> None:
        """Of what is at rest, something has changed, or what a recount must know."""
        self.used += used
        self.is_posted = True

    def claim(self, more: Amount) -> None:
        """Change the acting mount's grant; what it has not got it cannot give up."""
        more = Amount(max(more.bytes, -self.mine.bytes), max(more.files, -self.mine.files))
        self.mine += more
        self.claimed += more

    def account(self, now_ns: int) -> Account:
        then = self.before
        account = Account(then.uid, self.used, self.claimed, then.limits, then.over_bytes, then.over_files)
        return quota.at(account, now_ns)


class Sheet:
    """*mount* acts. The time is that of the last lock: who waited for it is not to come with the time before."""

    def __init__(self, tx: Transaction, mount: MountId) -> None:
        self._tx = tx
        self._mount = mount.decode("ascii")
        self.now_ns = 0
        self._standings: dict[Uid, Standing] = {}
        self._files: dict[Inode, list[Noted]] = {}

    def __getitem__(self, uid: Uid) -> Standing:
        return self._standings[uid]

    @property
    def uids(self) -> set[Uid]:
        return set(self._standings)

    def lock(self, *uids: Uid, files: Iterable[Inode] = ()) -> None:
        """Lock the accounts of *uids*, and of those who are charged for *files*, whose notes can be read and changed then."""
        files = sorted(set(files))
        if not files:
            self._lock(uids)
            return
        payers = self._read(files)  # to take the locks in order; who pays may change until they are had
        while True:
            self._lock({*uids, *payers})
            payers = self._read(files)
            if payers <= self._standings.keys():
                return

    def _lock(self, uids: Iterable[Uid]) -> None:
        """Those of whom nothing was ever heard are opened."""
        for uid in sorted({*uids} - self._standings.keys()):
            row = self._tx.row(_LOCK, uid=uid)
            while row is None:
                self._tx.run(_OPEN, uid=uid)
                row = self._tx.row(_LOCK, uid=uid)
            terms, self.now_ns = self._tx.row_now(_TERMS, uid=uid, mount=self._mount)
            assert terms is not None
            own, others, (number, granted_bytes, granted_files) = terms[:5], terms[5:10], terms[10:]
            mine = NOTHING if number is None else Amount(granted_bytes, granted_files)
            account = account_in(uid, row, limits_in(own, others))
            self._standings[uid] = Standing(account, row[0], number, mine)

    # Files that are being written

    def _read(self, files: Sequence[Inode]) -> set[Uid]:
        """Read the notes of *files*. Who is charged for them."""
        found = self._tx.rows_of_each(_FILES, [{"ino": ino} for ino in files])
        for ino, rows in zip(files, found, strict=True):
            self._files[ino] = [
                Noted(mount, Uid(uid), Amount(base_bytes, base_files))
                for mount, uid, base_bytes, base_files in rows
            ]
        return {row.uid for ino in files for row in self._files[ino]}

    def files(self, ino: Inode) -> list[Noted]:
        """The notes of a file, by all mounts."""
        return self._files[ino]

    def note(self, uid: Uid, opened: Opened) -> None:
        """The acting mount begins to write a file. One that others write too counts for whom the ledger has it, whatever is said."""
        rows = self._files[opened.ino]
        if any(row.mount == self._mount for row in rows):
            return
        noted = Noted(self._mount, uid, opened.base)
        if rows and rows[0].uid != uid:  # it was handed over
            noted = replace(rows[0], mount=self._mount)
        rows.append(noted)
        self._tx.run(
            _NOTE,
            ino=opened.ino,
            mount=self._mount,
            uid=noted.uid,
            bytes=noted.base.bytes,
            files=noted.base.files,
        )
        self._standings[noted.uid].post(NOTHING)  # a recount looks for it, with or without a name
        if noted.uid != uid:
            self.touch(noted.uid, self._mount)

    def settle(self, payer: Uid, settled: Settled) -> None:
        """The acting mount, which wrote a file at the cost of *payer*, does so no more, or goes on. Without a note of it the file was
        counted as it is."""
        rows = self._files[settled.ino]
        mine = next((row for row in rows if row.mount == self._mount), None)
        if mine is None:
            return
        if not settled.goes_on:
            rows.remove(mine)
            self._tx.run(_NOTE_NO_MORE, ino=settled.ino, mount=self._mount)
        counted = mine.base if settled.counted is None else settled.counted
        if settled.is_last and mine.uid != payer:  # it was handed over, and has counted with that since
            counted = mine.base
        more = settled.final - counted
        if settled.goes_on:
            self.rebase(settled.ino, mine.uid, settled.final)
        elif rows and not settled.is_last:
            self.rebase(settled.ino, mine.uid, rows[0].base + more)
        if more or (settled.goes_on and settled.final != mine.base):
            self._standings[mine.uid].post(more)

    def grow(self, grown: Opened) -> None:
        """A file counts with more in the notes of all that write it."""
        for row in self._files[grown.ino][:1]:
            self.rebase(grown.ino, row.uid, row.base + grown.base)

    def rebase(self, ino: Inode, uid: Uid, base: Amount) -> None:
        """Let a file count with *base*, for *uid*, in the notes of all that write it."""
        if not self._files[ino]:
            return
        self._files[ino] = [replace(row, uid=uid, base=base) for row in self._files[ino]]
        self._tx.run(
            "UPDATE open_files SET uid = :uid, base_bytes = :bytes, base_files = :files WHERE store = :store AND ino = :ino",
            ino=ino,
            uid=uid,
            bytes=base.bytes,
            files=base.files,
        )

    def touch(self, uid: Uid, mount: str) -> None:
        """Let the ledger know that *mount* has to do with *uid*, so that he is recounted if it dies."""
        self._tx.run(_TOUCH, uid=uid, mount=mount, number=self._standings[uid].version)

    # Grants

    def number(self, uid: Uid) -> int:
        """Of the acting mount's grant, which is there from now on, if only of nothing."""
        standing = self._standings[uid]
        if standing.number is None:
            self.touch(uid, self._mount)
            # The version has grown since any earlier grant was taken back: a recount did that.
            standing.number = standing.version
        return standing.number

    def spend(self, uid: Uid, spent: Spent) -> None:
        """What dead mounts have written is not claimed any more, so far as it still is: a recount may have been faster."""
        standing, rest = self._standings[uid], spent.amount
        for mount in spent.mounts:
            row = self._tx.row(_GRANTED, uid=uid, mount=mount.decode("ascii"))
            granted = NOTHING if row is None else Amount(*row)
            part = Amount(min(granted.bytes, rest.bytes), min(granted.files, rest.files))
            if part:
                self._tx.run(_LESS, uid=uid, mount=mount.decode("ascii"), bytes=part.bytes, files=part.files)
                standing.claimed -= part
                rest -= part

    def save(self) -> None:
        for uid, standing in self._standings.items():
            self._save(uid, standing)

    def _save(self, uid: Uid, standing: Standing) -> None:
        account = standing.account(self.now_ns)
        if standing.mine != standing.before_mine:
            self._tx.run(
                _GRANT,
                uid=uid,
                mount=self._mount,
                number=self.number(uid),
                bytes=standing.mine.bytes,
                files=standing.mine.files,
            )
        if account != standing.before or standing.is_posted:
            self._tx.run(
                _SAVE,
                uid=uid,
                version=standing.version + standing.is_posted,
                used_bytes=account.used.bytes,
                used_files=account.used.files,
                claimed_bytes=account.claimed.bytes,
                claimed_files=account.claimed.files,
                **_over("over_bytes", account.over_bytes),
                **_over("over_files", account.over_files),
            )


def _over(name: str, over: Over | None) -> dict[str, object]:
    return {
        f"{name}_s": None if over is None else over.for_s,
        f"{name}_ns": None if over is None else over.seen_ns,
    }
