"""What hostile users, slow ledgers and unlucky moments make of quotas, in process: charged is never more than may be, and in the end
what is there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ckfs.errors import LedgerDown, LedgerUnusable
from ckfs.fs import grants, sessions
from ckfs.fs.metadata import Changes
from ckfs.fs.recounting import Recounting
from ckfs.ledger.book import Book
from ckfs.names import Gid, Uid
from ckfs.policy.quota import NOTHING, Amount
from tests.fs.cores import ALICE, Mount, charged, charging_of, lies_at
from tests.fs.test_charging import ENOUGH_S, SET, UNIT, limit, settled, write

OVER = os.strerror(errno.EDQUOT)


class Interrupted:
    """A ledger of which one call does something else first, in the thread in which it is asked."""

    def __init__(self, ledger: Book) -> None:
        self._ledger = ledger
        self.before: dict[str, Callable[..., None]] = {}
        self.under_way: set[int] = set()
        """Threads."""

    def __getattr__(self, name: str) -> Any:
        call, first = getattr(self._ledger, name), self.before.get(name)

        def interrupted(*args: Any) -> Any:
            assert first is not None
            self.under_way.add(threading.get_ident())
            try:
                first(*args)
                return call(*args)
            finally:
                self.under_way.discard(threading.get_ident())

        return call if first is None else interrupted


def uid() -> Uid:
    return Uid(ALICE.uid)


def purge_trash(mount: Mount) -> None:
    for item in list(mount.core.store.trash.items(uid())):
        mount.core.store.trash.purge(item)


# Files without a name


@pytest.mark.trio
async def test_a_file_without_a_name_does_not_outgrow_the_limit(store: Path, ledger: Book) -> None:
    limit(ledger, units=6)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.gone", flags=os.O_WRONLY)
        await mount.alice.unlink(f"{SET}/.gone")
        assert await mount.fs.content.write(handle, 0, bytes(10 * UNIT)) == 5 * UNIT
        with pytest.raises(OSError, match=OVER):
            await mount.fs.content.write(handle, 5 * UNIT, bytes(10 * UNIT))
        assert await mount.fs.content.write(handle, 0, bytes(5 * UNIT)) == 5 * UNIT
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(UNIT, 1)


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.trio
async def test_a_file_without_a_name_counts_until_its_last_descriptor_is_closed(
    store: Path, ledger: Book
) -> None:
    limit(ledger, units=6)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        first = await mount.alice.create(f"{SET}/.gone", flags=os.O_WRONLY)
        second = await mount.alice.open(f"{SET}/.gone", os.O_WRONLY)
        await mount.alice.unlink(f"{SET}/.gone")
        assert await mount.fs.content.write(first, 0, bytes(4 * UNIT)) == 4 * UNIT
        await mount.alice.close(first)
        await charging_of(mount).grants.post()
        assert ledger.account(uid()).total.bytes == 5 * UNIT
        assert await mount.fs.content.write(second, 4 * UNIT, bytes(4 * UNIT)) == UNIT
        await mount.alice.close(second)
        assert await settled(ledger, mount) == Amount(UNIT, 1)


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.trio
async def test_a_file_that_another_mount_removed_is_charged_with_what_is_written_to_it(
    store: Path, ledger: Book
) -> None:
    limit(ledger, units=8)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        await one.alice.save(f"{SET}/.gone", bytes(2 * UNIT))
        handle = await other.alice.open(f"{SET}/.gone", os.O_WRONLY)
        await one.alice.unlink(f"{SET}/.gone")
        purge_trash(one)
        assert await other.fs.content.write(handle, 2 * UNIT, bytes(10 * UNIT)) == 5 * UNIT
        await other.alice.close(handle)
        assert await settled(ledger, one, other) == Amount(UNIT, 1)


# What is noted late


@pytest.mark.trio
async def test_an_image_that_is_emptied_needs_room_for_what_it_was(store: Path, ledger: Book) -> None:
    limit(ledger, units=100, files=3)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", bytes(UNIT))
        for _ in range(3):
            handle = await mount.alice.open(f"{SET}/image", os.O_WRONLY | os.O_TRUNC)
            await mount.fs.content.write(handle, 0, bytes(UNIT))
            await mount.alice.close(handle)
            assert (await settled(ledger, mount)).files == 3
        await mount.alice.setattr(f"{SET}/image", Changes(size=0))
        assert (await settled(ledger, mount)).files == 3


@pytest.mark.trio
async def test_attributes_need_room(store: Path, ledger: Book) -> None:
    limit(ledger, units=2)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        async with mount.alice.at(SET) as ino:
            await mount.fs.extended.set(ino, b"user.note", bytes(1000), ALICE)
            assert await settled(ledger, mount) == Amount(2 * UNIT, 1)
            await mount.alice.mknod(f"{SET}/.image")
            async with mount.alice.at(f"{SET}/.image") as other:
                with pytest.raises(OSError, match=OVER):
                    await mount.fs.extended.set(other, b"user.more", b"x", ALICE)
            await mount.fs.extended.set(ino, b"user.note", bytes(1100), ALICE)
            await mount.fs.extended.set(ino, b"user.more", b"x", ALICE)
            assert await settled(ledger, mount) == Amount(2 * UNIT, 2)


@pytest.mark.trio
async def test_something_new_is_never_counted_and_claimed(store: Path, ledger: Book) -> None:
    limit(ledger, units=100, files=2)
    async with charged(store, ledger) as mount:
        charging = charging_of(mount)
        await mount.alice.mkdir(SET)
        await settled(ledger, mount)
        async with charging.claimed(uid(), Amount(0, 1)):
            charging.made(uid(), Amount(0, 1))
            await charging.grants.post()
            assert ledger.account(uid()).total.files == 2
        await charging.grants.post()
        assert ledger.account(uid()).used.files == 2
        assert ledger.account(uid()).claimed.files == 0


# Two mounts, one file


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.trio
async def test_a_file_that_is_removed_elsewhere_before_anything_was_written(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        handle = await one.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        await charging_of(one).grants.post()
        await other.alice.unlink(f"{SET}/.image")
        await one.alice.close(handle)
        assert await settled(ledger, one, other) == Amount(UNIT, 1)


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.trio
async def test_a_recount_knows_of_a_file_that_lost_its_name_before_anything_was_written(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        handle = await one.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        await other.alice.unlink(f"{SET}/.image")
        for mount in (one, other):
            await charging_of(mount).grants.post()
        recounting = Recounting(other.core.store, ledger, other.core.fate, lambda _: None)
        (found,) = await trio.to_thread.run_sync(lambda: list(recounting.repair([uid()])))
        assert found.counted == Amount(UNIT, 2)
        assert await one.fs.content.write(handle, 0, bytes(UNIT)) == UNIT
        await one.alice.close(handle)
        assert await settled(ledger, one, other) == Amount(UNIT, 1)


@pytest.mark.trio
async def test_who_appends_at_the_limit_behind_what_another_mount_has_appended(
    store: Path, ledger: Book
) -> None:
    limit(ledger, units=9)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        first = await one.alice.create(f"{SET}/.log", flags=os.O_WRONLY | os.O_APPEND)
        second = await other.alice.open(f"{SET}/.log", os.O_WRONLY | os.O_APPEND)
        assert await one.fs.content.write(first, 0, bytes(8 * UNIT)) == 8 * UNIT
        with pytest.raises(OSError, match=OVER):  # where the kernel of the other believes its end to be
            await other.fs.content.write(second, 0, bytes(8 * UNIT))
        await one.alice.close(first)
        await other.alice.close(second)
        assert await settled(ledger, one, other) == Amount(9 * UNIT, 2)


@pytest.mark.trio
async def test_what_one_mount_saw_reaches_the_ledger_before_another_sees_more(
    store: Path, ledger: Book
) -> None:
    """Both end at once: whose posting is slow must not say at last what the file was before the other wrote on."""
    slow, is_posting, other_has_ended = Interrupted(ledger), threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        is_posting.set()
        other_has_ended.wait(1.0)  # which it cannot before this has been posted

    async with charged(store, slow) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        first = await one.alice.create(f"{SET}/.log", flags=os.O_WRONLY)
        second = await other.alice.open(f"{SET}/.log", os.O_WRONLY)
        assert await one.fs.content.write(first, 0, bytes(UNIT)) == UNIT
        assert await other.fs.content.write(second, UNIT, bytes(UNIT)) == UNIT
        slow.before = {"post": wait}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.alice.close, first)
            with trio.fail_after(ENOUGH_S):
                while not is_posting.is_set():  # noqa: ASYNC110 - a thread sets it
                    await trio.sleep(0.01)
            assert await other.fs.content.write(second, 2 * UNIT, bytes(5 * UNIT)) == 5 * UNIT
            await other.alice.close(second)
            other_has_ended.set()
        assert await settled(ledger, one, other) == Amount(8 * UNIT, 2)


# Claims that are not needed


@pytest.mark.trio
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_is_written_over_is_in_nobodys_way(store: Path, ledger: Book, *, elsewhere: bool) -> None:
    limit(ledger, units=10)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as two:
        await one.alice.mkdir(SET)
        assert await write(one, f"{SET}/.image", 0, 5 * UNIT) == 5 * UNIT
        handle = await one.alice.open(f"{SET}/.image", os.O_RDWR)
        assert await one.fs.content.write(handle, 0, bytes(4 * UNIT)) == 4 * UNIT
        assert await write(two if elsewhere else one, f"{SET}/.other", 0, 4 * UNIT) == 4 * UNIT
        await one.alice.close(handle)
        assert await settled(ledger, one, two) == Amount(10 * UNIT, 3)


# Sets that are given away


@pytest.mark.trio
async def test_who_writes_on_in_a_set_that_another_mount_gave_away_writes_for_its_new_owner(
    store: Path, ledger: Book
) -> None:
    limit(ledger, units=6)
    async with charged(store, ledger) as mount, charged(store, ledger, node="b") as other:
        await mount.root.mkdir(SET)
        async with mount.root.at(SET):  # the kernel knows the directories of what is open
            handle = await mount.root.create(f"{SET}/.image", flags=os.O_WRONLY)
            assert await mount.fs.content.write(handle, 0, bytes(2 * UNIT)) == 2 * UNIT
            await charging_of(mount).grants.post()
            await other.root.setattr(SET, Changes(uid=uid(), gid=Gid(ALICE.gid)))
            await mount.root.stat(SET)
            assert await mount.fs.content.write(handle, 2 * UNIT, bytes(10 * UNIT)) == 3 * UNIT
            await mount.root.close(handle)
        assert await settled(ledger, mount, other) == Amount(6 * UNIT, 2)
        assert await settled(ledger, mount, other, uid=0) == NOTHING


# A ledger that is slow, away, or damaged


@pytest.mark.trio
async def test_a_ledger_that_is_damaged_does_not_end_the_mount(store: Path, ledger: Book) -> None:
    broken = Interrupted(ledger)

    def refuse(*_: Any) -> None:
        raise LedgerUnusable("the ledger is damaged: file is not a database")

    async with charged(store, broken, timeout_s=1.0) as mount:
        await mount.alice.mkdir(SET)
        await settled(ledger, mount)
        broken.before = dict.fromkeys(("draw", "post", "recalled"), refuse)
        with pytest.raises(Exception, match=r"new grant|ledger") as caught:
            await mount.alice.mkdir("other")
        assert getattr(caught.value, "errno", None) == errno.EIO
        await trio.sleep(2 * grants._INTERVAL_S)
        broken.before = {}
        with trio.fail_after(ENOUGH_S):
            await mount.alice.save(f"{SET}/.image", bytes(UNIT))
        assert await settled(ledger, mount) == Amount(2 * UNIT, 2)


@pytest.mark.trio
async def test_those_who_wait_for_a_ledger_that_hangs_do_not_wait_for_each_other(
    store: Path, ledger: Book
) -> None:
    hung, answer = Interrupted(ledger), threading.Event()

    def wait(*_: Any) -> None:
        answer.wait(ENOUGH_S)

    async with charged(store, hung, timeout_s=1.0) as mount:
        await mount.alice.mkdir(SET)
        await settled(ledger, mount)
        hung.before = dict.fromkeys(("draw", "post", "recalled"), wait)
        refused = []

        async def make(number: int) -> None:
            with pytest.raises(Exception, match=r"ledger|grant") as caught:
                await mount.alice.mkdir(f"{SET}/{number}")
            refused.append(caught.value)

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(make, number)
        assert len(refused) == 12
        assert trio.current_time() - began_s < 8
        answer.set()
        hung.before = {}
        with trio.fail_after(ENOUGH_S):
            while hung.under_way:  # noqa: ASYNC110 - what is granted too late is given back, once it was
                await trio.sleep(0.02)
        assert await settled(ledger, mount) == Amount(UNIT, 1)


@pytest.mark.trio
async def test_nobody_writes_before_the_ledger_has_noted_the_file(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who gives its set away would not have the ledger move what was written."""
    slow, begun, answer = Interrupted(ledger), threading.Event(), threading.Event()

    def wait(*arguments: Any) -> None:
        if arguments[4:] and arguments[4]:
            begun.set()
            answer.wait(ENOUGH_S)

    async with charged(store, slow) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", b"")
        handles = [await mount.alice.open(f"{SET}/image", os.O_WRONLY) for _ in range(2)]
        await settled(ledger, mount)
        await mount.alice.save(f"{SET}/.other", bytes(UNIT))  # for which more is granted than it needs
        monkeypatch.setattr(grants.Grants, "_is_valid", lambda _: True)
        slow.before["draw"] = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.fs.content.write, handles[0], 0, bytes(UNIT))
            await trio.to_thread.run_sync(begun.wait, ENOUGH_S)
            nursery.start_soon(mount.fs.content.write, handles[1], UNIT, bytes(UNIT))
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert (lies_at(store, SET) / "image").stat().st_size == 0
            answer.set()
        for handle in handles:
            await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(4 * UNIT, 3)


