"""A store's ledger in a database: what each call means, in SQL that SQLite and PostgreSQL both understand.

A call is one transaction. It locks the accounts that it changes (:mod:`ckfs.ledger.sheet`), so that calls for different owners do not
wait for each other where the database lets them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ckfs.ledger import limits, sums
from ckfs.ledger.ledger import Basis, Drawn, Opened, OpenFile, Posting
from ckfs.ledger.reach import Listened, Reach
from ckfs.ledger.sheet import COLUMNS, Sheet, account_in
from ckfs.ledger.transaction import Backend, Row, Transaction
from ckfs.names import Inode, MountId, Uid
from ckfs.policy import quota
from ckfs.policy.quota import NOTHING, Account, Amount, Settings

NOBODY = MountId(b"")
"""Where no mount acts."""

_NEXT_POST = (
    "INSERT INTO posts (store, mount, number) VALUES (:store, :mount, :number)"
    " ON CONFLICT (store, mount) DO UPDATE SET number = excluded.number WHERE posts.number < excluded.number RETURNING 1"
)
_NEW_MOVE = (
    "INSERT INTO moves (store, mount, number) VALUES (:store, :mount, :number)"
    " ON CONFLICT (store, mount, number) DO NOTHING RETURNING 1"
)
_RECALL = "UPDATE grants SET recalled = 1 WHERE store = :store AND uid = :uid AND mount <> :mount AND (bytes > 0 OR files > 0)"
# Who has given up all of it meanwhile has nothing to answer, and may not ask whether it is recalled.
_ASKED_BACK = (
    "SELECT mount, uid FROM grants WHERE store = :store AND recalled = 1 AND (bytes > 0 OR files > 0)"
)
_OWNERS_OF_MOUNT = (
    "SELECT uid FROM grants WHERE store = :store AND mount = :mount"
    " UNION SELECT uid FROM open_files WHERE store = :store AND mount = :mount"
    " UNION SELECT uid FROM unseen WHERE store = :store AND mount = :mount"
)
_MOUNTS = (
    "SELECT mount, uid FROM grants WHERE store = :store"
    " UNION SELECT mount, uid FROM open_files WHERE store = :store"
    " UNION SELECT mount, uid FROM unseen WHERE store = :store"
    " UNION SELECT mount, NULL FROM posts WHERE store = :store"
)
_SAY_UNSEEN = "INSERT INTO unseen (store, mount, uid) VALUES (:store, :mount, :uid) ON CONFLICT (store, mount, uid) DO NOTHING"
_SUM = (
    "SELECT COALESCE(SUM(bytes), 0), COALESCE(SUM(files), 0) FROM grants WHERE store = :store AND uid = :uid"
)
_COUNTED = (
    "INSERT INTO stores (store, counted_as) VALUES (:store, :id)"
    " ON CONFLICT (store) DO UPDATE SET counted_as = excluded.counted_as"
)


class Book:
    """The ledger of one store, as :class:`ckfs.ledger.ledger.Ledger` describes it. Any thread may call it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = Listened(backend)

    @property
    def kind(self) -> str:
        return self._backend.kind

    @property
    def reach(self) -> Reach:
        return self._backend.reach

    @property
    def asked_ns(self) -> int:
        return self._backend.asked_ns

    @property
    def last_failure(self) -> Reach | None:
        return self._backend.last_failure

    # Quotas

    def account(self, uid: Uid) -> Account:
        """One of whom nothing was ever heard has used nothing, and has the default limits."""
        return self._backend.read(lambda tx: _account(tx, uid))

    def accounts(self) -> list[Account]:
        return self._backend.read(_accounts)

    def settings(self, uid: Uid | None) -> Settings:
        return self._backend.read(lambda tx: limits.settings(tx, uid))

    def all_settings(self) -> dict[Uid | None, Settings]:
        return self._backend.read(limits.all_settings)

    def set_limits(self, uid: Uid | None, settings: Settings) -> None:
        """Raises UsageError for numbers that no ledger can hold."""
        limits.check_settings(settings)

        def work(tx: Transaction) -> None:
            sheet = Sheet(tx, NOBODY)
            uids = [uid] if uid is not None else _all_uids(tx)
            sheet.lock(*uids)
            limits.say(tx, uid, settings)
            changed = Sheet(tx, NOBODY)  # with what holds now: grace begins for who is over it
            changed.lock(*uids)
            changed.save()
            for one in uids:
                tx.run(_RECALL, uid=one, mount="")

        self._backend.write(work)

    def asked_back(self) -> dict[MountId, set[Uid]]:
        return self._backend.read(lambda tx: _owners_of_each(tx.rows(_ASKED_BACK)))

    def unseen(self) -> dict[MountId, set[Uid]]:
        return self._backend.read(
            lambda tx: _owners_of_each(tx.rows("SELECT mount, uid FROM unseen WHERE store = :store"))
        )

    # Mounts

    def draw(
        self, mount: MountId, uid: Uid, least: Amount, wanted: Amount, opened: Sequence[Opened] = ()
    ) -> Drawn:
        def work(tx: Transaction) -> Drawn:
            sheet = Sheet(tx, mount)
            sheet.lock(uid, files=[file.ino for file in opened])
            for file in opened:
                sheet.note(uid, file)
            standing, number, now_ns = sheet[uid], sheet.number(uid), sheet.now_ns
            standing.claim(quota.grant(standing.account(now_ns), least, wanted, now_ns))
            sheet.save()
            account = standing.account(now_ns)
            return Drawn(number, standing.mine, account, others_hold=bool(account.claimed - standing.mine))

        return self._backend.write(work)

    def post(self, mount: MountId, number: int, postings: Iterable[Posting]) -> None:
        postings = tuple(postings)

        def work(tx: Transaction) -> None:
            if tx.row(_NEXT_POST, mount=mount.decode("ascii"), number=number) is None:
                return
            sheet = Sheet(tx, mount)
            sheet.lock(*(posting.uid for posting in postings), files=_files_of(postings))
            for posting in postings:
                _post(sheet, posting)
            sheet.save()

        self._backend.write(work)

    def move(
        self,
        giver: Uid,
        mount: MountId,
        taker: Uid,
        moved: Amount,
        files: Sequence[Opened],
        number: int | None = None,
    ) -> None:
        def work(tx: Transaction) -> None:
            if number is not None and not _is_new_move(tx, mount, number):
                return
            sheet = Sheet(tx, mount)
            sheet.lock(giver, taker, files=[file.ino for file in files])
            sheet[giver].post(-moved)
            sheet[taker].post(moved)
            sheet[taker].claim(-moved)
            for file in files:
                rows = sheet.files(file.ino)
                for row in rows:
                    sheet.touch(taker, row.mount)
                if (
                    rows
                ):  # what was written since the base is claimed by who wrote it, and was not the giver's
                    sheet[giver].post(file.base)
                    sheet[rows[0].uid].post(-rows[0].base)
                sheet.rebase(file.ino, taker, file.base)
            sheet.save()

        self._backend.write(work)

    def recall(self, mount: MountId, uid: Uid) -> None:
        def work(tx: Transaction) -> None:
            Sheet(tx, mount).lock(uid)
            tx.run(_RECALL, uid=uid, mount=mount.decode("ascii"))

        self._backend.write(work)

    def recalled(self, mount: MountId) -> set[Uid]:
        sql = "SELECT uid FROM grants WHERE store = :store AND mount = :mount AND recalled = 1"
        return self._backend.read(
            lambda tx: {Uid(uid) for (uid,) in tx.rows(sql, mount=mount.decode("ascii"))}
        )

    def answer(self, mount: MountId, uid: Uid) -> None:
        sql = "UPDATE grants SET recalled = 0 WHERE store = :store AND uid = :uid AND mount = :mount"
        self._backend.write(lambda tx: tx.run(sql, uid=uid, mount=mount.decode("ascii")))

    def say_unseen(self, mount: MountId, uid: Uid, *, is_so: bool) -> None:
        def work(tx: Transaction) -> None:
            Sheet(tx, mount).lock(uid)
            if is_so:
                tx.run(_SAY_UNSEEN, mount=mount.decode("ascii"), uid=uid)
            else:
                _forget_in(tx, "unseen", mount, uid)

        self._backend.write(work)

    def waits_for(self, mount: MountId, uid: Uid) -> bool:
        sql = f"{_ASKED_BACK} AND uid = :uid AND mount <> :mount LIMIT 1"
        return self._backend.read(lambda tx: tx.row(sql, uid=uid, mount=mount.decode("ascii")) is not None)

    def end(self, mount: MountId) -> None:
        def work(tx: Transaction) -> None:
            sheet = Sheet(tx, mount)
            uids = [Uid(uid) for (uid,) in tx.rows(_OWNERS_OF_MOUNT, mount=mount.decode("ascii"))]
            sheet.lock(*uids)
            for uid in uids:
                sheet[uid].claim(-sheet[uid].mine)
                sheet[uid].post(NOTHING)
            sheet.save()
            for table in ("grants", "open_files", "unseen", "posts", "moves"):
                _forget_in(tx, table, mount)

        self._backend.write(work)

    # Recounts

    def mounts(self) -> dict[MountId, set[Uid]]:
        return self._backend.read(lambda tx: _owners_of_each(tx.rows(_MOUNTS)))

    def basis(self, uid: Uid) -> Basis:
        return self._backend.read(lambda tx: _basis(tx, uid))

    def recounted(
        self,
        uid: Uid,
        version: int | None,
        counted: Amount,
        dead: Iterable[MountId] = (),
        bases: Sequence[Opened] = (),
    ) -> bool:
        dead = sorted(dead)

        def work(tx: Transaction) -> bool:
            sheet = Sheet(tx, NOBODY)
            sheet.lock(uid, files=[file.ino for file in bases])
            standing = sheet[uid]
            if version is not None and version != standing.version:
                return False
            for file in bases:
                if any(row.uid == uid for row in sheet.files(file.ino)):
                    sheet.rebase(file.ino, uid, file.base)
            for mount in dead:
                for table in ("grants", "open_files", "unseen"):
                    _forget_in(tx, table, mount, uid)
            standing.post(counted - standing.used)
            claimed = tx.row(_SUM, uid=uid)
            assert claimed is not None
            standing.claimed = Amount(int(claimed[0]), int(claimed[1]))
            sheet.save()
            return True

        return self._backend.write(work)

    def forget(self, mount: MountId) -> None:
        def work(tx: Transaction) -> None:
            if tx.row(_OWNERS_OF_MOUNT, mount=mount.decode("ascii")) is None:
                for table in ("posts", "moves"):
                    _forget_in(tx, table, mount)

        self._backend.write(work)

    # The ledger itself

    def counted_as(self) -> str | None:
        row = self._backend.read(lambda tx: tx.row("SELECT counted_as FROM stores WHERE store = :store"))
        return None if row is None else row[0]

    def all_counted(self, id: str | None) -> None:  # noqa: A002 - its name everywhere
        self._backend.write(lambda tx: tx.run(_COUNTED, id=id))

    def damage(self) -> list[str]:
        return self._backend.damage()

    def check(self) -> list[str]:
        return self._backend.damage() or self._backend.read(sums.wrong)

    def close(self) -> None:
        self._backend.close()


