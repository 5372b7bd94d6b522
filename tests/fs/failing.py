"""A store that fails on purpose: at its n-th system call, once, or for ever from then on as for a process that was killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Container, Iterator
from typing import Any

import pytest

from ckfs.store import (
    attributes,
    charges,
    copying,
    copylocks,
    door,
    namelinks,
    namespace,
    refusals,
    syscalls,
    way,
)
from ckfs.store.checking import mending, naming, registry, top

_CALLS = frozenset(
    (
        "chmod",
        "chown",
        "fchmod",
        "fstat",
        "ftruncate",
        "getxattr",
        "link",
        "listdir",
        "listxattr",
        "mkdir",
        "open",
        "pread",
        "pwrite",
        "readlink",
        "removexattr",
        "rmdir",
        "rename",
        "setxattr",
        "stat",
        "symlink",
        "unlink",
        "write",
    )
)


class Killed(BaseException):
    """The process is dead: it makes no further call, whatever its ``except`` and ``finally`` blocks would do."""


class Failing:
    """Counts the store's calls while armed."""

    def __init__(self) -> None:
        self.count = 0
        self.at = 0
        """The number of the call that fails, from 1; 0 for none."""
        self.error: Callable[[], BaseException] = Killed
        self.only: Container[str] | None = None
        self.log: list[str] = []
        self.lacks_noreplace = False
        """Whether the store knows no RENAME_NOREPLACE or RENAME_EXCHANGE, as NFS and GlusterFS do not."""
        self.missed_noreplace = False
        """Whether anybody has asked for it since, in vain."""

    @contextlib.contextmanager
    def armed(
        self, at: int, error: Callable[[], BaseException], only: Container[str] | None = None
    ) -> Iterator[None]:
        """*only* these calls count: not each store lists a directory in the same order, and so is looked at with as many calls."""
        self.count, self.at, self.error, self.only, self.log = 0, at, error, only, []
        try:
            yield
        finally:
            self.at = 0

    def check(self, what: str) -> None:
        if not self.at:
            return
        is_dead = self.count >= self.at and self.error is Killed
        counts = self.only is None or what in self.only
        if counts:
            self.count += 1
            self.log.append(what)
        if is_dead or (counts and self.count == self.at):
            raise self.error()

    def rename(self, real: Callable[[int, bytes, int, bytes, int], None]) -> Callable[..., None]:
        def checked(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
            self.check("rename")
            if self.lacks_noreplace and flags:
                self.missed_noreplace = True
                raise OSError(errno.EINVAL, "no such flag")
            real(src_dir, src, dst_dir, dst, flags)

        return checked

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.check(name)
            return call(*args, **kwargs)

        return checked


class _Os:
    """Module os with its calls on the store checked."""

    def __init__(self, failing: Failing) -> None:
        self._wrapped = {name: failing.wrapped(name, getattr(os, name)) for name in _CALLS}

    def __getattr__(self, name: str) -> Any:
        return self._wrapped.get(name) or getattr(os, name)


def install(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """From now on the store's calls of this process go through what is returned."""
    failing = Failing()
    replacement = _Os(failing)
    for module in (
        attributes,
        charges,
        door,
        namespace,
        refusals,
        way,
        namelinks,
        copying,
        copylocks,
        mending,
        naming,
        registry,
        top,
    ):
        monkeypatch.setattr(module, "os", replacement)
    monkeypatch.setattr(syscalls, "rename", failing.rename(syscalls.rename))
    for name in ("set_times", "directory_entries"):
        monkeypatch.setattr(syscalls, name, failing.wrapped(name, getattr(syscalls, name)))
    return failing


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """The store's calls of this test."""
    return install(monkeypatch)


@pytest.fixture(
    params=[
        pytest.param(False, id="flags", marks=pytest.mark.plain_alone("NFS has none")),
        pytest.param(True, id="no flags"),
    ]
)
def flags(request: pytest.FixtureRequest, failing: Failing) -> bool:
    """With and without RENAME_NOREPLACE and RENAME_EXCHANGE, which NFS does not know."""
    failing.lacks_noreplace = request.param
    return not request.param
