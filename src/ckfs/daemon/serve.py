"""Serving one mount, from opening the store to the last request."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import outcome
import trio

from ckfs import __version__
from ckfs.control import operations
from ckfs.control.server import Server
from ckfs.daemon import mounting
from ckfs.daemon.keeper import account_of
from ckfs.daemon.mounting import OwnMount
from ckfs.daemon.notify import notify
from ckfs.daemon.options import MountOptions
from ckfs.engines.engine import Engine
from ckfs.errors import CkfsError, FsError, LedgerDown, MountFailed, NotPermitted, StoreUnusable
from ckfs.fs.charging import charge
from ckfs.fs.core import Core
from ckfs.fs.enforced import engine_of
from ckfs.fs.filesystem import Filesystem, filesystem
from ckfs.fs.ledgers import Host, open_ledger
from ckfs.fs.membership import Membership
from ckfs.fs.reaching import Reaching
from ckfs.fs.reclaiming import Reclaiming
from ckfs.fs.seeing import Seeing
from ckfs.fs.softlimits import SoftLimits
from ckfs.ledger.ledger import Ledger
from ckfs.ledger.state import state_directory
from ckfs.model import Owner
from ckfs.names import ROOT_INODE, shown
from ckfs.owners.lookup import Users
from ckfs.policy import settings
from ckfs.policy.passing import Wish
from ckfs.policy.settings import Policy
from ckfs.store import syscalls
from ckfs.store.gate import Gate
from ckfs.store.identity import prepare_process
from ckfs.store.layout import Store, open_store, reachable_by_users
from ckfs.store.volumes import Here
from ckfs.transport.choosing import transports
from ckfs.transport.transport import Transport

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLICY_INTERVAL_S = 3.0
_QUIET_S = 2.0
_RETRY_S = 1.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_READ_AHEAD_KIB = 4096
_ARENAS = 2
_STACK_BYTES = 64 << 20
_DEEPEST_CALLS = 10_000


def serve(store_path: str, mountpoint: str, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted or told to stop; *ready* is called once the mount answers.

    Raises CkfsError, with nothing left behind, if it does not come up.
    """
    if os.geteuid() != 0:
        raise NotPermitted("only root can mount ckfs: it keeps every user's files as that user")
    path = mounting.resolved(mountpoint)
    service = account_of(options.service_user)
    _raise_descriptor_limit()
    prepare_process()
    syscalls.bound_malloc_arenas(_ARENAS)
    threading.stack_size(_STACK_BYTES)  # of address space: what deep trees need, and no user can exhaust
    sys.setrecursionlimit(_DEEPEST_CALLS)
    store, policy = _within(options.op_timeout_s, store_path, lambda: _opened(store_path, service, options))
    with contextlib.ExitStack() as opened:
        opened.enter_context(contextlib.closing(store))
        engine = _while_it_answers(options.op_timeout_s, store, lambda: _engine_of(store, policy, options))
        if engine is not None:
            opened.enter_context(contextlib.closing(engine))
        ledger = _while_it_answers(options.op_timeout_s, store, lambda: _ledger_of(store, policy, options))
        if ledger is not None:
            opened.enter_context(contextlib.closing(ledger))
        users = Users(policy)
        gate = Gate(
            store.door.probe,
            op_timeout_s=options.op_timeout_s,
            io_timeout_s=options.io_timeout_s,
            local=store.door.is_local,
            volumes=store.volumes,
        )
        node = options.node.encode()
        member = _while_it_answers(
            options.op_timeout_s, store, lambda: _member_of(store, policy, node, options)
        )
        core = Core(
            store,
            gate,
            policy,
            users,
            options.role,
            node,
            options.op_timeout_s,
            member,
            options.reads_partial,
            ledger=ledger,
            engine=engine,
        )
        charge(core, SoftLimits().see)
        try:
            told_early = _noted_signals()
            fs = filesystem(core)
            own, transport = mounted_by(fs, path, options)
            trio.run(_Mount(fs, users, own, transport, _state_of(options), ready, told_early).run)
        finally:
            _leave(core)
    log.info("ended")


def mounted_by(fs: Filesystem, path: str, options: MountOptions) -> tuple[OwnMount, Transport]:
    """Mount, by the first transport that can serve it. Raises MountFailed, with nothing left behind."""
    failure = MountFailed(f"{shown(path)}: no transport")
    fs.passing.wish = options.passthrough
    passes, limit_s = options.passthrough is not Wish.OFF, options.request_timeout_s
    for transport in transports(options.transport, fs, passes=passes, request_timeout_s=limit_s):
        own = mounting.mount(fs.core.store.path, path, read_only=options.read_only)
        try:
            transport.begin(own.fd)
        except MountFailed as error:
            failure = MountFailed(f"{shown(path)}: {error}")
            log.info("transport %s: %s", transport.name, error)
            with contextlib.suppress(OSError):  # not a crash: it never came up
                own.unmount()
            continue
        log.info("transport %s: %s", transport.name, transport.details)
        return own, transport
    raise failure


