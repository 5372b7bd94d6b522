"""What a mount asks its ledger, and when: questions take longer than most calls do, so none is asked that need not be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Drawn, Ledger, Opened, Posting
from ckfs.names import MountId, Uid
from ckfs.policy.quota import Amount
from tests.fs.cores import charged
from tests.fs.test_charging import SET, UNIT, settled

NOTED, SETTLED = "noted", "settled"


@dataclass
class Heard:
    """A ledger that remembers what it heard of files that are written."""

    book: Book
    what: list[str] = field(default_factory=list)

    def draw(
        self, mount: MountId, uid: Uid, least: Amount, wanted: Amount, opened: Sequence[Opened] = ()
    ) -> Drawn:
        self.what += [NOTED] * len(opened)
        return self.book.draw(mount, uid, least, wanted, opened)

    def post(self, mount: MountId, number: int, postings: Iterable[Posting]) -> None:
        postings = tuple(postings)
        self.what += [SETTLED for posting in postings for _ in posting.settled]
        self.book.post(mount, number, postings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.book, name)


@pytest.mark.trio
async def test_of_a_file_in_which_nothing_was_written_the_ledger_hears_nothing_but_that_it_is_there(
    store: Path, ledger: Book
) -> None:
    heard = Heard(ledger)
    async with charged(store, cast("Ledger", heard)) as mount:
        await mount.alice.mkdir(SET)
        heard.what.clear()
        for number in range(3):
            await mount.alice.close(await mount.alice.create(f"{SET}/.{number}", flags=os.O_WRONLY))
        assert await settled(ledger, mount) == Amount(UNIT, 4)
        assert NOTED not in heard.what
        assert SETTLED not in heard.what


@pytest.mark.trio
async def test_a_file_is_noted_with_its_first_write_and_settled_when_it_is_closed(
    store: Path, ledger: Book
) -> None:
    heard = Heard(ledger)
    async with charged(store, cast("Ledger", heard)) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        heard.what.clear()
        for at in range(0, 64 * UNIT, UNIT):
            await mount.fs.content.write(handle, at, bytes(UNIT))
        assert heard.what == [NOTED]
        await mount.alice.close(handle)
        assert heard.what == [NOTED, SETTLED]
        assert await settled(ledger, mount) == Amount(65 * UNIT, 2)


@pytest.mark.trio
async def test_a_file_that_is_counted_in_between_stays_noted(store: Path, ledger: Book) -> None:
    heard = Heard(ledger)
    async with charged(store, cast("Ledger", heard)) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, bytes(UNIT))
        heard.what.clear()
        charging = mount.core.charging
        assert await charging._free_unneeded(Uid(mount.alice.caller.uid))  # type: ignore[attr-defined]
        await mount.fs.content.write(handle, UNIT, bytes(UNIT))
        await mount.alice.close(handle)
        assert heard.what == [SETTLED, SETTLED]
        assert await settled(ledger, mount) == Amount(3 * UNIT, 2)
