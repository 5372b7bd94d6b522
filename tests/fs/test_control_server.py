"""The server of a control socket in process, with time limits and operations of the test's own."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ckfs.control import operations, server
from ckfs.control.client import socket_name
from ckfs.control.operations import OPERATIONS, Operation, Peer, Tell
from ckfs.control.protocol import Asked, Request, Values, encode_request
from ckfs.control.server import Limits, Places, Server
from ckfs.errors import CkfsError, Denied, NotFound, StoreDown, UsageError
from tests.fs.cores import ALICE, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]

DEVICE = "0:1"
LONG = Limits(request_s=60, line_s=60, sign_s=60)


@asynccontextmanager
async def serving(store: Path, path: Path, limits: Limits = LONG) -> AsyncIterator[Server]:
    """Its socket is below *path*."""
    async with mounted(store) as mount, trio.open_nursery() as nursery:
        served = Server(operations.Mount(mount.fs, "/mount", "none"), limits)
        await nursery.start(served.run, DEVICE, str(path / "run"))
        yield served
        nursery.cancel_scope.cancel()
    assert os.listdir(path / "run") == []


def knows(monkeypatch: pytest.MonkeyPatch, name: str, operation: Operation) -> None:
    monkeypatch.setattr(server, "OPERATIONS", {**OPERATIONS, name: operation})


async def asking(path: Path, operation: str) -> trio.SocketStream:
    stream = await trio.open_unix_socket(str(path / "run" / socket_name(DEVICE)))
    await stream.send_all(encode_request(Request(operation, {})))
    return stream


async def answer(stream: trio.SocketStream) -> list[dict[str, object]]:
    data = b""
    async with stream:
        async for piece in stream:
            data += piece
    return [json.loads(line) for line in data.splitlines()]


async def all_places_free(served: Server) -> None:
    with trio.fail_after(30):
        while served.places != Places():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


async def test_who_never_reads_is_left(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(mount: operations.Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
        while True:
            await tell({"text": "x" * 100_000})

    knows(monkeypatch, "endless", endless)
    async with serving(store, tmp_path, Limits(request_s=60, line_s=0.05, sign_s=60)) as served:
        stream = await asking(tmp_path, "endless")
        other = await asking(tmp_path, "status")
        assert (await answer(other))[-1] == {"done": True}
        await stream.wait_send_all_might_not_block()
        await all_places_free(served)
        await stream.aclose()


async def test_who_waits_hears_that_it_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = trio.Event()

    async def slow(mount: operations.Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
        await heard.wait()

    knows(monkeypatch, "slow", slow)
    async with serving(store, tmp_path, Limits(request_s=60, line_s=60, sign_s=0.01)):
        stream = await asking(tmp_path, "slow")
        assert bytes(await stream.receive_some(3)) == b"{}\n"
        heard.set()
        assert (await answer(stream))[-1] == {"done": True}


async def test_what_nobody_waits_for_is_not_gone_on_with(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def long(mount: operations.Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    knows(monkeypatch, "long", long)
    async with serving(store, tmp_path) as served:
        stream = await asking(tmp_path, "long")
        await begun.wait()
        await stream.aclose()
        with trio.fail_after(30):
            await ended.wait()
        await all_places_free(served)


async def test_who_cannot_be_told_from_other_processes_gets_no_permit(store: Path) -> None:
    """Of a process in a pid namespace that is not below the daemon's the kernel says no number."""

    async def tell(values: Values) -> None:
        raise AssertionError(values)

    async with mounted(store) as mount:
        peer = Peer(ALICE.uid, ALICE.gid, process=None)
        with pytest.raises(CkfsError, match="from another pid namespace"):
            await operations.read_partial(
                operations.Mount(mount.fs, "/mount", "none"), peer, Asked({"ino": 7}), tell
            )


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (UsageError("say which"), "say which", 2),
        (CkfsError("it failed"), "it failed", 1),
        (Denied("not yours"), "not yours", 5),
        (NotFound("it is gone"), "it is gone", 1),
        (StoreDown("the store is down"), "the store does not answer: the store is down", 3),
        (OSError(errno.EIO, "Input/output error"), "the store: Input/output error", 3),
        (RecursionError(), "a tree there is deeper than ckfs walks", 1),
        (ZeroDivisionError(), "the daemon met a bug: see its log", 1),
    ],
)
async def test_each_error_has_a_line_and_a_status(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, status: int
) -> None:
    async def failing(mount: operations.Mount, peer: Peer, asked: Asked, tell: Tell) -> None:
        await tell({"part": 1})
        raise error

    knows(monkeypatch, "failing", failing)
    async with serving(store, tmp_path):
        parts = await answer(await asking(tmp_path, "failing"))
        assert parts == [{"says": {"part": 1}}, {"error": said, "status": status}]
        assert (await answer(await asking(tmp_path, "status")))[-1] == {"done": True}
