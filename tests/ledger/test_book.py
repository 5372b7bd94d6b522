"""What each call of a ledger does, and what it answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckfs.errors import UsageError
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Basis, Opened, OpenFile, Posting, Settled, Spent
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import (
    DEFAULT_GRACE_S,
    NOTHING,
    UNLIMITED,
    Account,
    Amount,
    Limit,
    Over,
    Said,
    Settings,
    grace_left_s,
)
from tests.support.clocks import WallClock

A, B, C = (MountId(letter * 16) for letter in (b"a", b"b", b"c"))
ALICE, BOB = Uid(2101), Uid(2102)
MIB = 1 << 20
FILE, OTHER = Inode((1 << 63) - 1), Inode(5)
DAY_S = 86_400.0


def bytes_(number: int, files: int = 0) -> Amount:
    return Amount(number, files)


def draw(ledger: Book, mount: MountId, uid: Uid, number: int, *opened: Opened) -> int:
    """Exactly so many bytes more; what the mount has in all then."""
    return ledger.draw(mount, uid, bytes_(number), bytes_(number), opened).total.bytes


def limited(ledger: Book, hard: int, soft: int | Said = Said.DEFAULT) -> None:
    ledger.set_limits(ALICE, Settings(hard_bytes=hard, soft_bytes=soft))


# Owners and limits


def test_one_of_whom_nothing_was_ever_heard_has_used_nothing(ledger: Book) -> None:
    assert ledger.account(ALICE) == Account(ALICE, NOTHING, NOTHING, UNLIMITED)
    assert ledger.accounts() == []
    assert ledger.settings(ALICE) == ledger.settings(None) == Settings()


def test_what_is_said_of_one_goes_before_what_is_said_of_all(ledger: Book) -> None:
    ledger.set_limits(None, Settings(soft_bytes=10, hard_bytes=20, hard_files=7, grace_s=60))
    ledger.set_limits(ALICE, Settings(hard_bytes=Said.NONE, soft_files=3, grace_s=Said.NONE))
    assert ledger.account(BOB).limits.bytes == Limit(10, 20)
    assert ledger.account(BOB).limits.grace_s == 60
    assert ledger.account(ALICE).limits.bytes == Limit(10, None)
    assert ledger.account(ALICE).limits.files == Limit(3, 7)
    assert ledger.account(ALICE).limits.grace_s is None


def test_everything_that_was_said_can_be_read_again(ledger: Book) -> None:
    others = Settings(soft_bytes=1, hard_bytes=Said.NONE, soft_files=0, hard_files=1 << 62, grace_s=0)
    ledger.set_limits(None, others)
    ledger.set_limits(ALICE, Settings(hard_bytes=5))
    ledger.set_limits(ALICE, Settings(hard_bytes=6, grace_s=Said.NONE))
    ledger.set_limits(BOB, Settings(hard_bytes=5))
    ledger.set_limits(BOB, Settings())
    assert ledger.all_settings() == {None: others, ALICE: Settings(hard_bytes=6, grace_s=Said.NONE)}
    assert ledger.settings(ALICE) == Settings(hard_bytes=6, grace_s=Said.NONE)


@pytest.mark.parametrize("value", [-1, (1 << 62) + 1])
def test_limits_that_no_ledger_can_hold_are_refused(ledger: Book, value: int) -> None:
    with pytest.raises(UsageError, match=r"^hard of bytes: "):
        ledger.set_limits(ALICE, Settings(hard_bytes=value))
    assert ledger.all_settings() == {}


def test_accounts_are_of_those_who_use_claim_or_may_something_by_uid(ledger: Book) -> None:
    ledger.set_limits(Uid(2109), Settings(hard_files=1))
    ledger.post(A, 1, [Posting(BOB, bytes_(4096, 1)), Posting(Uid(2108))])
    draw(ledger, A, ALICE, 5)
    assert [(account.uid, account.total.bytes) for account in ledger.accounts()] == [
        (ALICE, 5),
        (BOB, 4096),
        (2109, 0),
    ]
    assert ledger.accounts()[2].limits.files == Limit(None, 1)


# Draws


def test_what_is_drawn_adds_up_and_is_claimed(ledger: Book) -> None:
    assert draw(ledger, A, ALICE, 4096) == 4096
    assert draw(ledger, A, ALICE, 100) == 4196
    drawn = ledger.draw(A, ALICE, bytes_(4, 1), bytes_(MIB, 64))
    assert drawn.total == bytes_(4196 + MIB, 64)
    assert drawn.account == ledger.account(ALICE)
    assert ledger.account(ALICE).claimed == drawn.total
    assert ledger.account(ALICE).used == NOTHING


@pytest.mark.parametrize(
    ("least", "granted"), [(999, 999), (1000, 1000), (1001, 1000), (1 << 50, 1000)], ids=str
)
def test_nothing_is_granted_beyond_the_hard_limit(ledger: Book, least: int, granted: int) -> None:
    limited(ledger, 1000)
    assert draw(ledger, A, ALICE, least) == granted


def test_files_are_limited_like_bytes(ledger: Book) -> None:
    ledger.set_limits(ALICE, Settings(hard_files=3))
    drawn = ledger.draw(A, ALICE, Amount(10, 5), Amount(10, 5))
    assert drawn.total == Amount(10, 3)


def test_what_one_mount_has_the_other_cannot_get(ledger: Book) -> None:
    limited(ledger, 1000)
    assert draw(ledger, A, ALICE, 600) == 600
    assert draw(ledger, B, ALICE, 600) == 400
    assert draw(ledger, B, BOB, 600) == 600


def test_a_draw_of_nothing_says_how_things_stand(ledger: Book) -> None:
    first = ledger.draw(A, ALICE, NOTHING, NOTHING)
    assert (first.total, first.account.total, first.others_hold) == (NOTHING, NOTHING, False)
    draw(ledger, A, ALICE, 10)
    draw(ledger, B, ALICE, 5)
    again = ledger.draw(A, ALICE, NOTHING, NOTHING)
    assert (again.grant, again.total, again.others_hold) == (first.grant, bytes_(10), True)


def test_others_hold_until_they_have_given_up(ledger: Book) -> None:
    draw(ledger, B, ALICE, 5)
    assert ledger.draw(A, ALICE, bytes_(1), bytes_(1)).others_hold
    ledger.post(B, 1, [Posting(ALICE, given_up=bytes_(5))])
    assert not ledger.draw(A, ALICE, bytes_(1), bytes_(1)).others_hold


def test_limits_that_are_lowered_below_what_is_used_take_nothing_away(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(5000))])
    draw(ledger, A, ALICE, 100)
    limited(ledger, 1000)
    assert draw(ledger, A, ALICE, 1) == 100
    assert ledger.account(ALICE).total == bytes_(5100)


# Posts


def test_what_is_posted_is_used_and_the_grant_gets_smaller(ledger: Book) -> None:
    draw(ledger, A, ALICE, 10_000)
    ledger.post(A, 1, [Posting(ALICE, bytes_(4096, 1), bytes_(8192)), Posting(BOB, bytes_(7))])
    assert ledger.account(ALICE).used == bytes_(4096, 1)
    assert ledger.account(ALICE).claimed == bytes_(10_000 - 8192)
    assert ledger.account(BOB).used == bytes_(7)
    assert draw(ledger, A, ALICE, 0) == 10_000 - 8192


def test_a_post_that_was_taken_up_already_is_passed_over(ledger: Book) -> None:
    posting = [Posting(ALICE, bytes_(10))]
    for number in (1, 1, 2, 1, 2):
        ledger.post(A, number, posting)
    ledger.post(B, 1, posting)
    assert ledger.account(ALICE).used == bytes_(30)


def test_usage_is_never_shown_as_less_than_nothing(ledger: Book) -> None:
    """One mount posts that it removed a file before the other one has posted that it made it."""
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    ledger.post(A, 2, [Posting(ALICE, bytes_(-11, -2))])
    assert ledger.account(ALICE).used == NOTHING
    ledger.post(B, 1, [Posting(ALICE, bytes_(4, 2))])
    assert ledger.account(ALICE).used == bytes_(3, 1)


def test_what_is_freed_before_its_writer_has_posted_it_is_claimed_by_that_one(ledger: Book) -> None:
    limited(ledger, 100)
    draw(ledger, A, ALICE, 80)
    ledger.post(B, 1, [Posting(ALICE, used=bytes_(-60))])
    draw(ledger, B, ALICE, 50)
    assert (ledger.account(ALICE).used, ledger.account(ALICE).claimed) == (NOTHING, bytes_(70))
    ledger.post(A, 1, [Posting(ALICE, used=bytes_(60), given_up=bytes_(60))])
    assert ledger.account(ALICE).total == bytes_(70)


def test_a_mount_cannot_give_up_what_it_has_not(ledger: Book) -> None:
    draw(ledger, A, ALICE, 10)
    draw(ledger, B, ALICE, 20)
    ledger.post(A, 1, [Posting(ALICE, given_up=bytes_(15, 3))])
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(-40))])
    assert ledger.account(ALICE).claimed == bytes_(20)


# Files that are being written


def test_a_file_that_is_written_counts_with_its_base_until_it_is_settled(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(1000, 1))])
    draw(ledger, A, ALICE, 500, Opened(FILE, bytes_(1000, 1)))
    assert ledger.account(ALICE).used == bytes_(1000, 1)
    assert ledger.basis(ALICE).files == (OpenFile(A, FILE, bytes_(1000, 1)),)
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(500), settled=(Settled(FILE, bytes_(1400, 1)),))])
    assert ledger.account(ALICE).used == bytes_(1400, 1)
    assert ledger.basis(ALICE).files == ()


def test_one_that_is_noted_already_stays_as_it_is(ledger: Book) -> None:
    draw(ledger, A, ALICE, 0, Opened(FILE, bytes_(10, 1)))
    draw(ledger, A, ALICE, 0, Opened(FILE, bytes_(99, 1)), Opened(OTHER, NOTHING))
    assert ledger.basis(ALICE).files == (
        OpenFile(A, OTHER, NOTHING),
        OpenFile(A, FILE, bytes_(10, 1)),
    )


def test_files_are_noted_also_when_nothing_is_granted(ledger: Book) -> None:
    limited(ledger, 0)
    assert draw(ledger, A, ALICE, 10, Opened(FILE, NOTHING)) == 0
    assert ledger.basis(ALICE).files == (OpenFile(A, FILE, NOTHING),)


def test_a_file_that_was_not_noted_is_not_settled(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, settled=(Settled(FILE, bytes_(10, 1)),))])
    draw(ledger, B, ALICE, 0, Opened(FILE, NOTHING))
    ledger.post(A, 2, [Posting(ALICE, settled=(Settled(FILE, bytes_(10, 1)),))])
    assert ledger.account(ALICE).used == NOTHING
    assert ledger.basis(ALICE).files == (OpenFile(B, FILE, NOTHING),)


def test_who_ends_while_others_write_the_file_leaves_what_was_claimed_in_it(ledger: Book) -> None:
    limited(ledger, 22)
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    draw(ledger, A, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    draw(ledger, B, ALICE, 7, Opened(FILE, bytes_(10, 1)))
    left = Settled(FILE, bytes_(15, 1), bytes_(10, 1), is_last=False)
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(5), settled=(left,))])
    assert ledger.account(ALICE).used == bytes_(15, 1)
    assert ledger.account(ALICE).total == bytes_(22, 1)
    assert ledger.basis(ALICE).files == (OpenFile(B, FILE, bytes_(15, 1)),)


def test_what_is_settled_adds_up_in_whatever_order_it_is_heard(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    for mount in (A, B):
        draw(ledger, mount, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    last = Settled(FILE, bytes_(12, 1), bytes_(15, 1))
    ledger.post(B, 1, [Posting(ALICE, given_up=bytes_(5), settled=(last,))])
    assert ledger.account(ALICE).total == bytes_(12, 1)  # of that, 5 are what A has yet to tell
    left = Settled(FILE, bytes_(15, 1), bytes_(10, 1), is_last=False)
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(5), settled=(left,))])
    assert ledger.account(ALICE).used == bytes_(12, 1)
    assert ledger.basis(ALICE).files == ()


def test_the_last_that_settles_a_file_without_a_name_frees_it(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    draw(ledger, A, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    gone = Settled(FILE, NOTHING, bytes_(10, 1))
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(5), settled=(gone,))])
    assert ledger.account(ALICE).total == NOTHING


def test_what_dead_mounts_have_written_is_claimed_no_more_once_it_is_settled(ledger: Book) -> None:
    limited(ledger, 100)
    draw(ledger, A, ALICE, 20, Opened(FILE, bytes_(10, 1)))
    draw(ledger, B, ALICE, 30)
    draw(ledger, C, ALICE, 40)
    settled, spent = Settled(FILE, bytes_(65, 1), bytes_(10, 1)), Spent((B, C), bytes_(45))
    postings = [Posting(ALICE, bytes_(10, 1), bytes_(10), (settled,), (spent,))]
    for _ in range(2):
        ledger.post(A, 1, postings)
    account = ledger.account(ALICE)
    assert (account.used, account.claimed) == (bytes_(65, 1), bytes_(35))
    assert [draw(ledger, mount, ALICE, 0) for mount in (A, B, C)] == [10, 0, 25]


def test_what_a_recount_took_back_already_is_not_taken_again(ledger: Book) -> None:
    draw(ledger, A, ALICE, 20)
    draw(ledger, B, ALICE, 30)
    draw(ledger, B, BOB, 7)
    ledger.recounted(ALICE, None, bytes_(5), dead=[B])
    ledger.post(A, 1, [Posting(ALICE, spent=(Spent((B, C), bytes_(25)),))])
    assert ledger.account(ALICE).claimed == bytes_(20)
    assert ledger.account(BOB).claimed == bytes_(7)


def test_a_file_that_is_counted_in_between_stays_noted_with_what_it_takes_then(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    draw(ledger, A, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    between = Settled(FILE, bytes_(14, 1), bytes_(10, 1), goes_on=True)
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(5), settled=(between,))])
    assert ledger.account(ALICE).total == bytes_(14, 1)
    assert ledger.basis(ALICE).files == (OpenFile(A, FILE, bytes_(14, 1)),)
    version = ledger.basis(ALICE).version
    ledger.post(A, 3, [Posting(ALICE, settled=(Settled(FILE, bytes_(14, 1), bytes_(14, 1), goes_on=True),))])
    assert ledger.basis(ALICE).version == version


def test_what_a_file_grows_by_that_is_written_belongs_to_its_base(ledger: Book) -> None:
    draw(ledger, A, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    draw(ledger, B, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    ledger.post(
        C, 1, [Posting(ALICE, bytes_(14, 1), grown=(Opened(FILE, bytes_(4)), Opened(OTHER, bytes_(4))))]
    )
    grown = bytes_(14, 1)
    assert ledger.basis(ALICE).files == (OpenFile(A, FILE, grown), OpenFile(B, FILE, grown))
    assert ledger.account(ALICE).used == grown


def test_one_that_was_handed_over_is_counted_in_between_for_the_new_owner(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    draw(ledger, A, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    draw(ledger, B, BOB, 12)
    ledger.move(ALICE, B, BOB, bytes_(12, 1), [Opened(FILE, bytes_(12, 1))])
    between = Settled(FILE, bytes_(15, 1), bytes_(10, 1), goes_on=True)
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(5), settled=(between,))])
    assert (ledger.account(ALICE).total, ledger.account(BOB).used) == (NOTHING, bytes_(15, 1))
    assert ledger.basis(BOB).files == (OpenFile(A, FILE, bytes_(15, 1)),)


def test_what_changes_nothing_at_rest_leaves_the_version_alone(ledger: Book) -> None:
    """A recount of somebody who tries again and again at his limit comes to an end."""
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    draw(ledger, A, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    version = ledger.basis(ALICE).version
    same = Settled(FILE, bytes_(10, 1), bytes_(10, 1))
    ledger.post(A, 2, [Posting(ALICE, given_up=bytes_(5), settled=(same,))])
    assert ledger.basis(ALICE).version == version
    ledger.post(A, 3, [Posting(ALICE, bytes_(1))])
    assert ledger.basis(ALICE).version != version


# Handing over


def test_a_move_is_one_step_from_the_giver_to_the_taker(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(1000, 3))])
    ledger.draw(A, BOB, bytes_(700, 2), bytes_(700, 2))
    ledger.move(ALICE, A, BOB, bytes_(600, 2), [])
    assert ledger.account(ALICE).total == bytes_(400, 1)
    assert ledger.account(BOB).used == bytes_(600, 2)
    assert ledger.account(BOB).claimed == bytes_(100)


def test_what_is_settled_after_a_move_is_charged_to_the_new_owner(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(10, 1))])
    for mount in (A, B):
        draw(ledger, mount, ALICE, 5, Opened(FILE, bytes_(10, 1)))
    draw(ledger, A, BOB, 100)
    ledger.move(ALICE, A, BOB, bytes_(12, 1), [Opened(FILE, bytes_(12, 1))])
    assert ledger.account(ALICE).used == NOTHING  # 10 were hers, and 2 are claimed
    assert ledger.basis(ALICE).files == ()
    assert ledger.basis(BOB).files == (OpenFile(A, FILE, bytes_(12, 1)), OpenFile(B, FILE, bytes_(12, 1)))
    assert BOB in ledger.mounts()[B]  # if that dies, he is recounted
    # B has not heard of it
    ledger.post(B, 1, [Posting(ALICE, given_up=bytes_(5), settled=(Settled(FILE, bytes_(17, 1)),))])
    assert ledger.account(BOB).used == bytes_(17, 1)
    assert ledger.account(ALICE).used == NOTHING


def test_who_begins_to_write_what_was_handed_over_does_so_for_the_new_owner(ledger: Book) -> None:
    draw(ledger, A, BOB, 0, Opened(FILE, bytes_(12, 1)))
    draw(ledger, B, ALICE, 0, Opened(FILE, bytes_(10, 1)))
    assert ledger.basis(BOB).files == (OpenFile(A, FILE, bytes_(12, 1)), OpenFile(B, FILE, bytes_(12, 1)))
    assert ledger.mounts()[B] == {ALICE, BOB}


def test_a_move_that_was_taken_up_already_is_passed_over(ledger: Book) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(100))])
    draw(ledger, A, BOB, 100)
    for number in (7, 3, 7, 3):
        ledger.move(ALICE, A, BOB, bytes_(10), [], number)
    assert ledger.account(BOB).used == bytes_(20)
    assert ledger.account(BOB).claimed == bytes_(80)


# Recalls


def test_a_recall_asks_those_who_have_something_until_they_answer(ledger: Book) -> None:
    for mount in (A, B, C):
        draw(ledger, mount, ALICE, 5)
    draw(ledger, B, BOB, 5)
    ledger.post(C, 1, [Posting(ALICE, given_up=bytes_(5))])
    ledger.recall(A, ALICE)
    assert [ledger.recalled(mount) for mount in (A, B, C)] == [set(), {ALICE}, set()]
    assert ledger.waits_for(A, ALICE)
    assert not ledger.waits_for(B, ALICE)
    assert not ledger.waits_for(A, BOB)
    ledger.answer(B, ALICE)
    assert ledger.recalled(B) == set()
    assert not ledger.waits_for(A, ALICE)


def test_nobody_waits_for_a_mount_that_ends_or_is_dead(ledger: Book) -> None:
    for mount in (A, B, C):
        draw(ledger, mount, ALICE, 5)
    ledger.recall(A, ALICE)
    ledger.end(B)
    assert ledger.waits_for(A, ALICE)
    ledger.recounted(ALICE, None, NOTHING, dead=[C])
    assert not ledger.waits_for(A, ALICE)


def test_who_has_yet_to_give_back_is_known(ledger: Book) -> None:
    draw(ledger, A, ALICE, 5)
    draw(ledger, A, BOB, 5)
    draw(ledger, B, ALICE, 5)
    assert ledger.asked_back() == {}
    ledger.recall(C, ALICE)
    ledger.recall(C, BOB)
    assert ledger.asked_back() == {A: {ALICE, BOB}, B: {ALICE}}
    ledger.answer(A, ALICE)
    ledger.end(B)
    assert ledger.asked_back() == {A: {BOB}}


def test_who_writes_unseen_is_known_until_he_or_his_mount_ends(ledger: Book) -> None:
    for mount, uid in ((A, ALICE), (A, BOB), (B, ALICE), (C, BOB)):
        ledger.say_unseen(mount, uid, is_so=True)
        ledger.say_unseen(mount, uid, is_so=True)
    assert ledger.unseen() == {A: {ALICE, BOB}, B: {ALICE}, C: {BOB}}
    ledger.say_unseen(A, BOB, is_so=False)
    ledger.say_unseen(A, BOB, is_so=False)
    ledger.end(B)
    assert ledger.mounts()[C] == {BOB}
    ledger.recounted(BOB, None, NOTHING, dead=[C])
    assert ledger.unseen() == {A: {ALICE}}


def test_nobody_waits_for_a_mount_that_has_given_up_all_of_its_own_accord(ledger: Book) -> None:
    draw(ledger, B, ALICE, 5)
    ledger.recall(A, ALICE)
    ledger.post(B, 1, [Posting(ALICE, given_up=bytes_(5))])
    assert not ledger.waits_for(A, ALICE)
    assert ledger.asked_back() == {}


def test_new_limits_ask_all_to_give_back(ledger: Book) -> None:
    draw(ledger, A, ALICE, 5)
    draw(ledger, A, BOB, 5)
    limited(ledger, 100)
    assert ledger.recalled(A) == {ALICE}
    ledger.set_limits(None, Settings(hard_bytes=50))
    assert ledger.recalled(A) == {ALICE, BOB}


# Ends and recounts


def test_a_mount_that_ends_gives_up_its_grants_and_is_forgotten(ledger: Book) -> None:
    draw(ledger, A, ALICE, 50)
    draw(ledger, B, ALICE, 5)
    ledger.post(A, 1, [Posting(ALICE, bytes_(10), bytes_(10))])
    ledger.end(A)
    assert ledger.account(ALICE).used == bytes_(10)
    assert ledger.account(ALICE).claimed == bytes_(5)
    assert ledger.mounts() == {B: {ALICE}}
    ledger.end(A)
    ledger.end(C)


def test_mounts_are_known_with_whom_they_had_to_do_with(ledger: Book) -> None:
    draw(ledger, A, ALICE, 50)
    ledger.post(A, 1, [Posting(ALICE, given_up=bytes_(50)), Posting(BOB, bytes_(-1))])
    ledger.post(B, 1, [])
    assert ledger.mounts() == {A: {ALICE, BOB}, B: set()}


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger: ledger.post(A, 1, [Posting(ALICE, bytes_(1))]),
        lambda ledger: draw(ledger, A, ALICE, 0, Opened(FILE, NOTHING)),
        lambda ledger: ledger.move(ALICE, A, BOB, bytes_(1), []),
        lambda ledger: ledger.move(BOB, A, ALICE, bytes_(1), []),
        lambda ledger: ledger.recounted(ALICE, None, NOTHING),
        lambda ledger: (draw(ledger, A, ALICE, 1), ledger.end(A)),
    ],
    ids=["post", "open", "give", "take", "recount", "end"],
)
def test_a_recount_is_refused_if_anything_happened_meanwhile(
    ledger: Book, change: Callable[[Book], object]
) -> None:
    version = ledger.basis(ALICE).version
    change(ledger)
    assert not ledger.recounted(ALICE, version, bytes_(77))
    assert ledger.account(ALICE).used.bytes != 77
    assert ledger.recounted(ALICE, ledger.basis(ALICE).version, bytes_(77))
    assert ledger.account(ALICE).used.bytes == 77


def test_a_draw_does_not_disturb_a_recount(ledger: Book) -> None:
    version = ledger.basis(ALICE).version
    draw(ledger, A, ALICE, 10)
    ledger.post(B, 1, [Posting(BOB, bytes_(1))])
    assert ledger.basis(ALICE) == Basis(version, NOTHING, ())
    assert ledger.recounted(ALICE, version, bytes_(77))
    assert ledger.account(ALICE).total == bytes_(87)


def test_a_dead_mount_loses_its_grants_and_notes_in_the_step_of_the_recount(ledger: Book) -> None:
    draw(ledger, A, ALICE, 100, Opened(FILE, NOTHING), Opened(OTHER, NOTHING))
    draw(ledger, B, ALICE, 30, Opened(OTHER, NOTHING))
    draw(ledger, A, BOB, 5)
    assert ledger.recounted(
        ALICE, None, bytes_(60, 2), dead=[A], bases=[Opened(OTHER, bytes_(20, 1)), Opened(FILE, NOTHING)]
    )
    assert ledger.account(ALICE).used == bytes_(60, 2)
    assert ledger.account(ALICE).claimed == bytes_(30)
    assert ledger.basis(ALICE).files == (OpenFile(B, OTHER, bytes_(20, 1)),)
    assert ledger.mounts() == {A: {BOB}, B: {ALICE}}
    ledger.recounted(BOB, None, NOTHING, dead=[A])
    ledger.forget(A)
    assert ledger.mounts() == {B: {ALICE}}


def test_a_mount_that_returns_sees_that_its_grant_is_another_one(ledger: Book) -> None:
    first = ledger.draw(A, ALICE, bytes_(100), bytes_(100))
    ledger.recounted(ALICE, None, NOTHING, dead=[A])
    ledger.post(A, 1, [Posting(ALICE, given_up=bytes_(50))])
    again = ledger.draw(A, ALICE, bytes_(10), bytes_(10))
    assert again.total == again.account.total == bytes_(10)
    assert again.grant != first.grant
    assert ledger.draw(A, ALICE, NOTHING, NOTHING).grant == again.grant


def test_a_recount_of_others_dead_mounts_leaves_a_grant_as_it_is(ledger: Book) -> None:
    first = ledger.draw(A, ALICE, bytes_(100), bytes_(100))
    draw(ledger, B, ALICE, 1)
    ledger.recounted(ALICE, None, NOTHING, dead=[B])
    assert ledger.draw(A, ALICE, NOTHING, NOTHING).grant == first.grant


def test_a_mount_that_has_returned_is_not_forgotten(ledger: Book) -> None:
    ledger.recounted(ALICE, None, NOTHING, dead=[A])
    draw(ledger, A, ALICE, 10)
    ledger.forget(A)
    assert ledger.mounts() == {A: {ALICE}}


def test_posts_of_one_that_is_forgotten_begin_anew(ledger: Book) -> None:
    ledger.post(A, 9, [])
    ledger.forget(A)
    assert ledger.mounts() == {}


def test_a_new_ledger_does_not_know_the_store_until_all_was_counted(ledger: Book) -> None:
    assert ledger.counted_as() is None
    ledger.all_counted("one")
    ledger.all_counted("one")
    assert ledger.counted_as() == "one"
    ledger.all_counted(None)
    assert ledger.counted_as() is None


# Grace


def over(account: Account) -> float | None:
    return grace_left_s(account.over_bytes, account.limits)


def test_a_soft_limit_holds_after_its_grace(ledger: Book, clock: WallClock) -> None:
    limited(ledger, hard=1000, soft=100)
    assert draw(ledger, A, ALICE, 100) == 100
    assert ledger.account(ALICE).over_bytes is None
    assert draw(ledger, A, ALICE, 1) == 101
    assert ledger.account(ALICE).over_bytes == Over(0.0, clock.now_ns)
    clock.forward(DEFAULT_GRACE_S - 1)
    assert over(ledger.account(ALICE)) == 1
    assert draw(ledger, A, ALICE, 10) == 111
    clock.forward(1)
    assert draw(ledger, A, ALICE, 10) == 111
    assert over(ledger.account(ALICE)) == 0


def test_grace_begins_anew_once_he_was_below(ledger: Book, clock: WallClock) -> None:
    limited(ledger, hard=1000, soft=100)
    draw(ledger, A, ALICE, 200)
    clock.forward(2 * DEFAULT_GRACE_S)
    ledger.post(A, 1, [Posting(ALICE, bytes_(100), bytes_(200))])
    assert ledger.account(ALICE).over_bytes is None
    draw(ledger, A, ALICE, 1)
    assert over(ledger.account(ALICE)) == DEFAULT_GRACE_S


def test_a_clock_that_is_set_back_gives_no_time_again(ledger: Book, clock: WallClock) -> None:
    limited(ledger, hard=1000, soft=100)
    draw(ledger, A, ALICE, 101)
    clock.forward(5 * DAY_S)
    draw(ledger, A, ALICE, 1)
    clock.back(100 * DAY_S)
    draw(ledger, A, ALICE, 1)
    assert over(ledger.account(ALICE)) == 2 * DAY_S
    clock.forward(2 * DAY_S)
    assert draw(ledger, A, ALICE, 1) == 103


@pytest.mark.parametrize("whose", [ALICE, None], ids=["his own", "everybody's"])
def test_grace_begins_when_a_limit_is_lowered(ledger: Book, clock: WallClock, whose: Uid | None) -> None:
    ledger.post(A, 1, [Posting(ALICE, bytes_(200))])
    ledger.set_limits(whose, Settings(soft_bytes=100))
    clock.forward(DAY_S)
    assert over(ledger.account(ALICE)) == DEFAULT_GRACE_S - DAY_S
    assert [over(account) for account in ledger.accounts()] == [DEFAULT_GRACE_S - DAY_S]


def test_grace_of_files_runs_by_itself(ledger: Book, clock: WallClock) -> None:
    ledger.set_limits(ALICE, Settings(soft_files=1, grace_s=60))
    ledger.draw(A, ALICE, Amount(0, 2), Amount(0, 2))
    clock.forward(60)
    drawn = ledger.draw(A, ALICE, Amount(5, 1), Amount(5, 1))
    assert drawn.total == Amount(5, 2)
    assert drawn.account.over_bytes is None
    assert drawn.account.over_files == Over(60.0, clock.now_ns)
