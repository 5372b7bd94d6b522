"""Processes that make calls as some user, one after the other, and remember what a process remembers in between.

For one call alone :func:`tests.support.users.as_user` is simpler. An agent keeps its working directory and descriptors, and
a call to it costs no fork; :func:`race` lets several processes begin the same thing together.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

ANSWER_WITHIN_S = 60.0
"""A call that takes longer hangs."""

P = ParamSpec("P")
T = TypeVar("T")


class Hangs(AssertionError):
    """A call did not come back, or its process died."""


class Agent:
    """A forked child that makes calls as *uid* (and the group of the same number) until :meth:`close`."""

    def __init__(self, uid: int, gid: int | None = None) -> None:
        self._connection, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _obey(theirs, uid, uid if gid is None else gid)
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``call(*args)`` in the child; its OSError is raised here. *call* must be a function of a module."""
        self.begin(call, *args, **kwargs)
        answer: T = self.result()
        return answer

    def begin(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """As :meth:`do`, without waiting: :meth:`result` does."""
        self._connection.send((call, args, kwargs))

    def result(self, within: float = ANSWER_WITHIN_S) -> Any:
        """What the call that was begun gave; its OSError is raised here. Raises Hangs after *within* seconds."""
        try:
            if not self._connection.poll(within):
                os.kill(self._pid, signal.SIGKILL)
                raise Hangs(f"no answer within {within} s")
            error, value = self._connection.recv()
        except EOFError:
            raise Hangs("the agent died") from None
        if error is not None:
            raise error
        return value

    def is_done(self, within: float) -> bool:
        """Whether the call that was begun is over, or is after at most *within* seconds; its result is yet to be asked for."""
        return self._connection.poll(within)

    def kill(self) -> None:
        """SIGKILL; nothing but :meth:`close` may follow."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """The child exits, which closes what it had open."""
        self._connection.close()
        os.waitpid(self._pid, 0)


def race(runners: Sequence[tuple[int, Callable[[], T]]], rounds: int) -> list[list[T]]:
    """For each of *rounds* what each runner gave, a function beside the uid to call it as; all begin a round together.

    A runner is called once per round, in a child of its own.
    """
    barrier = multiprocessing.get_context("fork").Barrier(len(runners), timeout=ANSWER_WITHIN_S)
    children: list[tuple[int, Connection]] = []
    for uid, runner in runners:
        ours, theirs = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            _take_part(theirs, uid, barrier, runner, rounds)
        theirs.close()
        children.append((pid, ours))
    try:
        answers = [_received(connection) for _, connection in children]
    finally:
        for pid, connection in children:
            connection.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if failures := [failure for failure, _ in answers if failure]:
        # Whoever waited for the one that failed has failed too, of no interest.
        raise AssertionError(next((f for f in failures if "BrokenBarrierError" not in f), failures[0]))
    return [list(outcomes) for outcomes in zip(*(results for _, results in answers), strict=True)]


def _received(connection: Connection) -> tuple[str, list[Any]]:
    if not wait([connection], 10 * ANSWER_WITHIN_S):
        raise Hangs("a racer does not end")
    try:
        answer: tuple[str, list[Any]] = connection.recv()
    except EOFError:
        raise Hangs("a racer died") from None
    return answer


def _take_part(
    connection: Connection, uid: int, barrier: Barrier, runner: Callable[[], object], rounds: int
) -> NoReturn:
    try:
        _become(uid, uid)
        results = []
        for _ in range(rounds):
            barrier.wait()
            results.append(runner())
        connection.send(("", results))
    except BaseException:  # noqa: BLE001 - the parent raises it again
        barrier.abort()
        connection.send((traceback.format_exc(), []))
    finally:
        os._exit(0)


def _obey(connection: Connection, uid: int, gid: int) -> NoReturn:
    try:
        # Only its own connection: another agent's would keep that one from seeing its end.
        os.closerange(3, connection.fileno())
        os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _become(uid, gid)
        while True:
            call, args, kwargs = connection.recv()
            try:
                connection.send((None, call(*args, **kwargs)))
            except Exception as exc:  # noqa: BLE001 - the parent raises it again
                connection.send((exc, None))
    finally:
        os._exit(0)


def _become(uid: int, gid: int) -> None:
    os.umask(0o022)
    # The whole process is meant here: it is a child made to be this user.
    os.setgroups([])  # noqa: TID251 - a process of its own, for that user
    os.setresgid(gid, gid, gid)  # noqa: TID251 - a process of its own, for that user
    os.setresuid(uid, uid, uid)  # noqa: TID251 - a process of its own, for that user