@pytest.mark.plain_alone(
    "each look at the store is one call of a server there, and none of them is in between"
)
@pytest.mark.trio
async def test_what_is_cut_while_more_is_claimed_is_claimed_again(store: Path, ledger: Book) -> None:
    slow, begun, answer = Interrupted(ledger), threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        answer.wait(ENOUGH_S)

    limit(ledger, units=20)  # near a limit nothing is granted beyond what is needed
    async with charged(store, slow) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, bytes(2 * UNIT))
        node, sessions = mount.core.handle(handle).node, charging_of(mount).sessions
        session = sessions.get(node.ino)
        assert session is not None
        slow.before["draw"] = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.fs.content.write, handle, UNIT, bytes(3 * UNIT))
            await trio.to_thread.run_sync(begun.wait, ENOUGH_S)
            os.truncate(lies_at(store, SET) / ".image", 0)
            await sessions.count(session, node)
            answer.set()
        assert session.held == 3 * UNIT
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(4 * UNIT, 2)


@pytest.mark.trio
async def test_what_is_just_being_appended_is_not_there_for_nothing(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_IDLE_S", 0.1)
    limit(ledger, units=20)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        appends = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY | os.O_APPEND)
        writes = await mount.alice.open(f"{SET}/.image", os.O_WRONLY)
        charging, appender = charging_of(mount), mount.core.handle(appends)
        claim = await charging.claim(appender, 0, 1)
        os.write(appender.fd, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(charging._count_anew, mount.core.handle(writes), 0, UNIT)
            await trio.sleep(3 * sessions._IDLE_S)  # more than once as long as it waits for what is under way
            charging.appended(claim, 0, 1)
            charging.done(claim)
        assert claim.session is not None
        assert claim.session.held == UNIT
        for handle in (appends, writes):
            await mount.alice.close(handle)
        await settled(ledger, mount)


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.trio
async def test_what_is_closed_while_somebody_fails_to_overwrite_it_is_free(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.gone", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, bytes(4 * UNIT))
        await mount.alice.unlink(f"{SET}/.gone")
        await mount.fs.content.flush(handle)
        node = mount.core.handle(handle).node
        async with trio.open_nursery() as nursery:
            with node.being_truncated():
                nursery.start_soon(mount.alice.close, handle)
                await trio.testing.wait_all_tasks_blocked(0.2)
        assert await settled(ledger, mount) == Amount(UNIT, 1)


# Who tries again and again


@pytest.mark.trio
async def test_who_tries_again_and_again_at_his_limit_keeps_no_recount_up(store: Path, ledger: Book) -> None:
    """So that what dead mounts were granted for him comes back meanwhile."""
    limit(ledger, units=4)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        assert await mount.fs.content.write(handle, 0, bytes(9 * UNIT)) == 3 * UNIT
        versions = set()
        for _ in range(5):
            with pytest.raises(OSError, match=OVER):
                await mount.fs.content.write(handle, 3 * UNIT, bytes(UNIT))
            with pytest.raises(OSError, match=OVER):
                await mount.alice.append(f"{SET}/.image", bytes(UNIT))
            mount.core.charging.grants.purse(uid()).counted_until_s = 0.0  # type: ignore[attr-defined]  # it charges here
            await mount.core.charging.grants.post()  # type: ignore[attr-defined]  # it charges here
            versions.add(ledger.basis(uid()).version)
        assert len(versions) <= 2, "but for the first time, when what was claimed is counted"
        await mount.alice.close(handle)


@pytest.mark.trio
async def test_what_is_granted_is_kept_while_the_ledger_is_away(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Interrupted(ledger)

    def fail(*_: Any) -> None:
        raise LedgerDown("the ledger's database cannot be reached")

    monkeypatch.setattr(grants, "_IDLE_S", 3600.0)
    async with charged(store, away) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", bytes(UNIT))
        dealings = charging_of(mount).grants
        away.before = dict.fromkeys(("draw", "post", "recalled"), fail)
        with trio.fail_after(ENOUGH_S):
            while not dealings._lane.is_away:  # noqa: ASYNC110 - no event tells of it
                await trio.sleep(0.02)
        monkeypatch.setattr(grants, "_IDLE_S", 0.0)
        await trio.sleep(4 * grants._INTERVAL_S)
        assert dealings.purse(uid()).balance.bytes > UNIT
        away.before = {}
        assert await settled(ledger, mount) == Amount(2 * UNIT, 2)


# Writes that end late


@pytest.mark.trio
async def test_a_write_that_was_given_up_and_happens_later_is_claimed(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun, pwrite = threading.Event(), threading.Event(), os.pwrite

    def late(fd: int, data: bytes, offset: int) -> int:
        begun.set()
        go_on.wait(ENOUGH_S)
        return pwrite(fd, data, offset)

    limit(ledger, units=4)
    async with charged(store, ledger, timeout_s=1.0) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.core.gate.watch)
            monkeypatch.setattr(os, "pwrite", late)
            with pytest.raises(Exception, match="did not answer"):
                await mount.fs.content.write(handle, 0, bytes(3 * UNIT))
            assert begun.is_set()
            monkeypatch.undo()
            with trio.fail_after(ENOUGH_S):
                while not mount.core.gate.is_up:  # noqa: ASYNC110 - the gate sends no event when the store is up again
                    await trio.sleep(0.02)
            await mount.alice.close(handle)
            await trio.sleep(2 * grants._INTERVAL_S)
            assert ledger.account(uid()).total.bytes == 4 * UNIT
            go_on.set()
            await settled_after_recount(ledger, mount)
            nursery.cancel_scope.cancel()


async def settled_after_recount(ledger: Book, mount: Mount) -> None:
    with trio.fail_after(ENOUGH_S):
        while uid() not in charging_of(mount).to_recount:  # noqa: ASYNC110 - no event tells of it
            await trio.sleep(0.02)
    await charging_of(mount).grants.post()
    assert ledger.account(uid()).total.bytes >= 4 * UNIT
