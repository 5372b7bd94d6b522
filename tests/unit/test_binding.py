"""ledger.toml: who keeps a store's ledger; of several who want to, one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckfs.errors import StoreUnusable
from ckfs.store import binding
from ckfs.store.binding import Binding, Kept, bind, decode, encode, read, unbind
from ckfs.store.identity import ROOT

HERE = Binding(Kept.EMBEDDED, "a1", "0123456789abcdef0123456789abcdef", "tqs1")
THERE = Binding(Kept.EMBEDDED, "b2", "fedcba9876543210fedcba9876543210", "tqs2")
DATABASE = Binding(Kept.POSTGRESQL, "c3")


def said(path: Path) -> Binding | None:
    return read(str(path))


@pytest.mark.parametrize("one", [HERE, DATABASE, Binding(Kept.EMBEDDED, "a", "b", 'odd "name"\\ of a node')])
def test_what_is_written_is_read(one: Binding) -> None:
    assert decode(encode(one), "store") == one


def test_nobody_keeps_the_ledger_of_a_new_store(tmp_path: Path) -> None:
    assert said(tmp_path) is None


def test_who_comes_first_keeps_it(tmp_path: Path) -> None:
    bind(str(tmp_path), ROOT, HERE, None)
    with pytest.raises(StoreUnusable, match="another host has just taken over"):
        bind(str(tmp_path), ROOT, THERE, None)
    assert said(tmp_path) == HERE


def test_who_takes_over_says_from_whom(tmp_path: Path) -> None:
    bind(str(tmp_path), ROOT, HERE, None)
    with pytest.raises(StoreUnusable, match="another host"):
        bind(str(tmp_path), ROOT, THERE, DATABASE)
    assert said(tmp_path) == HERE
    bind(str(tmp_path), ROOT, THERE, HERE)
    assert said(tmp_path) == THERE


def test_what_is_not_kept_any_more(tmp_path: Path) -> None:
    bind(str(tmp_path), ROOT, HERE, None)
    with pytest.raises(StoreUnusable, match="another host"):
        unbind(str(tmp_path), ROOT, THERE)
    assert said(tmp_path) == HERE
    unbind(str(tmp_path), ROOT, HERE)
    assert said(tmp_path) is None
    with pytest.raises(StoreUnusable, match="another host"):
        unbind(str(tmp_path), ROOT, HERE)


def test_nothing_else_is_left_in_the_store(tmp_path: Path) -> None:
    bind(str(tmp_path), ROOT, HERE, None)
    bind(str(tmp_path), ROOT, THERE, HERE)
    with pytest.raises(StoreUnusable):
        bind(str(tmp_path), ROOT, HERE, DATABASE)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.toml"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "format = 1\nkept = 'embedded'\nid = 'a'\nhost = 'b'",
        "format = 1\nkept = 'embedded'\nid = 'a'\nhost = 'b'\nnode = ''",
        "format = 1\nkept = 'elsewhere'\nid = 'a'",
        "format = 1\nkept = 'postgresql'\nid = 1",
        "format = 1\nkept = ['postgresql']\nid = 'a'",
    ],
)
def test_what_cannot_be_understood_is_not_guessed(text: str) -> None:
    with pytest.raises(StoreUnusable, match=r"ledger\.toml is damaged: remove it when"):
        decode(text, "store")


def test_what_a_later_ckfs_has_written() -> None:
    with pytest.raises(StoreUnusable, match="update ckfs"):
        decode("format = 2\n", "store")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(encode(HERE))
    (tmp_path / binding.BINDING_FILE.decode()).symlink_to("elsewhere")
    with pytest.raises(StoreUnusable):
        said(tmp_path)
