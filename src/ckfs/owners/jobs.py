"""Which job a batch set belongs to, from the set's name alone. Pure.

The name comes from whoever calls mkdir, and the answer becomes part of a file name (``<job>.JB``) and of a command
line, so only what a batch system itself could have written passes.
"""

from __future__ import annotations

import re

from ckfs.names import JobId

SUFFIXES = (b".CK.old", b".CK")
"""What TORQUE and OpenPBS append to a job's file prefix; the longer first."""

MAX_JOB_ID = 240
"""Bytes. A job's files carry suffixes of up to 7 bytes, and a name in a directory has 255."""

_JOB_ID = re.compile(rb"[0-9][A-Za-z0-9._\[\]-]*")


def is_job_id(text: str) -> bool:
    """Whether *text* is safe as a part of a file name and as an argument: it starts with a digit, has no ``/``,
    no ``..`` and nothing else that a path or an option parser gives a meaning to.
    """
    return text.isascii() and _is_safe(text.encode("ascii"))


def job_of(set_name: bytes, suffixes: tuple[bytes, ...] = SUFFIXES) -> JobId | None:
    """The job that a batch set is for: ``12.server.CK`` and ``12.server.CK.old`` are ``12.server``'s.

    TORQUE names the directory after the job's *file prefix* (``path_checkpoint``, ``ji_fileprefix``, ``.CK`` in
    src/server/job_func.c): the job id cut to 61 characters, and for a sub-job of an array ``12-3.server``, whose
    id is ``12[3].server``. So what comes back is what names the job's files, and only mostly the id that qstat shows.
    """
    for suffix in suffixes:
        if suffix and set_name.endswith(suffix):
            stem = set_name[: -len(suffix)]
            return JobId(stem.decode("ascii")) if _is_safe(stem) else None
    return None


def _is_safe(raw: bytes) -> bool:
    return len(raw) <= MAX_JOB_ID and _JOB_ID.fullmatch(raw) is not None and b".." not in raw
