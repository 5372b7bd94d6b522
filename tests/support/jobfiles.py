"""Writes job files as TORQUE does, independently of the reader: the structures come from C's declarations through ctypes,
the XML is laid out and escaped as libxml2 saves it. ``raw=True`` leaves values unescaped, as no TORQUE should.

Sources: src/include/pbs_job.h, attribute.h, list_link.h, pbs_ifl.h, job_recovery.h, src/server/job_qs_upgrade.cpp,
attr_recov.c of TORQUE (https://github.com/adaptivecomputing/torque).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEW, EXEC, ROUTE, MOM = range(4)
"""ji_un_type: which member of the union is valid."""

Attribute = tuple[str, str, bytes]
"""Name, resource (often empty), value."""


@dataclass(frozen=True)
class Job:
    job_id: str = "12.server"
    file_prefix: str = "12.server"
    union_type: int = MOM
    uid: int = 2101
    gid: int = 2100
    attributes: Sequence[Attribute] = (
        ("Job_Name", "", b"sleep"),
        ("Job_Owner", "", b"alice@login.example"),
        ("Resource_List", "walltime", b"01:00:00"),
        ("Resource_List", "nodes", b"1"),
        ("Variable_List", "", b"PBS_O_HOME=/home/alice,PBS_O_LANG=C"),
        ("euser", "", b"alice"),
        ("egroup", "", b"users"),
        ("hashname", "", b"12.server"),
    )


def with_values(job: Job, **values: bytes) -> Job:
    """*job* with other values of some attributes; one that it does not have is appended."""
    kept = [(name, resource, values.pop(name, value)) for name, resource, value in job.attributes]
    attributes = [*kept, *((name, "", value) for name, value in values.items())]
    return Job(job.job_id, job.file_prefix, job.union_type, job.uid, job.gid, attributes)


def without(job: Job, attribute: str) -> Job:
    kept = [entry for entry in job.attributes if entry[0] != attribute]
    return Job(job.job_id, job.file_prefix, job.union_type, job.uid, job.gid, kept)


# --- binary ------------------------------------------------------------------------------------------------------------


class _Execution(ctypes.LittleEndianStructure):
    _fields_ = [("ji_momaddr", ctypes.c_uint64), ("ji_exitstat", ctypes.c_int32)]


class _Mom(ctypes.LittleEndianStructure):
    _fields_ = [
        ("ji_svraddr", ctypes.c_uint64),
        ("ji_exitstat", ctypes.c_int32),
        ("ji_exuid", ctypes.c_uint32),
        ("ji_exgid", ctypes.c_uint32),
    ]


class _Union(ctypes.Union):
    _fields_ = [("ji_exect", _Execution), ("ji_momt", _Mom)]


class _Attropl(ctypes.LittleEndianStructure):
    _fields_ = [
        ("next", ctypes.c_uint64),
        ("name", ctypes.c_uint64),
        ("resource", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("op", ctypes.c_int32),
    ]


class _Attribute(ctypes.LittleEndianStructure):
    _fields_ = [
        ("al_link", ctypes.c_uint64 * 3),
        ("al_atopl", _Attropl),
        ("al_tsize", ctypes.c_int32),
        ("al_nameln", ctypes.c_int32),
        ("al_rescln", ctypes.c_int32),
        ("al_valln", ctypes.c_int32),
        ("al_flags", ctypes.c_uint32),
    ]


VERSIONS: dict[str, tuple[int | None, int, int, int]] = {
    "2.1": (None, 80, 12, 87),
    "2.2": (0x00020200, 86, 12, 87),
    "2.3": (0x00020300, 86, 62, 87),
    "2.4": (0x00020301, 1046, 62, 1047),
    "2.5-4": (0x00020302, 1047, 62, 1047),
}
"""qs_version, and the sizes of ji_jobid, ji_fileprefix and ji_destin."""


def _fixed(version: str) -> Any:
    number, job_id, file_prefix, destination = VERSIONS[version]
    fields: list[tuple[str, Any]] = [] if number is None else [("qs_version", ctypes.c_int32)]
    names = ["ji_state", "ji_substate", "ji_svrflags", "ji_numattr", "ji_ordering", "ji_priority"]
    fields += [(name, ctypes.c_int32) for name in names]
    fields += [
        ("ji_stime", ctypes.c_int64),
        ("ji_jobid", ctypes.c_char * job_id),
        ("ji_fileprefix", ctypes.c_char * file_prefix),
        ("ji_queue", ctypes.c_char * 16),
        ("ji_destin", ctypes.c_char * destination),
        ("ji_un_type", ctypes.c_int32),
        ("ji_un", _Union),
    ]
    structure = type("jobfix", (ctypes.LittleEndianStructure,), {"_fields_": fields})()
    if number is not None:
        structure.qs_version = number
    return structure


def encoded(name: str, resource: str, value: bytes) -> bytes:
    """One attribute as save_attr() writes it: the header with a process's pointers in it, then the strings."""
    strings = [name.encode() + b"\0", resource.encode() + b"\0" if resource else b"", value + b"\0"]
    header = _Attribute(al_flags=1)
    header.al_atopl.name, header.al_atopl.value = 0x55D0C0FFEE00, 0x55D0C0FFEE40
    header.al_nameln, header.al_rescln, header.al_valln = map(len, strings)
    header.al_tsize = ctypes.sizeof(header) + sum(map(len, strings))
    return bytes(header) + b"".join(strings)


