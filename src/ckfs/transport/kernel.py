"""The transport that speaks the kernel's FUSE protocol itself, on /dev/fuse.

Any number of tasks answer requests. One at a time *leads*: it receives, and answers one request after the other for as long as
none has to wait. Once one does, for a thread or a lock, another task leads. So most requests cost neither a new task nor a switch
to another.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
import time
from collections.abc import Awaitable

import trio

from ckfs.errors import FsError, MountFailed, errno_of
from ckfs.fs.filesystem import Filesystem
from ckfs.names import FileHandle, Inode
from ckfs.transport.device import Buffer, Device, Ended
from ckfs.transport.driving import driven
from ckfs.transport.handlers import Answer, Granted, Handlers
from ckfs.transport.transport import MOST_REQUESTS, Transport
from ckfs.transport.wire import abi, replies
from ckfs.transport.wire.abi import Opcode
from ckfs.transport.wire.decoding import decode, io_of
from ckfs.transport.wire.negotiation import Agreed, TooNew, TooOld, Wanted, negotiate
from ckfs.transport.wire.requests import (
    BatchForget,
    Forget,
    Header,
    Init,
    Interrupt,
    Malformed,
    Unsupported,
    header_of,
)

log = logging.getLogger(__name__)

_LARGEST_REQUEST = 4 << 20
_INIT_BYTES = 64 << 10
_INIT_S = 10.0
_TURN_S = 0.002
"""For how long the leading task may keep the event loop from the others."""
_WATCH_S = 0.00006
"""For how long the next request is watched for before the task sleeps until it comes: who writes in small pieces has the next one soon."""
_HAS_ONE_PROCESSOR = (os.cpu_count() or 1) < 2
_MOST_PARKED = 32
_MOST_IN_BACKGROUND = 64
"""Of requests that nobody waits for yet: pieces that are read ahead, and written back."""
MOST_PAGES = "/proc/sys/fs/fuse/max_pages_limit"
_PAGES_BEFORE = 256
"""Of kernels that have no such setting."""


class Kernel(Transport):
    name = "kernel"

    def __init__(self, fs: Filesystem, *, passes: bool, request_timeout_s: int = 0) -> None:
        super().__init__()
        self._fs = fs
        self._passes = passes
        self._request_timeout_s = request_timeout_s
        self._handlers = Handlers(fs, self.requests)
        self._by_opcode = self._handlers.by_opcode()
        self._fd = -1
        self._scope = trio.CancelScope()
        self._is_led = False
        self._is_over = False
        self._parked = trio.lowlevel.ParkingLot()
        self._workers = 0
        self.agreed: Agreed | None = None

    # From begin to end

    def begin(self, fd: int) -> None:
        self._fd = fd
        wanted = Wanted(
            max_write=largest_request(),
            max_readahead=_LARGEST_REQUEST,
            max_background=_MOST_IN_BACKGROUND,
            congestion_threshold=_MOST_IN_BACKGROUND * 3 // 4,
            passthrough=self._passes,
            locks=not self._request_timeout_s,  # who waits for one would end the mount
            request_timeout_s=self._request_timeout_s,
        )
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while self.agreed is None:
            if not poll.poll(_INIT_S * 1000):
                raise MountFailed(f"the kernel did not begin to speak within {_INIT_S:g} s")
            try:
                self._negotiate(memoryview(os.read(fd, _INIT_BYTES)), wanted)
            except OSError as error:
                raise MountFailed(f"the kernel does not begin to speak: {error.strerror}") from None
        os.set_blocking(fd, False)
        self._device = Device(fd, self.agreed.buffer_bytes)
        if self.agreed.passthrough:
            self._fs.passing.backings = self._device

    def _negotiate(self, whole: memoryview, wanted: Wanted) -> None:
        header = header_of(whole)
        asked = decode(header.opcode, whole[abi.HEADER_IN.size : header.length], header.extensions_length)
        if not isinstance(asked, Init):
            raise MountFailed(f"the kernel began with opcode {header.opcode}")
        try:
            self.agreed, body = negotiate(asked, wanted)
        except TooOld as error:
            raise MountFailed(str(error)) from None
        except TooNew as error:  # it begins again
            body = error.reply
        os.writev(self._fd, (replies.header(header.unique, 0, len(body)), body))

    @property
    def details(self) -> str:
        assert self.agreed is not None
        protocol = f"FUSE {abi.MAJOR}.{self.agreed.minor}"
        if self.agreed.passthrough:
            return f"{protocol}, with passthrough"
        why = "the kernel does not offer it" if self._passes else "it is off"
        return f"{protocol}, without passthrough: {why}"

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._call_leader()

    def end(self) -> None:
        self._scope.cancel()

    def close(self) -> None:
        os.close(self._fd)

    # Who leads

    def _call_leader(self) -> None:
        """Nobody leads: let somebody. Where all are busy the next who is not will."""
        self._is_led = False
        if self._parked:
            self._parked.unpark()
        elif self._workers < MOST_REQUESTS:
            self._workers += 1
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        """Lead when nobody else does; the task's life."""
        try:
            while not self._is_over:
                if not self._is_led:
                    self._is_led = True
                    await self._lead()
                elif len(self._parked) < _MOST_PARKED:
                    await self._parked.park()
                else:
                    return
        finally:
            self._workers -= 1

    async def _lead(self) -> None:
        """Answer requests until one of them has to wait for something; then answer that one, while somebody else leads."""
        turn_ends_s = time.monotonic() + _TURN_S
        while True:
            try:
                whole = self._device.receive()
            except Ended:
                self._is_over = True
                self._parked.unpark_all()
                self._handlers.interrupt_all()
                return
            if whole is None:
                if not self._watches_in_vain():
                    continue
                await trio.lowlevel.wait_readable(self._fd)
                turn_ends_s = time.monotonic() + _TURN_S
            elif not self._answered_at_once(whole) and await self._answer(whole):
                return
            elif time.monotonic() > turn_ends_s:
                await trio.lowlevel.checkpoint()
                turn_ends_s = time.monotonic() + _TURN_S

    def _watches_in_vain(self) -> bool:
        """Watch for the next request, unless others are being answered, who want the processor."""
        if not self.requests.are_none or _HAS_ONE_PROCESSOR:
            return True
        until = time.monotonic() + _WATCH_S
        while time.monotonic() < until:
            if self._device.has_one():
                return False
        return True

    # Answering

    def _answered_at_once(self, whole: memoryview) -> bool:
        """Whether it was a read or write that had to wait for nothing, as nearly all are: these go the shortest way there is."""
        asked = io_of(whole)
        if asked is None:
            return False
        unique, number, offset, size, data = asked
        try:
            if data is None:
                found = self._fs.content.found_at_once(FileHandle(number), offset, size)
                if found is None:
                    return False
                self._device.reply(unique, found)
            elif self._fs.content.wrote_at_once(FileHandle(number), offset, data):
                self._device.reply_whole(replies.whole_written(unique, size))
            else:
                return False
        except Exception:  # noqa: BLE001 - the long way meets it again, and says so
            return False
        self.requests.was_answered()
        return True

    async def _answer(self, whole: memoryview) -> bool:
        """Whether it had to wait, so that somebody else leads by now."""
        header = header_of(whole)
        opcode, unique = header.opcode, header.unique
        try:
            asked = decode(opcode, whole[abi.HEADER_IN.size : header.length], header.extensions_length)
        except Malformed as error:
            log.error("a request that is none (opcode %d): %s", opcode, error)  # noqa: TRY400 - not a bug of ours
            self._device.refuse(unique, errno.EIO)
            return False
        except Unsupported:
            self._device.refuse(unique, errno.ENOSYS)
            return False
        handler = self._by_opcode.get(opcode)
        if handler is None:
            if not self._takes_note(header, asked):
                self._device.refuse(
                    unique, errno.ENOSYS
                )  # of what is never answered: the kernel need not ask again
            return False
        lent: Buffer | None = None
        has_waited = False

        def waits() -> None:
            nonlocal lent, has_waited
            has_waited = True
            if opcode == Opcode.WRITE:
                lent = self._device.lend()
            self._call_leader()

        self.requests.begin()
        try:
            is_done = await self._reply(header, driven(handler(header, asked), waits))
        finally:
            self.requests.end()
        if lent is not None and is_done:
            self._device.give_back(lent)
        return has_waited

    async def _reply(self, header: Header, answering: Awaitable[Answer]) -> bool:
        """Whether it went well, so that nobody uses any more what the request brought."""
        device, unique = self._device, header.unique
        try:
            answer = await answering
            body, take_back = answer if isinstance(answer, Granted) else (answer, None)
            if not device.reply(unique, body) and take_back is not None:
                await take_back()
            return True
        except (FsError, OSError, RecursionError) as error:
            device.refuse(unique, errno_of(error))
        except Exception as error:
            log.exception("opcode %d failed unexpectedly", header.opcode)
            device.refuse(unique, errno_of(error))
        except BaseException:  # trio.Cancelled, while the mount ends: its caller still gets an answer
            device.refuse(unique, errno.EIO)
            raise
        return False

    def _takes_note(self, header: Header, asked: object) -> bool:
        """Whether it is something that wants no answer."""
        if isinstance(asked, Forget):
            self._fs.forget(Inode(header.nodeid), asked.count)
        elif isinstance(asked, BatchForget):
            for nodeid, count in asked.items:
                self._fs.forget(Inode(nodeid), count)
        elif isinstance(asked, Interrupt):
            self._handlers.interrupt(asked.unique)
        else:
            return False
        return True


def largest_request() -> int:
    """In bytes: what the kernel grants, up to what is of use."""
    try:
        with open(MOST_PAGES, encoding="ascii") as setting:
            pages = int(setting.read())
    except (OSError, ValueError):
        pages = _PAGES_BEFORE
    return min(pages * mmap.PAGESIZE, _LARGEST_REQUEST)