def _post(sheet: Sheet, posting: Posting) -> None:
    standing = sheet[posting.uid]
    # Whatever is posted of an owner is to be counted anew if this mount dies before it has posted the rest.
    sheet.number(posting.uid)
    if posting.used:
        standing.post(posting.used)
    standing.claim(-posting.given_up.not_below_zero())
    for settled in posting.settled:
        sheet.settle(posting.uid, settled)
    for spent in posting.spent:
        sheet.spend(posting.uid, spent)
    for grown in posting.grown:
        sheet.grow(grown)


def _owners_of_each(rows: Iterable[Row]) -> dict[MountId, set[Uid]]:
    """Of rows with a mount and an owner, or none."""
    found: dict[MountId, set[Uid]] = {}
    for mount, uid in rows:
        owners = found.setdefault(MountId(mount.encode()), set())
        if uid is not None:
            owners.add(Uid(uid))
    return found


def _files_of(postings: Sequence[Posting]) -> Iterator[Inode]:
    for posting in postings:
        yield from (settled.ino for settled in posting.settled)
        yield from (grown.ino for grown in posting.grown)


def _is_new_move(tx: Transaction, mount: MountId, number: int) -> bool:
    return tx.row(_NEW_MOVE, mount=mount.decode("ascii"), number=number) is not None


