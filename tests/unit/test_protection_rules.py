"""Which checkpoints are kept, and who may take them away: the rules alone."""

from __future__ import annotations

import itertools
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.model import Caller, Checkpoint, Image, Keep, Record, Role, State
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.policy import protection, settings
from ckfs.policy.protection import Until
from ckfs.policy.settings import Policy

ALICE, ROOT = (Caller(Uid(uid), Gid(uid), 1, 0o022) for uid in (2101, 0))
SET, OLD = SetName(b"12.server.CK"), SetName(b"12.server.CK.old")
COMPLETE, WRITING, PARTIAL, SUPERSEDED = State.COMPLETE, State.WRITING, State.PARTIAL, State.SUPERSEDED
UNKNOWN = State.UNKNOWN


def policy(keep: int = 2) -> Policy:
    return settings.parse(f"[protection]\nkeep = {keep}\n")


def record(
    state: State = COMPLETE,
    completed: int = 0,
    synced: tuple[int, int] | None = None,
    kind: int = stat.S_IFREG,
) -> Record:
    return Record(Inode(2), Uid(1), Gid(1), kind | 0o400, state=state, completed=completed, synced=synced)


def image(name: str, number: int = 0, state: State = COMPLETE, **more: object) -> Checkpoint:
    """A checkpoint of one image that was completed as *number*."""
    of_set, keep = more.pop("of_set", SET), more.pop("keep", Keep.BY_RULE)
    synced = more.pop("synced", None)
    assert isinstance(of_set, bytes)
    assert isinstance(keep, Keep)
    assert synced is None or isinstance(synced, tuple)
    inner = Image(name.encode(), record(state, number, synced))
    return Checkpoint(SetName(of_set), name.encode(), keep, (inner,))


def directory(name: str, *images: tuple[int, State]) -> Checkpoint:
    inner = tuple(
        Image(f"{name}/{place}.img".encode(), record(state, number))
        for place, (number, state) in enumerate(images)
    )
    return Checkpoint(SET, name.encode(), Keep.BY_RULE, inner)


def kept(*checkpoints: Checkpoint, keep: int = 2) -> list[str]:
    return sorted(name.decode() for _, name in protection.protected(policy(keep), checkpoints))


@pytest.mark.parametrize(
    ("keep", "expected"), [(1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])]
)
def test_the_newest_are_kept(keep: int, expected: list[str]) -> None:
    assert kept(image("b", 2), image("a", 1), image("c", 3), keep=keep) == expected


def test_the_newest_are_those_completed_last_whatever_they_are_called() -> None:
    assert kept(image("ckpt.3", 1), image("ckpt.1", 3), image("ckpt.2", 2)) == ["ckpt.1", "ckpt.2"]


@pytest.mark.parametrize("state", [WRITING, PARTIAL])
def test_what_is_not_complete_neither_counts_nor_is_kept(state: State) -> None:
    assert kept(image("a", 1), image("b", 2), image("c", 3, state)) == ["a", "b"]


def test_what_nobody_has_verified_is_kept_beside_the_newest() -> None:
    """A backup that lost the attributes has come back: any of them may be the only good one."""
    images = (image("a", 0, UNKNOWN), image("b", 0, UNKNOWN), image("c", 1), image("d", 2), image("e", 3))
    assert kept(*images) == ["a", "b", "d", "e"]
    assert kept(*images, keep=0) == []


def test_one_that_was_superseded_counts_again_once_newer_ones_are_gone() -> None:
    assert kept(image("a", 1, SUPERSEDED), image("b", 2, SUPERSEDED), image("c", 3)) == ["b", "c"]


@pytest.mark.parametrize("name", [".ckpt.1.tmp", ".hidden", "x.tmp", "x.dmtcp.temp", "x.part"])
def test_temporary_names_are_no_checkpoints(name: str) -> None:
    assert kept(image(name, 9), image("a", 1), image("b", 2)) == ["a", "b"]


def test_a_directory_is_one_checkpoint() -> None:
    dumps = [directory(name, *((number, COMPLETE),) * 24) for name, number in (("a", 1), ("b", 2), ("c", 3))]
    assert kept(*dumps) == ["b", "c"]


def test_a_directory_is_complete_when_all_in_it_is() -> None:
    assert not protection.is_complete(policy(), directory("a", (1, COMPLETE), (2, PARTIAL)))
    assert kept(directory("empty"), image("b", 3)) == ["b"]
    assert not protection.is_complete(policy(), directory("a", (1, COMPLETE), (2, WRITING)))


def test_what_is_complete_beside_a_torn_file_is_kept() -> None:
    """Or whoever can add a file, and fail at it, lays the whole checkpoint open."""
    assert kept(directory("a", (1, COMPLETE), (2, PARTIAL)), image("b", 3)) == ["a", "b"]


