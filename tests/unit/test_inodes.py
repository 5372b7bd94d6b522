"""What the kernel knows: references, names that move, rings, and descriptors that outlive their handle."""

from __future__ import annotations

import os

import pytest

from ckfs.errors import BadHandle, Stale
from ckfs.fs.inodes import Handle, Handles, Inodes, Node
from ckfs.model import Caller, Owner, Record
from ckfs.names import ROOT_INODE, Gid, Inode, Uid
from ckfs.store.entries import SetEntry
from ckfs.store.spots import Found, OpenFile

_ALICE = Owner(Uid(2101), Gid(2101))
_CALLER = Caller(Uid(2101), Gid(2101), 0, 0o022)
_FILE, _DIRECTORY = 0o100644, 0o040755


def _entry(ino: int, place: bytes = b"s") -> SetEntry:
    return SetEntry(Inode(ino), _ALICE, _ALICE, place)


def _found(ino: int, mode: int = _FILE, links: int = 1) -> Found:
    status = os.stat_result((mode, ino, 0, links, 0, 0, 0, 0, 0, 0))
    return Found(status, Record(Inode(ino), Uid(2101), Gid(2101), mode))


@pytest.fixture
def inodes() -> Inodes:
    return Inodes()


@pytest.fixture
def top(inodes: Inodes) -> Node:
    node = inodes.seen(Inode(10), inodes.root, b"set", _entry(10))
    inodes.looked_up(node)
    return node


def _looked_up(inodes: Inodes, ino: int, parent: Node, name: bytes) -> Node:
    node = inodes.seen(Inode(ino), parent, name)
    inodes.looked_up(node)
    return node


def _handle(node: Node, closed: list[int]) -> Handle:
    handle = Handle(node, OpenFile(99), _CALLER, writable=True)
    node.with_handle(handle)
    return handle


def test_the_root_is_always_known_and_never_forgotten(inodes: Inodes) -> None:
    inodes.forget(ROOT_INODE, 1000)
    assert inodes.get(ROOT_INODE) is inodes.root
    assert len(inodes) == 1


def test_a_node_is_known_until_as_many_references_are_forgotten_as_were_given(
    inodes: Inodes, top: Node
) -> None:
    inodes.looked_up(top)
    inodes.looked_up(top)
    inodes.forget(top.ino, 2)
    assert inodes.known(top.ino) is top
    inodes.forget(top.ino, 1)
    assert inodes.known(top.ino) is None
    with pytest.raises(Stale):
        inodes.get(top.ino)


def test_a_node_seen_again_is_the_same(inodes: Inodes, top: Node) -> None:
    first = _looked_up(inodes, 20, top, b"f")
    assert _looked_up(inodes, 20, top, b"g") is first
    assert first.name == b"g"
    assert first.lookups == 2


def test_forgetting_too_much_or_the_unknown_harms_nothing(inodes: Inodes, top: Node) -> None:
    inodes.forget(top.ino, 100)
    inodes.forget(top.ino, 1)
    inodes.forget(Inode(4711), 1)
    assert len(inodes) == 1


def test_an_open_file_keeps_its_node(inodes: Inodes, top: Node) -> None:
    handle = _handle(top, [])
    inodes.forget(top.ino, 1)
    assert inodes.known(top.ino) is top
    top.without_handle(handle)
    inodes.drop_unused(top)
    assert inodes.known(top.ino) is None


def test_a_spot_leads_from_the_sets_place_through_all_names(inodes: Inodes, top: Node) -> None:
    inner = _looked_up(inodes, 20, top, b"d")
    leaf = _looked_up(inodes, 21, inner, b"f")
    assert top.spot.components == (b"users", b"2101", b"s")
    assert top.spot.within is None
    assert leaf.spot.components == (b"users", b"2101", b"s", b"d", b"f")
    assert leaf.spot.within == inner.ino
    assert leaf.top is top
    assert inner.inside(b"x").within == inner.ino