def _leave(core: Core) -> None:
    """Tell the other mounts that this one has ended; one whose store hangs is missed by them soon enough."""
    member = core.member
    if member is None:
        return
    finished = all(handle.mount is None for handle in core.handles.all())

    def leave() -> None:
        with contextlib.suppress(LedgerDown, CkfsError):  # then the others count anew what it had
            core.charging.leave()
        with contextlib.suppress(OSError):
            member.leave(finished=finished)

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(core.op_timeout_s)


def _ledger_of(store: Store, policy: Policy, options: MountOptions) -> Ledger | None:
    """The ledger in which this mount counts; None if it does not."""
    if options.read_only:
        return None
    host = Host.here(_state_of(options), options.node)
    return open_ledger(store, policy, host, options.op_timeout_s)


def _member_of(store: Store, policy: Policy, node: bytes, options: MountOptions) -> Membership | None:
    """This mount among the others; None if it writes nothing."""
    if options.read_only:
        return None
    member = Membership(store.mounts, node)
    try:
        member.claim_name(policy.lease_s)
    except BaseException:
        member.leave(finished=True)
        raise
    return member


def _state_of(options: MountOptions) -> Path:
    return state_directory(options.state).absolute()


def _engine_of(store: Store, policy: Policy, options: MountOptions) -> Engine | None:
    """What enforces quotas for this mount, if the store's own engine does."""
    return None if options.read_only else engine_of(store, policy.quota)


def _noted_signals() -> list[int]:
    """Signals that come from now on: between mount(2) and the loop they would end the process and leave a dead mount."""
    noted: list[int] = []
    for number in _STOPPING:
        signal.signal(number, lambda received, _: noted.append(received))
    return noted


def _opened(path: str, service: Owner, options: MountOptions) -> tuple[Store, Policy]:
    here = Here(options.node, options.further, options.op_timeout_s / 2)
    store = open_store(path, service, read_only=options.read_only, only=options.store_id, here=here)
    if reachable_by_users(path):
        log.warning(
            "users can reach the store %s around ckfs: put it below a local directory of root with mode 0700",
            shown(path),
        )
    return store, store.read_policy()


def _within(limit_s: float, path: str, work: Callable[[], T]) -> T:
    """Do *work* in a thread; StoreUnusable if the store does not answer in time."""
    ended = _Aside(work)
    if not ended.within(limit_s):
        raise StoreUnusable(
            f"{shown(path)}: the store did not answer within {limit_s:g} s: see whether it is reachable"
        )
    return ended.result()


def _while_it_answers(limit_s: float, store: Store, work: Callable[[], T]) -> T:
    """Do *work*, which may take its time, in a thread; StoreUnusable as soon as the store does not answer in time."""
    ended = _Aside(work)
    while not ended.within(limit_s):
        _within(limit_s, store.path, store.door.probe)
    return ended.result()