def test_a_directory_counts_from_its_last_image() -> None:
    assert kept(directory("a", (1, COMPLETE), (9, COMPLETE)), image("b", 3), keep=1) == ["a"]


def test_what_a_dump_in_progress_has_finished_is_kept_beside_the_others() -> None:
    """Or adding a file to a checkpoint would lay it open."""
    assert kept(directory("c", (9, COMPLETE), (0, WRITING)), image("a", 1), image("b", 2)) == ["a", "b", "c"]
    assert kept(directory("c.tmp", (9, COMPLETE), (0, WRITING))) == []


def test_a_family_shares_its_number_of_checkpoints() -> None:
    assert protection.family(SET) == protection.family(OLD) == (SET, OLD)
    assert kept(image("old", 1, of_set=OLD), image("new", 2), image("newer", 3)) == ["new", "newer"]
    assert kept(image("old", 1, of_set=OLD), image("new", 2)) == ["new", "old"]


def test_a_set_that_is_a_file_is_a_checkpoint() -> None:
    assert protection.protected(policy(), [image("", 1)]) == {
        (SET, b""): "one of the 2 newest complete checkpoints"
    }


def test_pinned_ones_are_kept_besides() -> None:
    assert kept(image("a", 1, keep=Keep.PINNED), image("b", 2), image("c", 3)) == ["a", "b", "c"]
    assert kept(image("a", 1, PARTIAL, keep=Keep.PINNED)) == []


def test_released_ones_are_not_kept() -> None:
    assert kept(image("a", 1), image("b", 2, keep=Keep.RELEASED), image("c", 3)) == ["c"]
    assert kept(image("a", 1, WRITING, synced=(1, 1), keep=Keep.RELEASED)) == []


def test_what_was_synced_is_kept_but_counts_only_when_complete() -> None:
    assert kept(image("a", 1), image("b", 2), image("c", 0, WRITING, synced=(1, 1))) == ["a", "b", "c"]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(State), st.sampled_from(Keep)), max_size=12),
    st.integers(1, 5),
)
def test_as_many_as_the_policy_says_are_kept_unless_released(
    facts: list[tuple[int, State, Keep]], keep: int
) -> None:
    given_ = [
        image(f"c{place}", number, state, keep=said) for place, (number, state, said) in enumerate(facts)
    ]
    complete = [one for one in given_ if one.images[0].record.state in (COMPLETE, SUPERSEDED)]
    chosen = protection.newest(policy(keep), given_)
    assert len(chosen) == min(keep, len(complete))
    left = [one for one in complete if one not in chosen]
    assert all(one.order <= other.order for one, other in itertools.product(left, chosen))
    reasons = protection.protected(policy(keep), given_)
    for one in given_:
        expected = one.keep is not Keep.RELEASED and (
            one in chosen
            or (one in complete and one.keep is Keep.PINNED)
            or one.images[0].record.state is UNKNOWN
        )
        assert (one.key in reasons) == expected
    assert protection.newest(policy(keep), reversed(given_)) == chosen


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (record(COMPLETE), True),
        (record(SUPERSEDED), True),
        (record(WRITING), False),
        (record(PARTIAL), False),
        (record(WRITING, synced=(1, 1)), True),
        (record(kind=stat.S_IFDIR), True),
        (record(kind=stat.S_IFLNK), False),
        (record(kind=stat.S_IFIFO), False),
    ],
)
def test_what_can_be_protected_at_all(what: Record, *, expected: bool) -> None:
    assert protection.concerns(what) == expected


@pytest.mark.parametrize("caller", [ALICE, ROOT])
@pytest.mark.parametrize("is_remover", [False, True])
@pytest.mark.parametrize("role", Role)
def test_who_ends_a_jobs_life(role: Role, caller: Caller, *, is_remover: bool) -> None:
    expected = caller is ROOT and {Role.NODE: False, Role.SERVER: True, Role.BOTH: is_remover}[role]
    assert protection.may_remove(role, caller, is_remover=is_remover) == expected


def test_an_old_set_goes_once_the_new_one_holds_a_complete_checkpoint() -> None:
    def may(caller: Caller, name: SetName, *checkpoints: Checkpoint) -> bool:
        return protection.may_remove_old(policy(), name, caller, checkpoints)

    old, new = image("old", 1, of_set=OLD), image("new", 2)
    assert may(ROOT, OLD, old, new)
    assert not may(ALICE, OLD, old, new)
    assert not may(ROOT, SET, old, new)
    assert not may(ROOT, OLD, old)
    assert not may(ROOT, OLD, old, image("new", 2, PARTIAL))
    assert not may(ROOT, OLD, old, image("new.tmp", 2))


