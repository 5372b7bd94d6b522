"""The table of docs/design.md, section 2: who may take a name, whom it belongs to, who makes things in it."""

from __future__ import annotations

import errno
from contextlib import nullcontext

import pytest

from ckfs.errors import Denied, FsError, NotOwner
from ckfs.model import Caller, Owner
from ckfs.names import Gid, SetName, Uid
from ckfs.policy import ownership, settings

POLICY = settings.parse("")
BATCH, OLD, OTHER = SetName(b"12.server.CK"), SetName(b"12.server.CK.old"), SetName(b"criu-images")


def caller(uid: int, gid: int | None = None) -> Caller:
    return Caller(Uid(uid), Gid(uid if gid is None else gid), pid=0, umask=0)


def owner(uid: int, gid: int | None = None) -> Owner:
    return Owner(Uid(uid), Gid(uid if gid is None else gid))


ROOT, ALICE, BOB = caller(0), caller(2101), caller(2102)
ROOTS, ALICES, BOBS = owner(0), owner(2101), owner(2102)

TAKE = [
    # name, caller, the job's owner if known: may he take it, and whose is the set?
    (OTHER, ALICE, None, True, ALICES),
    (OTHER, BOB, None, True, BOBS),
    (OTHER, ROOT, None, True, ROOTS),
    (BATCH, ALICE, None, False, None),
    (BATCH, ALICE, ALICES, True, ALICES),
    (BATCH, BOB, ALICES, False, None),
    (BATCH, ROOT, None, True, None),
    (BATCH, ROOT, ALICES, True, ALICES),
    (OLD, ALICE, None, False, None),
    (OLD, ALICE, ALICES, True, ALICES),
    (OLD, BOB, ALICES, False, None),
    (OLD, ROOT, None, True, None),
    (OLD, ROOT, BOBS, True, BOBS),
]


@pytest.mark.parametrize(("name", "who", "job_owner", "may", "whose"), TAKE)
def test_taking_a_name(
    name: SetName, who: Caller, job_owner: Owner | None, *, may: bool, whose: Owner | None
) -> None:
    with nullcontext() if may else pytest.raises(Denied):
        ownership.check_take(POLICY, name, who, job_owner)
    if may:
        assert ownership.owner_of_new(POLICY, name, who, job_owner) == whose


def test_a_user_s_set_has_the_group_that_he_made_it_with() -> None:
    assert ownership.owner_of_new(POLICY, OTHER, caller(2101, 100), None) == owner(2101, 100)
    assert ownership.owner_of_new(POLICY, BATCH, ROOT, owner(2101, 100)) == owner(2101, 100)


def test_who_the_job_belongs_to_is_a_matter_of_the_uid_alone() -> None:
    ownership.check_take(POLICY, BATCH, caller(2101, 100), owner(2101, 200))
    with pytest.raises(Denied):
        ownership.check_take(POLICY, BATCH, caller(2102, 200), owner(2101, 200))


CREATE = [
    # name of the set, its owner, caller: may he create in it (as far as ckfs is concerned)?
    (OTHER, ALICES, ALICE, True),
    (OTHER, ALICES, BOB, True),
    (OTHER, ALICES, ROOT, True),
    (OTHER, ROOTS, ALICE, True),
    (BATCH, ALICES, ALICE, True),
    (BATCH, ALICES, BOB, False),
    (BATCH, ALICES, ROOT, True),
    (BATCH, ROOTS, ALICE, False),
    (BATCH, ROOTS, ROOT, True),
    (OLD, ALICES, BOB, False),
    (OLD, ALICES, ALICE, True),
    (BATCH, None, ALICE, False),
    (BATCH, None, ROOT, True),
    # An unclaimed set that has been renamed is still nobody's.
    (OTHER, None, ALICE, False),
    (OTHER, None, ROOT, True),
]


@pytest.mark.parametrize(("name", "whose", "who", "may"), CREATE)
def test_creating_in_a_set(name: SetName, whose: Owner | None, who: Caller, *, may: bool) -> None:
    with nullcontext() if may else pytest.raises(Denied):
        ownership.check_create(POLICY, name, whose, who)


@pytest.mark.parametrize(("who", "may"), [(ROOT, True), (ALICE, False), (caller(65534), False)])
def test_giving(who: Caller, *, may: bool) -> None:
    with nullcontext() if may else pytest.raises(NotOwner):
        ownership.check_give(who)


CLAIM = [
    (None, ALICE, ALICES, True),
    (None, ALICE, owner(2101, 100), True),
    (None, BOB, ALICES, False),
    (None, ALICE, None, False),
    (ALICES, ALICE, ALICES, False),
    (BOBS, ALICE, ALICES, False),
    # Nobody claims for root, whatever a resolver says.
    (None, ROOT, ROOTS, False),
    (None, ROOT, ALICES, False),
]


@pytest.mark.parametrize(("whose", "who", "job_owner", "claims"), CLAIM)
def test_claiming(whose: Owner | None, who: Caller, job_owner: Owner | None, *, claims: bool) -> None:
    assert ownership.is_claim(whose, who, job_owner) is claims


@pytest.mark.parametrize(
    ("whose", "uid", "other"),
    [(ALICES, 2101, False), (ALICES, 2102, True), (ALICES, 0, True), (None, 2101, True), (None, 0, True)],
)
def test_a_chown_to_another_owner(whose: Owner | None, uid: int, *, other: bool) -> None:
    assert ownership.other_owner(whose, Uid(uid)) is other


@pytest.mark.parametrize(
    ("refused", "number"),
    [
        (lambda: ownership.check_take(POLICY, BATCH, ALICE, None), errno.EACCES),
        (lambda: ownership.check_create(POLICY, BATCH, ALICES, BOB), errno.EACCES),
        (lambda: ownership.check_create(POLICY, BATCH, None, BOB), errno.EACCES),
        (lambda: ownership.check_give(BOB), errno.EPERM),
    ],
    ids=["take", "create", "create in an unclaimed set", "give"],
)
def test_what_a_refused_caller_is_answered(refused: object, number: int) -> None:
    """EACCES is what TORQUE takes as final (docs/torque.md, rule 6); a chown is EPERM as everywhere."""
    assert callable(refused)
    with pytest.raises(FsError) as caught:
        refused()
    assert caught.value.errno == number


def test_without_patterns_no_set_is_a_batch_set() -> None:
    policy = settings.parse("[sets]\nbatch = []\n")
    ownership.check_take(policy, BATCH, ALICE, None)
    ownership.check_create(policy, BATCH, ALICES, BOB)
    assert ownership.owner_of_new(policy, BATCH, ROOT, None) == ROOTS