class _Aside(Generic[T]):
    """*work*, done in a thread that nobody has to wait for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._outcomes: list[outcome.Outcome[T]] = []
        self._thread = threading.Thread(
            target=lambda: self._outcomes.append(outcome.capture(work)), daemon=True
        )
        self._thread.start()

    def within(self, limit_s: float) -> bool:
        """Whether it has ended, waiting that long for it."""
        self._thread.join(limit_s)
        return bool(self._outcomes)

    def result(self) -> T:
        return self._outcomes[0].unwrap()


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Mount:
    """The tasks of one mount."""

    def __init__(
        self,
        fs: Filesystem,
        users: Users,
        own: OwnMount,
        transport: Transport,
        state: Path,
        ready: Callable[[], None],
        told_early: list[int],
    ) -> None:
        self._fs = fs
        self._core = fs.core
        self._users = users
        self._own = own
        self._path = own.path
        self._transport = transport
        self._control = Server(operations.Mount(fs, own.path, transport.name, str(state)))
        self._ready = ready
        self._told_early = told_early
        self._stopping = False

    async def run(self) -> None:
        try:
            await self._serve()
        except CkfsError:  # not a crash: it never came up
            with contextlib.suppress(OSError):  # before the connection is closed, which the mount is known by
                self._own.unmount()
            raise
        finally:
            # After any other exception the dead mount stays in place: never a bare directory to write into.
            self._transport.close()

    async def _serve(self) -> None:
        failure: list[CkfsError] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(self._control.run, self._own.device)
            nursery.start_soon(self._stop_on_signal)
            nursery.start_soon(self._core.gate.watch)
            nursery.start_soon(self._follow_policy)
            nursery.start_soon(Reaching(self._core).run)
            nursery.start_soon(self._fs.sets.following.run)
            nursery.start_soon(self._fs.housekeeping.run)
            nursery.start_soon(self._fs.content.settle_later)
            nursery.start_soon(self._fs.digesting.run)
            nursery.start_soon(self._fs.locking.run)
            nursery.start_soon(self._fs.passing.unseen.run)
            if self._core.member is not None:
                nursery.start_soon(self._core.member.run, self._core.gate, lambda: self._core.policy)
            nursery.start_soon(Seeing(self._core).run)
            nursery.start_soon(self._core.charging.run)
            if self._core.ledger is not None:
                nursery.start_soon(Reclaiming(self._core, self._core.ledger).run)
            nursery.start_soon(self._core.figures.sum_up)
            nursery.start_soon(self._announce, failure)
            await self._transport.run()
            notify("STOPPING=1")
            with trio.move_on_after(self._core.op_timeout_s):
                await self._fs.content.end()
            nursery.cancel_scope.cancel()
        if failure:
            raise failure[0]
        with contextlib.suppress(OSError):
            mounting.remove_dead(self._path)

    async def _announce(self, failure: list[CkfsError]) -> None:
        """Once a look from outside has been answered, say so."""
        status: os.stat_result | None = None
        with trio.move_on_after(self._core.op_timeout_s + 1), contextlib.suppress(OSError, RuntimeError):
            status = await trio.to_thread.run_sync(os.stat, self._path, abandon_on_cancel=True)
        if self._stopping:
            return
        if status is None or status.st_ino != ROOT_INODE:
            failure.append(MountFailed(f"{shown(self._path)}: mounted, but the store does not answer"))
            self._transport.end()
            return
        with contextlib.suppress(OSError):
            mounting.read_ahead(status.st_dev, _READ_AHEAD_KIB)
        log.info(
            "ckfs %s: %s on %s as %s %s",
            __version__,
            shown(self._core.store.path),
            shown(self._path),
            self._core.role.value,
            shown(self._core.node_name),
        )
        self._ready()
        notify("READY=1")

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(*_STOPPING) as signals:
            if not self._told_early:
                await anext(aiter(signals))
            self._stopping = True
            notify("STOPPING=1")
            log.info("told to stop: unmounting, and ending what is open")
            await self._unmount()
            await self._finish()
            await trio.sleep_forever()  # what comes again changes nothing

    async def _unmount(self) -> None:
        # In a thread, since the kernel may ask this mount something meanwhile.
        while True:
            try:
                if not await trio.to_thread.run_sync(self._own.unmount, abandon_on_cancel=True):
                    log.info("nothing unmounted: the uppermost mount there is not this one")
                return
            except OSError:
                return  # somebody else was first
            except RuntimeError:  # no thread to be had
                await trio.sleep(_RETRY_S)

    async def _finish(self) -> None:
        """End the loop when nothing is open any more, or nobody asks anything; after a plain unmount it ends by itself.

        Who has an image open goes on: its writes and its close are answered. Who only keeps a file open is not waited for.
        """
        gate = self._core.gate
        limit_s = gate.io_timeout_s if gate.is_up else gate.op_timeout_s
        requests, unseen = self._transport.requests, self._fs.passing.unseen
        with trio.move_on_after(limit_s):
            await requests.idle()
            while len(self._core.handles):
                written = await unseen.as_written()
                if await requests.quiet(_QUIET_S) and written == await unseen.as_written():
                    break
                await requests.idle()
        self._transport.end()

    async def _follow_policy(self) -> None:
        store, last, refused = self._core.store, "", ""
        while True:
            await trio.sleep(_POLICY_INTERVAL_S)
            try:
                text = await self._core.gate.call(store.policy_text)
                if text == last:
                    continue
                last = text
                self._take_up(settings.parse(text))
                refused = ""
            except CkfsError as error:
                if str(error) != refused:
                    log.error("policy refused, the last good one stays in force: %s", error)  # noqa: TRY400 - not a bug
                refused = str(error)
            except (OSError, FsError) as error:
                log.debug("cannot read the policy: %s", error)

    def _take_up(self, policy: Policy) -> None:
        if policy == self._core.policy:
            return
        if policy.quota.place != self._core.policy.quota.place:
            log.info(
                "quota.mode, quota.ledger and quota.engine of the policy hold for this mount from its next start on"
            )
        self._core.policy = policy
        self._users.follow(policy)
        log.info("new policy in force")