def test_a_set_is_set_aside_by_root_and_back() -> None:
    assert protection.may_set_aside(SET, OLD, ROOT)
    assert protection.may_set_aside(OLD, SET, ROOT)
    assert not protection.may_set_aside(SET, OLD, ALICE)
    assert not protection.may_set_aside(SET, SET, ROOT)
    assert not protection.may_set_aside(SET, SetName(b"13.server.CK.old"), ROOT)


# What goes by itself, and until when it does not

DAY_NS = 86_400_000_000_000
UNTIL = settings.parse("[protection]\nsuperseded_days = 30\n")


def going(*checkpoints: Checkpoint, keep: int = 2) -> list[str]:
    return [one.name.decode() for one in protection.outlived(policy(keep), checkpoints)]


def test_the_outlived_may_go_the_oldest_first() -> None:
    images = (image("d", 4), image("b", 2), image("a", 1, SUPERSEDED), image("c", 3))
    assert going(*images) == ["a", "b"]
    assert going(*images, keep=1) == ["a", "b", "c"]
    assert going(*images, keep=4) == []


def test_without_protection_nothing_is_outlived() -> None:
    assert going(image("a", 1), image("b", 2), keep=0) == []


@pytest.mark.parametrize(
    "other",
    [
        image("x", 1, keep=Keep.PINNED),
        image("x", 1, PARTIAL),
        image("x", 1, WRITING),
        image("x", 1, UNKNOWN),
        image("x", 1, synced=(1, 1)),
        image("x", 0),
        image(".x", 1),
        directory("x", (1, COMPLETE), (1, PARTIAL)),
        directory("x", (1, COMPLETE), (1, WRITING)),
        directory("x"),
    ],
)
def test_what_is_kept_or_not_whole_or_of_unknown_age_does_not_go_by_itself(other: Checkpoint) -> None:
    assert going(other, image("a", 2), image("b", 3), image("c", 4)) == ["a"]


def test_one_of_the_newest_stays_though_it_was_released() -> None:
    """Its owner may remove it; that is no reason to do it for him."""
    released = image("c", 3, keep=Keep.RELEASED)
    assert going(image("a", 1), image("b", 2), released) == ["a"]


def test_an_outlived_directory_goes_as_a_whole() -> None:
    assert going(directory("a", (1, COMPLETE), (2, SUPERSEDED)), image("b", 3), image("c", 4)) == ["a"]


def test_a_family_is_outlived_together() -> None:
    assert going(image("old", 1, of_set=OLD), image("new", 2), image("newer", 3)) == ["old"]


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from(State), st.sampled_from(Keep)), max_size=12))
def test_what_goes_is_never_protected_nor_newest(facts: list[tuple[int, State, Keep]]) -> None:
    given_ = [
        image(f"c{place}", number, state, keep=said) for place, (number, state, said) in enumerate(facts)
    ]
    gone = {one.key for one in protection.outlived(policy(), given_)}
    assert not gone & protection.protected(policy(), given_).keys()
    left = [one for one in given_ if one.key not in gone]
    assert protection.newest(policy(), left) == protection.newest(policy(), given_)


@pytest.mark.parametrize(
    ("name", "until"),
    [
        ("pinned", Until.FOREVER),
        ("newest", Until.OUTLIVED),
        ("outlived", 3 + 30 * DAY_NS),
        ("partial", None),
        ("released", None),
        ("absent", None),
        ("", Until.FOREVER),
    ],
)
def test_until_when_a_checkpoint_is_kept(name: str, until: Until | int | None) -> None:
    of_set = [
        image("pinned", 1, keep=Keep.PINNED),
        image("outlived", 3),
        image("partial", 4, PARTIAL),
        image("newest", 7),
        image("released", 8, keep=Keep.RELEASED),
    ]
    assert protection.until(UNTIL, of_set, SET, name.encode()) == until


def test_without_a_time_the_outlived_are_kept_until_room_is_needed() -> None:
    never = settings.parse("[protection]\nkeep = 1\nsuperseded_days = 0\n")
    of_set = [image("a", 1), image("b", 2)]
    assert protection.until(never, of_set, SET, b"a") is Until.ROOM_IS_NEEDED


def test_a_set_is_kept_as_long_as_what_is_kept_longest_in_it() -> None:
    of_set = [image("a", 1), image("b", 2), image("c", 3)]
    assert protection.until(UNTIL, of_set, SET, b"") is Until.OUTLIVED
    assert protection.until(UNTIL, [], SET, b"") is None
    assert protection.until(UNTIL, [image("a", 1), *of_set], OLD, b"") is None
