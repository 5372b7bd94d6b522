"""What a mount was granted for one owner, and what became of it: total == balance + held + what was given up and not posted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckfs.fs.purse import Purse
from ckfs.ledger.ledger import Drawn, Opened, Posting, Settled, Spent
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Account, Amount

UID, DEAD = Uid(2101), MountId(b"a")


def drawn(total: Amount, grant: int = 1) -> Drawn:
    return Drawn(grant, total, Account(UID), others_hold=False)


def purse(bytes_: int, files: int = 10) -> Purse:
    made = Purse(UID)
    assert made.drawn(drawn(Amount(bytes_, files)))
    return made


def test_only_what_is_there_can_be_taken() -> None:
    one = purse(100)
    assert not one.take(Amount(101))
    assert not one.take(Amount(0, 11))
    assert one.take(Amount(100, 10))
    assert (one.balance, one.held) == (NOTHING, Amount(100, 10))


def test_bytes_alone_are_taken_as_well() -> None:
    one = purse(100)
    assert not one.take_bytes(101)
    assert one.take_bytes(100)
    assert (one.balance, one.held) == (Amount(0, 10), Amount(100))


def test_it_is_idle_from_the_first_look_that_finds_it_unused() -> None:
    one = purse(100)
    one.is_used = True
    assert [one.idle_s(7.0), one.idle_s(8.0), one.idle_s(9.5)] == [0.0, 1.0, 2.5]
    one.is_used = True
    assert one.idle_s(10.0) == 0.0


def test_what_was_made_of_a_grant_changes_nothing_of_how_much_there_is_yet() -> None:
    one = purse(100)
    one.spend(Amount(30, 1))
    assert not one.changes_room


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.spend(Amount(-10)),
        lambda one: one.spend(Amount(101)),  # more than was granted
        lambda one: one.settle(Settled(Inode(1), Amount(10)), NOTHING),
        lambda one: one.spent_by({DEAD}, Amount(10)),
        lambda one: one.give_up_balance(),
    ],
)
def test_all_else_that_is_to_be_posted_does(change: Callable[[Purse], None]) -> None:
    one = purse(100)
    change(one)
    assert one.changes_room


def test_it_knows_of_which_files_there_is_something_to_post() -> None:
    one = purse(100)
    one.settle(Settled(Inode(2), Amount(10)), NOTHING)
    assert [one.has_news_of({Inode(ino)}) for ino in range(4)] == [False, False, True, False]
    one.posting()
    assert not one.has_news_of({Inode(1), Inode(2)})


def test_what_was_not_needed_is_there_again() -> None:
    one = purse(100)
    one.take(Amount(60))
    one.give_back(Amount(60))
    assert one.balance == Amount(100, 10)
    assert not one.has_news


def test_what_was_made_comes_out_of_the_balance() -> None:
    one = purse(100)
    one.spend(Amount(30, 1))
    assert one.balance == Amount(70, 9)
    assert one.posting() == Posting(UID, used=Amount(30, 1), given_up=Amount(30, 1))


def test_what_nobody_claimed_is_posted_all_the_same() -> None:
    one = purse(10, 0)
    one.spend(Amount(30, 1))
    assert one.posting() == Posting(UID, used=Amount(30, 1), given_up=Amount(10, 0))


def test_what_was_freed_gives_nothing_up() -> None:
    one = purse(100)
    one.spend(Amount(-30, -1))
    assert one.posting() == Posting(UID, used=Amount(-30, -1))


def test_a_settled_file_gives_up_what_was_held_for_it() -> None:
    one = purse(100)
    one.take(Amount(40))
    one.settle(Settled(Inode(7), Amount(32, 1)), Amount(40))
    assert one.held == NOTHING
    assert one.posting() == Posting(UID, given_up=Amount(40), settled=(Settled(Inode(7), Amount(32, 1)),))


def test_what_a_file_has_grown_by_before_it_was_counted_was_seen_with_it() -> None:
    one = purse(100)
    one.grown(Opened(Inode(1), Amount(4)))
    one.settle(Settled(Inode(1), Amount(10), goes_on=True), NOTHING)
    one.grown(Opened(Inode(1), Amount(2)))
    assert one.has_news_of({Inode(1)})
    assert one.posting().grown == (Opened(Inode(1), Amount(2)),)
    assert not one.has_news_of({Inode(1)})


def test_what_the_dead_have_written_is_posted_as_spent_by_them() -> None:
    one = purse(100)
    one.spent_by({MountId(b"b"), DEAD}, Amount(40))
    one.spent_by({DEAD}, Amount(-8))  # less than was counted already
    one.spent_by(set(), Amount(40))  # nobody has died
    assert one.posting() == Posting(UID, spent=(Spent((DEAD, MountId(b"b")), Amount(40)),))
    assert not one.has_news


def test_a_draw_says_what_there_is_in_all() -> None:
    one = purse(100)
    one.take(Amount(40))
    assert one.drawn(drawn(Amount(300, 10)))
    assert one.balance == Amount(260, 10)


def test_what_was_given_up_and_is_not_posted_is_no_balance() -> None:
    one = purse(100)
    one.spend(Amount(30))
    posting = one.posting()
    assert one.drawn(drawn(Amount(100, 10)))  # the posting is on its way
    assert one.balance == Amount(70, 10)
    one.posted(posting)
    assert one.drawn(drawn(Amount(70, 10)))
    assert one.balance == Amount(70, 10)


def test_a_grant_that_was_taken_back_leaves_nothing_held() -> None:
    one = purse(100)
    one.take(Amount(40))
    assert not one.drawn(drawn(Amount(5, 1), grant=2))
    assert (one.balance, one.held) == (Amount(5, 1), NOTHING)


def test_nothing_of_another_mounts_grant_is_kept() -> None:
    one = purse(100)
    one.disown()
    assert not one.drawn(drawn(Amount(5, 1)))


def test_a_purse_that_was_given_back_and_posted_is_empty() -> None:
    one = purse(100)
    one.give_up_balance()
    assert not one.is_empty
    posting = one.posting()
    assert not one.is_empty
    one.posted(posting)
    assert one.is_empty
