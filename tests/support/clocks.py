"""A clock that goes where a test sets it. In a module of its own, so that other processes find it."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SECOND_NS = 1_000_000_000


@dataclass
class WallClock:
    """A clock that goes where a test sets it."""

    now_ns: int = 1_800_000_000 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)

    def back(self, seconds: float) -> None:
        self.now_ns -= int(seconds * SECOND_NS)


class HostClock:
    """The wall clock of all processes that are started while it is :meth:`kept`, as an admin, or a bad battery, sets it."""

    def __init__(self, directory: Path) -> None:
        """In *directory*, which all users may pass through."""
        if shutil.which("gcc") is None:
            pytest.skip("needs gcc, for a library that sets the clock of a process")
        self._offset, self._library = directory / "offset", directory / "wallclock.so"
        self.off_by(0)
        source = Path(__file__).with_name("wallclock.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", self._library, source, "-ldl"], check=True)

    def off_by(self, seconds: int) -> None:
        """From now on it is so much ahead of the true time, or behind it."""
        with open(self._offset, "r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))
        self._offset.chmod(0o644)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(self._library))
            patch.setenv("TEST_CLOCK_OFFSET", str(self._offset))
            yield
