"""Recorded system calls of TORQUE hosts, as ``traces/*.txt`` has them.

Each host has a file: a header, sections (``== what the admin did``), and in them one line per call with its offset in
seconds from the section's start, the actor, its identity, the call and its result. All hosts have the same sections, and
ran on one machine with one clock, so that their calls merge by section and offset.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

TRACES = Path(__file__).parent / "traces"
HOSTS = ("tqsrv", "tqn1", "tqn2")
ROOT = "CKPT"
"""How the traces write the path of the checkpoint directory."""

_HEADER = re.compile(r"# host=(?P<host>\S+) ")
_SECTION = re.compile(r"== (?P<name>.+)")
_CALL = re.compile(
    r"\s*(?P<at>\d+\.\d+) (?P<actor>\w+)\[(?P<pid>\d+)\] "
    r"(?P<ruid>\d+)/(?P<euid>\d+)\((?P<fsuid>\d+)\)/g(?P<egid>\d+) "
    r"(?P<call>\w+)\((?P<arguments>.*)\) = (?P<result>.+)"
)
_EXEC = re.compile(r"\s*\d+\.\d+ (?P<actor>\w+)\[\d+\] uid=\d+/\d+ exec ")
_REPEATED = re.compile(r"\s+\.\.\. previous call repeated (?P<times>\d+) times in all")
_RESULT = re.compile(r"(?P<value>-?\d+)(?: (?P<error>E[A-Z]+) \(.*\)|<(?P<path>.*)>)?")
_STAT = re.compile(r"\{(?P<mode>[A-Z0-7_|]+) size=(?P<size>\d+)\}")
_FD = re.compile(r"(?P<fd>\d+)<(?P<path>.*?)>(?=,|$)")


class TraceError(ValueError):
    """A line that this module does not understand."""


@dataclass(frozen=True)
class Stat:
    """What a stat call told, as far as it compares between file systems."""

    type: int
    """As :func:`stat.S_IFMT` gives it."""
    permissions: int
    size: int


@dataclass(frozen=True)
class Call:
    """One recorded call, or several in a row that were recorded as one."""

    host: str
    section: int
    at: float
    """Seconds since the section began."""
    actor: str
    pid: int
    uid: int
    gid: int
    name: str
    paths: tuple[str, ...]
    """The path arguments, relative ones as they are."""
    fd: int | None
    """The number of the descriptor that the call was given."""
    fd_path: str
    """The path that this descriptor had."""
    flags: int
    mode: int
    """Of open and mkdir."""
    owner: tuple[int, int] | None
    """uid and gid arguments of chown."""
    follows: bool
    """False for lstat."""
    told: Stat | None
    value: int
    """The return value: a count, a descriptor, 0, or -1."""
    error: int
    """The errno, 0 if the call succeeded."""
    times: int = 1
    line: str = ""

    def __str__(self) -> str:
        return f"{self.host} section {self.section} {self.line}"


@dataclass(frozen=True)
class Trace:
    """One host's calls in CKPT."""

    host: str
    sections: tuple[str, ...]
    calls: tuple[Call, ...]
    skipped: tuple[str, ...]
    """The actors of the lines that are no calls in CKPT: programs started, copies of spool files."""


def load(host: str) -> Trace:
    """The trace of *host* that is kept beside this module."""
    with open(TRACES / f"{host}.txt", encoding="utf-8") as lines:
        return parse(lines)


def parse(lines: Iterable[str]) -> Trace:
    """Read one host's trace. Raises TraceError for a line that it does not understand."""
    host = ""
    sections: list[str] = []
    calls: list[Call] = []
    skipped: list[str] = []
    for line in filter(str.strip, lines):
        if found := _HEADER.match(line):
            host = found["host"]
        elif found := _SECTION.fullmatch(line.strip()):
            sections.append(found["name"])
        elif found := _REPEATED.fullmatch(line.rstrip()):
            calls[-1] = replace(calls[-1], times=int(found["times"]))
        elif found := _EXEC.match(line):
            skipped.append(found["actor"])
        elif found := _CALL.fullmatch(line.rstrip()):
            calls.append(_call(host, len(sections) - 1, found, line.strip()))
        else:
            raise TraceError(f"{host}: {line!r}")
    return Trace(host, tuple(sections), tuple(calls), tuple(skipped))


def merged(traces: Sequence[Trace]) -> Iterator[Call]:
    """The calls of all hosts in the order in which they were made, as far as the clock tells: ties stay as they are."""
    if len({trace.sections for trace in traces}) != 1:
        raise TraceError("the hosts have different sections")
    calls = [call for trace in traces for call in trace.calls]
    return iter(sorted(calls, key=lambda call: (call.section, call.at)))


def image_sizes(traces: Sequence[Trace]) -> set[int]:
    """The sizes that the recorded stat calls told of images."""
    told = [call.told for trace in traces for call in trace.calls if call.told]
    return {each.size for each in told if stat.S_ISREG(each.type) and each.size}


def _call(host: str, section: int, found: re.Match[str], line: str) -> Call:
    arguments = found["arguments"]
    value, error = _result(found["result"])
    given = _FD.match(arguments)
    name = found["call"]
    # Numbers and flags stand behind the last path; what a descriptor leads to is no argument.
    after = arguments.rpartition('"')[2] if '"' in arguments else arguments
    words = [word.strip() for word in after.split(",") if word.strip()]
    if found["euid"] != found["fsuid"]:
        raise TraceError(f"{host}: a call with an fsuid of its own: {line!r}")
    return Call(
        host=host,
        section=section,
        at=float(found["at"]),
        actor=found["actor"],
        pid=int(found["pid"]),
        uid=int(found["euid"]),
        gid=int(found["egid"]),
        name=name,
        paths=tuple(path for path in re.findall(r'"([^"]*)"', arguments) if path),
        fd=int(given["fd"]) if given else None,
        fd_path=given["path"] if given else "",
        flags=_flags(words[0]) if name == "openat" else 0,
        mode=int(words[-1], 8) if name == "mkdir" or (name == "openat" and len(words) > 1) else 0,
        owner=(int(words[0]), int(words[1])) if name == "chown" else None,
        follows="AT_SYMLINK_NOFOLLOW" not in arguments,
        told=_stat(arguments),
        value=value,
        error=error,
        line=line,
    )


def _result(text: str) -> tuple[int, int]:
    found = _RESULT.fullmatch(text)
    if not found:
        raise TraceError(f"result {text!r}")
    return int(found["value"]), int(getattr(errno, found["error"])) if found["error"] else 0


def _flags(text: str) -> int:
    flags = 0
    for word in text.split("|"):
        flags |= int(getattr(os, word))
    return flags


def _stat(arguments: str) -> Stat | None:
    found = _STAT.search(arguments)
    if not found:
        return None
    mode = 0
    for word in found["mode"].split("|"):
        mode |= int(getattr(stat, word)) if word.startswith("S_") else int(word, 8)
    return Stat(stat.S_IFMT(mode), stat.S_IMODE(mode), int(found["size"]))