def test_a_spot_follows_the_set(inodes: Inodes, top: Node) -> None:
    leaf = _looked_up(inodes, 20, top, b"f")
    top.entry = _entry(10, b"moved")
    assert leaf.spot.components == (b"users", b"2101", b"moved", b"f")


def test_the_root_is_in_no_set(inodes: Inodes) -> None:
    with pytest.raises(Stale):
        _ = inodes.root.top


def test_a_ring_of_directories_is_stale_and_not_endless(inodes: Inodes, top: Node) -> None:
    """Another mount may swap parent and child between two look-ups of this one."""
    outer = _looked_up(inodes, 20, top, b"outer")
    inner = _looked_up(inodes, 21, outer, b"inner")
    inodes.seen(outer.ino, inner, b"outer")
    for node in (outer, inner):
        with pytest.raises(Stale):
            _ = node.spot
    inodes.seen(inner.ino, top, b"inner")
    assert outer.spot.components[-2:] == (b"inner", b"outer")


def test_a_directory_that_contains_itself_keeps_its_place(inodes: Inodes, top: Node) -> None:
    inodes.seen(top.ino, top, b"itself")
    assert top.spot.components == (b"users", b"2101", b"s")


def test_a_file_with_two_names_is_not_removed_by_losing_one(inodes: Inodes, top: Node) -> None:
    node = _looked_up(inodes, 20, top, b"f")
    inodes.lost_name(_found(20, links=2))
    assert node.removed is None
    inodes.lost_name(_found(20, links=1))
    assert node.removed is not None
    assert node.removed.removed


def test_a_directory_is_removed_whatever_its_link_count(inodes: Inodes, top: Node) -> None:
    node = _looked_up(inodes, 20, top, b"d")
    inodes.lost_name(_found(20, _DIRECTORY, links=2))
    assert node.removed is not None


def test_what_is_found_again_is_not_removed(inodes: Inodes, top: Node) -> None:
    node = _looked_up(inodes, 20, top, b"f")
    inodes.lost_name(_found(20))
    inodes.seen(node.ino, top, b"f")
    assert node.removed is None


def test_losing_the_name_of_something_unknown_is_nothing(inodes: Inodes) -> None:
    inodes.lost_name(_found(4711))


def test_handles_have_numbers_that_are_never_used_twice(top: Node) -> None:
    handles = Handles()
    seen = set()
    for _ in range(10):
        number = handles.add(_handle(top, []))
        seen.add(number)
        handles.remove(number)
        with pytest.raises(KeyError):
            handles.get(number)
    assert len(seen) == 10
    assert len(handles) == 0


def test_a_descriptor_is_closed_at_once_where_nobody_uses_it(top: Node) -> None:
    closed: list[int] = []
    _handle(top, closed).close_when_unused(lambda: closed.append(1))
    assert closed == [1]


def test_a_descriptor_is_closed_once_and_after_its_last_user(top: Node) -> None:
    closed: list[int] = []
    handle = _handle(top, closed)
    first, second = handle.pin(), handle.pin()
    handle.close_when_unused(lambda: closed.append(1))
    first()
    assert not closed
    second()
    assert closed == [1]


def test_pins_that_come_and_go_before_the_end_close_nothing(top: Node) -> None:
    closed: list[int] = []
    handle = _handle(top, closed)
    handle.pin()()
    handle.pin()()
    assert not closed
    handle.close_when_unused(lambda: closed.append(1))
    assert closed == [1]


def test_removing_a_handle_leaves_the_others(top: Node) -> None:
    first, second = _handle(top, []), _handle(top, [])
    top.without_handle(first)
    assert top.handles == (second,)


def test_a_descriptor_that_is_closed_is_neither_closed_again_nor_used(top: Node) -> None:
    closed: list[int] = []
    handle = _handle(top, closed)
    release = handle.pin()
    handle.close_when_unused(lambda: closed.append(handle.fd))
    assert closed == []
    release()
    assert closed == [handle.fd]
    with pytest.raises(BadHandle):
        handle.pin()
    assert closed == [handle.fd]