def binary(job: Job, version: str = "2.5-4") -> bytes:
    fixed = _fixed(version)
    fixed.ji_state, fixed.ji_substate, fixed.ji_stime = 4, 42, 1700000000
    fixed.ji_jobid, fixed.ji_fileprefix = job.job_id.encode(), job.file_prefix.encode()
    fixed.ji_queue, fixed.ji_un_type = b"batch", job.union_type
    if job.union_type == MOM:
        fixed.ji_un.ji_momt.ji_svraddr = 0x0A000001
        fixed.ji_un.ji_momt.ji_exuid, fixed.ji_un.ji_momt.ji_exgid = job.uid, job.gid
    else:
        fixed.ji_un.ji_exect.ji_momaddr = 0x0A000002
    end = _Attribute(al_tsize=-711)
    return bytes(fixed) + b"".join(encoded(*entry) for entry in job.attributes) + bytes(end)


# --- XML ---------------------------------------------------------------------------------------------------------------


def escaped(value: bytes) -> bytes:
    """As libxml2 saves text without an encoding; also what is not allowed in XML, which it writes all the same."""
    out = []
    for character in value.decode("utf-8", "replace"):
        if character in "<>&":
            out.append({"<": "&lt;", ">": "&gt;", "&": "&amp;"}[character])
        elif " " <= character <= "~" or character in "\t\n":
            out.append(character)
        else:
            out.append(f"&#x{ord(character):X};")
    return "".join(out).encode("ascii")


def xml(job: Job, *, raw: bool = False) -> bytes:
    def element(tag: str, value: bytes, flags: str = "") -> bytes:
        text = value if raw else escaped(value)
        return b"<%s%s>%s</%s>" % (tag.encode(), flags.encode(), text, tag.encode())

    fixed: list[tuple[str, object]] = [
        ("version", 131842),
        ("state", 4),
        ("substate", 42),
        ("server_flags", 1),
        ("start_time", 1700000000),
        ("jobid", job.job_id),
        ("fileprefix", job.file_prefix),
        ("queue", "batch"),
        ("destination_queue", ""),
        ("record_type", job.union_type),
    ]
    if job.union_type == MOM:
        fixed += [("svr_addr", 167772161), ("exit_status", 0)]
        fixed += [("execution_uid", job.uid), ("execution_gid", job.gid)]
    else:
        fixed += [("mom_address", 167772162), ("exit_status", 0)]
    lines = [b'<?xml version="1.0"?>', b"<job>"]
    lines += [b"  " + element(tag, str(value).encode()) for tag, value in fixed]
    lines.append(b"  <attributes>")
    inner = ""
    for name, resource, value in job.attributes:
        if inner and inner != name:
            lines.append(f"    </{inner}>".encode())
            inner = ""
        if resource and not inner:
            lines.append(f"    <{name}>".encode())
            inner = name
        indent = b"      " if resource else b"    "
        lines.append(indent + element(resource or name, value, ' flags="1"'))
    if inner:
        lines.append(f"    </{inner}>".encode())
    lines += [b"  </attributes>", b"</job>", b""]
    return b"\n".join(lines)


# --- a server's home ---------------------------------------------------------------------------------------------------


def server_home(home: Path, *jobs: Job) -> Path:
    """PBS_HOME of a pbs_server that has *jobs*: what it keeps of itself, and a job file and a script of each."""
    directory = home / "server_priv/jobs"
    directory.mkdir(parents=True, mode=0o750)
    put_private(
        home / "server_priv/serverdb", b"<server_db>\n<numjobs>%d</numjobs>\n</server_db>\n" % len(jobs)
    )
    for job in jobs:
        put_private(directory / f"{job.file_prefix}.JB", xml(job))
        put_private(directory / f"{job.file_prefix}.SC", b"#!/bin/sh\nsleep 1000\n")
    return home


def put_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