def _forget_in(tx: Transaction, table: str, mount: MountId, uid: Uid | None = None) -> None:
    where = "store = :store AND mount = :mount" + ("" if uid is None else " AND uid = :uid")
    values = {} if uid is None else {"uid": uid}
    tx.run(f"DELETE FROM {table} WHERE {where}", mount=mount.decode("ascii"), **values)  # noqa: S608 - names of our own tables and columns


def _all_uids(tx: Transaction) -> list[Uid]:
    return [Uid(uid) for (uid,) in tx.rows("SELECT uid FROM accounts WHERE store = :store ORDER BY uid")]


def _account(tx: Transaction, uid: Uid) -> Account:
    row, now_ns = tx.row_now(f"SELECT {COLUMNS} FROM accounts WHERE store = :store AND uid = :uid", uid=uid)  # noqa: S608 - names of our own tables and columns
    holding = quota.limits_of(limits.settings(tx, uid), limits.settings(tx, None))
    if row is None:
        return Account(uid, limits=holding)
    return quota.at(_shown(account_in(uid, row, holding)), now_ns)


def _shown(account: Account) -> Account:
    """Nobody has less than nothing: what was taken from a file whose writer has yet to post what it wrote is claimed by that one."""
    used = account.used.not_below_zero()
    return replace(account, used=used, claimed=(account.claimed + account.used - used).not_below_zero())


