"""The host's state directory: whose it is, which host this is, and who may open a ledger."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ckfs.errors import StoreUnusable
from ckfs.ledger import state
from ckfs.ledger.state import boot_id, host_id, state_directory, state_of_store

STORE = "7f0c1a52-5c6e-4f3b-9d6e-0a4c3f2b1d00"


def test_the_option_counts_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(state.VARIABLE, "/one")
    assert state_directory("/two") == Path("/two")
    assert state_directory(None) == Path("/one")
    monkeypatch.delenv(state.VARIABLE)
    assert state_directory(None) == Path("/var/lib/ckfs")


def test_it_is_made_for_root_alone(tmp_path: Path) -> None:
    kept = state_of_store(tmp_path / "lib" / "ckfs", STORE)
    assert kept.ledger == tmp_path / "lib" / "ckfs" / STORE / "ledger.sqlite"
    assert [path.stat().st_mode & 0o777 for path in (kept.directory, kept.directory.parent)] == [0o700] * 2


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(StoreUnusable, match="others than root may write there"):
        state_of_store(tmp_path, STORE)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_is_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "state"
    place.touch() if kind == "file" else place.symlink_to("/tmp")
    with pytest.raises(StoreUnusable, match="not a directory"):
        state_of_store(place, STORE)


@pytest.mark.parametrize("store_id", ["", "..", "a/b", "-x", "x" * 65, "a\nb"])
def test_an_id_that_ckfs_never_gave_leads_nowhere(tmp_path: Path, store_id: str) -> None:
    with pytest.raises(StoreUnusable, match=r"restore its ckfs\.toml"):
        state_of_store(tmp_path, store_id)
    assert list(tmp_path.iterdir()) == []


def test_the_host_is_its_machine_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(state, "_MACHINE_ID", machine_id)
    assert host_id(tmp_path / "state") == "0123456789abcdef0123456789abcdef"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("text", [None, "", "uninitialized\n", "0123"])
def test_a_host_without_a_machine_id_gets_an_id_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    machine_id = tmp_path / "machine-id"
    if text is not None:
        machine_id.write_text(text)
    monkeypatch.setattr(state, "_MACHINE_ID", machine_id)
    given = host_id(tmp_path / "state")
    assert len(given) == 32
    assert host_id(tmp_path / "state") == given
    assert host_id(tmp_path / "other") != given


def test_kernels_under_which_the_store_was_mounted(tmp_path: Path) -> None:
    kept = state_of_store(tmp_path / "state", STORE)
    assert kept.boots() == set()
    kept.note_boot()
    kept.note_boot()
    assert kept.boots() == {boot_id()}
    (kept.directory / "boots").write_text("".join(f"{number}\n" for number in range(500)))
    kept.note_boot()
    assert {boot_id(), "499"} < kept.boots()
    assert "0" not in kept.boots()
    assert len(kept.boots()) < 500


def test_one_at_a_time_opens_a_ledger(tmp_path: Path) -> None:
    kept = state_of_store(tmp_path / "state", STORE)
    waited, order = threading.Event(), list[str]()

    def second() -> None:
        with kept.locked(waited.set):
            order.append("second")

    other = threading.Thread(target=second)
    with kept.locked(lambda: pytest.fail("nobody is there")):
        other.start()
        assert waited.wait(60)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_a_damaged_ledger_is_put_aside_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    kept = state_of_store(tmp_path / "state", STORE)
    for content in ("first", "second"):
        for suffix in ("", "-wal"):
            kept.ledger.with_name(kept.ledger.name + suffix).write_text(content)
        aside = kept.put_damaged_aside()
    assert sorted(path.name for path in kept.directory.iterdir()) == [
        "ledger.sqlite.damaged",
        "ledger.sqlite.damaged-wal",
    ]
    assert aside.read_text() == "second"
