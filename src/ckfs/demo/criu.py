"""Finds the CRIUs that may work on this machine.

The distribution's comes first. Where its ``criu check`` fails (Debian 12's CRIU 3.17.1 does on newer kernels), or where
there is none, Debian 13's is unpacked into a cache directory and run from there through its own dynamic linker.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckfs.demo import apt
from ckfs.demo.nodes import CommandFailed, DemoFailed, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckfs.demo.nodes import Say

SUITE = "trixie"
_PLACE_IN_SOURCE = re.compile(r"^(?:\([\d.]+\)\s*)?(?:pie: \d+: )?(?:Error|Warn)\s+\([^)]*\):\s*")
_HARMLESS = ("rlimit: Can't setup RLIMIT_NOFILE", "exited, status=")
"""Logged as errors by runs that go on all the same: without CAP_SYS_RESOURCE, and after a probe for a program."""


@dataclass(frozen=True, slots=True)
class Criu:
    """A CRIU to run, and where it comes from."""

    command: tuple[str, ...]
    origin: str

    def check(self, node: Node) -> None:
        """``criu check`` on *node*; raises DemoFailed with its first complaint."""
        try:
            node.run([*self.command, "check"])
        except CommandFailed as error:
            raise DemoFailed(f"criu check: {first_complaint(error.output)}") from error

    def version(self, node: Node) -> str:
        match = re.search(r"Version:\s*(\S+)", node.run([*self.command, "--version"]))
        return match[1] if match else "of unknown version"


def candidates(say: Say, complaints: list[str]) -> Iterator[Criu]:
    """Every CRIU that can be had, best first. *say* hears of what takes long, *complaints* what cannot be had."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    installed = shutil.which("criu", path=path)
    if installed is None:
        complaints.append("the distribution's is not installed")
    else:
        yield Criu((installed,), "the distribution's")
    try:
        yield _unpacked(say)
    except (apt.AptFailed, OSError) as error:
        complaints.append(f"Debian 13's cannot be had: {error}")


def first_complaint(output: str) -> str:
    """The first line of CRIU's *output* that is a real error, else the first at all; without its place in the source."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not any(text in line for text in _HARMLESS)]
    return _PLACE_IN_SOURCE.sub("", (errors or lines or ["it failed without a word"])[0])


def _unpacked(say: Say) -> Criu:
    """Debian 13's CRIU from the cache directory, fetched first if it is not there."""
    root = os.path.join(_cache_directory(), f"criu-{SUITE}")
    if not os.path.isdir(root):
        release = platform.freedesktop_os_release()
        if release.get("ID") != "debian":
            raise apt.AptFailed(f"this is {release.get('PRETTY_NAME', 'another system')}, not Debian")
        archives = apt.archives_of(apt.sources_of_machine(), release.get("VERSION_CODENAME", ""))
        if not archives:
            raise apt.AptFailed("the machine's apt sources name no Debian archive")
        _fetch(archives, root)
        say(f"fetched Debian 13's CRIU from the machine's own mirror into {root}")
    linkers = glob.glob(f"{glob.escape(root)}/usr/lib/*/ld-linux*.so.*")
    if not linkers:
        raise apt.AptFailed(f"{root} holds no dynamic linker: remove it to fetch anew")
    linker = linkers[0]
    command = (linker, "--library-path", os.path.dirname(linker), f"{root}/usr/sbin/criu")
    return Criu(command, f"Debian 13's, unpacked in {root}")


def _fetch(archives: list[str], root: str) -> None:
    failures = []
    for archive in archives:
        try:
            apt.unpack("criu", SUITE, archive, root)
            return
        except apt.AptFailed as error:
            failures.append(str(error))
    raise apt.AptFailed(failures[0])


def _cache_directory() -> str:
    """A directory below which nobody but root writes: what is in it will be run by root."""
    path = os.path.join(os.environ.get("XDG_CACHE_HOME") or "/var/cache", "ckfs")
    os.makedirs(path, mode=0o755, exist_ok=True)
    above = os.path.realpath(path)
    while True:
        status = os.stat(above)
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or shared:
            raise apt.AptFailed(f"{above} can be written by others, and root would run what is below it")
        if above == "/":
            return path
        above = os.path.dirname(above)