def _accounts(tx: Transaction) -> list[Account]:
    _, now_ns = tx.row_now("SELECT 1")
    everything = limits.all_settings(tx)
    others = everything.get(None, Settings())
    said = {uid: settings for uid, settings in everything.items() if uid is not None}
    rows = {
        Uid(uid): tuple(row)
        for uid, *row in tx.rows(f"SELECT uid, {COLUMNS} FROM accounts WHERE store = :store")  # noqa: S608 - names of our own tables and columns
    }
    found = []
    for uid in sorted(said.keys() | rows.keys()):
        holding = quota.limits_of(said.get(uid, Settings()), others)
        account = _shown(account_in(uid, rows[uid], holding)) if uid in rows else Account(uid, limits=holding)
        if uid in said or account.used or account.claimed:
            found.append(quota.at(account, now_ns))
    return found


def _basis(tx: Transaction, uid: Uid) -> Basis:
    sql = "SELECT version, used_bytes, used_files FROM accounts WHERE store = :store AND uid = :uid"
    version, used_bytes, used_files = tx.row(sql, uid=uid) or (0, 0, 0)
    files = tuple(
        OpenFile(MountId(mount.encode()), Inode(ino), Amount(base_bytes, base_files))
        for mount, ino, base_bytes, base_files in tx.rows(
            "SELECT mount, ino, base_bytes, base_files FROM open_files"
            " WHERE store = :store AND uid = :uid ORDER BY ino, mount",
            uid=uid,
        )
    )
    return Basis(version, Amount(used_bytes, used_files), files)
