"""Many callers at once: no limit is passed, no update is lost, nobody waits for ever."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Opened, Posting, Settled
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from tests.ledger.conftest import Where

ALICE, BOB = Uid(2101), Uid(2102)
MANY, FEW = 8, 3
HARD = Amount(100_000, 300)


def mount_of(number: int) -> MountId:
    return MountId(b"%016x" % number)


def drawing_until_refused(book: Book, number: int) -> Amount:
    """Draws a little at a time, posts half of it, until it gets nothing more. What this one has drawn."""
    mount, drawn, posts, dice = mount_of(number), NOTHING, 0, random.Random(number)
    has = NOTHING
    while True:
        wanted = Amount(dice.randrange(1, 500), 1)
        answer = book.draw(mount, ALICE, wanted, wanted)
        assert answer.account.total.bytes <= HARD.bytes
        assert answer.account.total.files <= HARD.files
        drawn += answer.total - has
        has = answer.total
        if not has.covers(wanted) or answer.account.total.files == HARD.files:
            return drawn
        posts += 1
        book.post(mount, posts, [Posting(ALICE, wanted, wanted)])
        has -= wanted


def opening_and_drawing(open_ledger: Callable[[], Book], number: int) -> Amount:
    book = open_ledger()
    try:
        return drawing_until_refused(book, number)
    finally:
        book.close()


@pytest.mark.parametrize("shared", [True, False], ids=["one ledger", "a ledger each"])
def test_threads_that_draw_at_the_limit_never_pass_it(where: Where, shared: bool) -> None:
    first = where.open()
    first.set_limits(ALICE, Settings(hard_bytes=HARD.bytes, hard_files=HARD.files))
    books = [first if shared else where.open() for _ in range(MANY)]
    with ThreadPoolExecutor(MANY) as pool:
        drawn = list(pool.map(drawing_until_refused, books, range(MANY)))
    account = first.account(ALICE)
    assert account.total == sum(drawn, NOTHING)
    assert account.total.files == HARD.files or account.total.bytes == HARD.bytes
    assert first.check() == []
    for book in {*books, first}:
        book.close()


def test_processes_that_draw_at_the_limit_never_pass_it(where: Where) -> None:
    book = where.open()
    book.set_limits(ALICE, Settings(hard_bytes=HARD.bytes, hard_files=HARD.files))
    book.close()

    with ProcessPoolExecutor(FEW, multiprocessing.get_context("spawn")) as pool:
        drawn = list(pool.map(opening_and_drawing, [where.open] * FEW, range(FEW)))
    book = where.open()
    assert book.account(ALICE).total == sum(drawn, NOTHING)
    assert book.check() == []
    book.close()


def test_whoever_moves_settles_recalls_and_ends_at_once_ends(where: Where) -> None:
    """Locks are taken in every order that the calls may want; all of it comes out even."""
    books = [where.open() for _ in range(4)]
    files = [Inode(number) for number in range(1, 9)]

    def busy(number: int) -> None:
        book, mount, dice = books[number], mount_of(number), random.Random(number)
        for post in range(1, 60):
            giver, taker = dice.sample([ALICE, BOB], 2)
            ino = dice.choice(files)
            book.draw(mount, taker, Amount(10), Amount(10), [Opened(ino, NOTHING)])
            book.move(giver, mount, taker, NOTHING, [Opened(ino, NOTHING)], post)
            book.recall(mount, giver)
            book.answer(mount, taker)
            book.post(
                mount,
                post,
                [
                    Posting(taker, given_up=Amount(10), settled=(Settled(ino, NOTHING),)),
                    Posting(giver, settled=(Settled(dice.choice(files), NOTHING),)),
                ],
            )
            if post % 20 == 0:
                book.set_limits(None, Settings(hard_bytes=post))
                book.recounted(giver, None, NOTHING, dead=[mount_of(dice.randrange(4))])
        for ino in files:
            book.post(mount, 1000 + ino, [Posting(ALICE, settled=(Settled(ino, NOTHING),))])
        book.end(mount)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(busy, range(4)))
    assert books[0].check() == []
    assert books[0].mounts() == {}
    for uid in (ALICE, BOB):
        assert books[0].account(uid).total == NOTHING
        assert books[0].basis(uid).files == ()
    for book in books:
        book.close()
