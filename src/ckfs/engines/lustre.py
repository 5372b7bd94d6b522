"""Lustre: each realm is a project, whose number is its user's (lfs-project(1), lfs-setquota(1), lfs-quota(1)).

Lustre hands its quota out to its servers in pieces, so that near the limit it is exact to some MiB, and EDQUOT may come at
close or fsync. Renames between projects are EXDEV.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ckfs.engines import tools
from ckfs.engines.directories import KIB, Directories, kib, limit_of, number
from ckfs.engines.engine import path_of
from ckfs.errors import EngineFailed
from ckfs.names import ROOT_UID, Uid
from ckfs.policy.quota import Account, Amount, Limits

_TOOL, _PACKAGE = "lfs", "lustre-client-utils"
_FIGURES = 8
_USED = re.compile(r"\[?(\d+)\]?\*?")
"""With a star if that is over a limit, in brackets if a server was not asked."""
_OF_PROJECT = re.compile(r"\s*(\d+)\s+(\S)\s+\S.*")


def parse(text: str, uid: Uid) -> Account:
    """What ``lfs quota -p`` says of the project *uid*. EngineFailed for anything else.

    A line of whose it is, the headings, then the file system's name and eight figures, which follow on the next line if the
    name is long; and lines that say that a default holds.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or f"prj {uid} " not in lines[0] or lines[1].split()[:1] != ["Filesystem"]:
        raise tools.unexpected("lfs quota", text)
    words = " ".join(line for line in lines[2:] if not line.strip().startswith("pid ")).split()
    if len(words) != 1 + _FIGURES:
        raise tools.unexpected("lfs quota", text)
    _, used, soft, hard, _grace, files, soft_files, hard_files, _files_grace = words
    try:
        return Account(
            uid,
            Amount(_used(used) * KIB, _used(files)),
            limits=Limits(limit_of(int(soft), int(hard), KIB), limit_of(int(soft_files), int(hard_files))),
        )
    except ValueError:
        raise tools.unexpected("lfs quota", text) from None


def _used(word: str) -> int:
    match = _USED.fullmatch(word)
    if match is None:
        raise ValueError(word)
    return int(match[1])


def parse_project(text: str) -> tuple[int, bool]:
    """What ``lfs project -d`` says of a directory: its project, and whether what is made in it gets that."""
    match = _OF_PROJECT.fullmatch(text.strip("\n"))
    if match is None:
        raise tools.unexpected("lfs project", text)
    return int(match[1]), match[2] == "P"


@dataclass(frozen=True, slots=True)
class Lustre(Directories):
    name: str = "lustre"

    def start(self) -> None:
        tools.find(_TOOL, _PACKAGE)

    def mark(self, uid: Uid) -> None:
        if uid == ROOT_UID:
            return
        with self.realms.opened(uid) as fd:
            if parse_project(self._run("project", "-d", path_of(fd), keeps=(fd,))) == (uid, True):
                return
            self.check_empty(uid, f"'lfs project -r -p {uid} -s users/{uid}', unmounted")
            self._run("project", "-p", str(uid), "-s", path_of(fd), keeps=(fd,))

    def account(self, uid: Uid) -> Account:
        if uid == ROOT_UID:
            return Account(uid)
        return parse(self._run("quota", "-p", str(uid), self.realms.mounted.point), uid)

    def limit(self, uid: Uid, limits: Limits) -> None:
        if uid == ROOT_UID:
            if limits.bytes.hard is not None or limits.files.hard is not None:
                raise EngineFailed("root has no project, and so no limit: keep the store as another account")
            return
        of_bytes = ["-b", str(kib(limits.bytes.soft)), "-B", str(kib(limits.bytes.hard))]
        of_files = ["-i", str(number(limits.files.soft)), "-I", str(number(limits.files.hard))]
        self._run("setquota", "-p", str(uid), *of_bytes, *of_files, self.realms.mounted.point)

    def _run(self, *arguments: str, keeps: tuple[int, ...] = ()) -> str:
        return tools.run(_TOOL, _PACKAGE, list(arguments), keeps=keeps)
