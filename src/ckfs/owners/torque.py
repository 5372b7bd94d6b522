"""The owner of a TORQUE job, from the job files on this host.

pbs_server keeps ``<PBS_HOME>/server_priv/jobs/<prefix>.JB``, pbs_mom ``<PBS_HOME>/mom_priv/jobs/<prefix>.JB``. Which of
their fields is believed, and why, says :mod:`ckfs.owners.jobfile`. The mom's file is asked first: it holds the numeric
uid that the job runs as, so that no name service is needed on a node.

Facts about the files (TORQUE's src/server/req_quejob.c, job_func.c, job_recov.c, get_path_jobdata.c):
the prefix is the job id cut to 61 characters (11 before 2.3); a sub-job ``12[3].server`` has ``12-3.server``; with
``use_jobs_subdirs`` (6.x) the server's files are in ``jobs/<last digit of the number>/``; while a file is saved there is
a moment with no ``.JB`` but a whole ``.JC``, its new content. A file that the server could not read it calls ``.BD``.

Only the server knows that a job is gone: it removes all files of one that has ended. It is believed if its database
(``server_priv/serverdb``) is there, so that what was looked into is not an unmounted directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import string
from collections.abc import Callable, Iterator

from ckfs.names import JobId
from ckfs.owners.accounts import Accounts, is_user_name
from ckfs.owners.jobfile import JobRecord, parse
from ckfs.owners.jobs import is_job_id
from ckfs.owners.resolver import Gone, Known, ReasonedResolver, Resolution, Unknown, owner_of_ids

MAX_FILE_BYTES = 8 << 20
"""A job file is some KiB; a user's environment of 128 KiB, and the hosts of a job on every node, still fit well."""
_PREFIX_LENGTHS = (61, 11)
_SUFFIXES = (".JB", ".JC")
_ALL_SUFFIXES = (".JB", ".JC", ".SC", ".TA", ".BD")
"""As long as any of these is there, the server has not forgotten the job."""
_OF_SERVER = "server_priv/jobs"
_SERVER_DATABASE = "server_priv/serverdb"
_DIRECTORIES = ("mom_priv/jobs", _OF_SERVER)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a fifo in a file's place must not hold the thread.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class _Untrusted(Exception):
    """Something lies in a job file's place that the batch system did not put there; ``str()`` is the reason."""


class TorqueJobs(ReasonedResolver):
    """Reads job files below *pbs_home*. A directory that is missing is no error: a node has only a mom's.

    *writer* is the uid that TORQUE's daemons run as. Files and directories of anybody else, or that others may write,
    are not believed.
    """

    name = "TORQUE"

    def __init__(self, pbs_home: str | bytes, accounts: Accounts, *, writer: int = 0) -> None:
        self._pbs_home = os.fsdecode(pbs_home)
        self._accounts = accounts
        self._writer = writer

    def resolve(self, job: JobId) -> Resolution:
        if not is_job_id(job):
            return Unknown("not a job id", suspect=True)
        none = Unknown("no job file on this host")
        answer: Resolution = none
        for directory in _DIRECTORIES:
            try:
                record = self._record(directory, job)
                if record is None:
                    continue
                found = self._resolution(record)
            except _Untrusted as error:
                found = Unknown(f"{directory}: {error}", suspect=True)
            except OSError as error:
                found = Unknown(f"{directory}: {error.strerror}", suspect=True)
            if isinstance(found, Known):
                return found
            answer = found
        return Gone() if answer is none and self._is_gone(job) else answer

    def why_never_gone(self) -> str | None:
        try:
            with self._servers_jobs() as jobs:
                if jobs is not None:
                    return None
            return f"no server's {_OF_SERVER} and {_SERVER_DATABASE} on this host"
        except _Untrusted as error:
            return str(error)
        except OSError as error:
            return f"{_OF_SERVER}: {error.strerror}"

    def _is_gone(self, job: JobId) -> bool:
        """Whether this host's server has no file of *job*. False where that cannot be said."""
        try:
            with self._servers_jobs() as jobs:
                return jobs is not None and not self._has_any_file(jobs, job)
        except (_Untrusted, OSError):
            return False

    @contextlib.contextmanager
    def _servers_jobs(self) -> Iterator[int | None]:
        """The server's directory of job files; None if there is no server on this host."""
        with (
            _opened(os.path.join(self._pbs_home, _SERVER_DATABASE), _FILE_FLAGS) as database,
            _opened(os.path.join(self._pbs_home, _OF_SERVER), _DIRECTORY_FLAGS) as jobs,
        ):
            if database is None or jobs is None:
                yield None
                return
            self._check(database, stat.S_ISREG, "the server's database")
            self._check(jobs, stat.S_ISDIR, "the directory of job files")
            if os.fstat(database).st_size == 0:
                raise _Untrusted("the server's database is empty")
            with os.scandir(jobs) as listing:  # a store that hangs or fails says so now
                next(listing, None)
            yield jobs

    def _has_any_file(self, jobs: int, job: JobId) -> bool:
        names = [prefix + suffix for prefix in _prefixes(job) for suffix in _ALL_SUFFIXES]
        if any(_is_there(name, jobs) for name in names):
            return True
        with _opened(_last_digit(job), _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=jobs) as part:
            return part is not None and any(_is_there(name, part) for name in names)

    def _resolution(self, record: JobRecord) -> Resolution:
        if record.uid is not None:
            gid = self._accounts.primary_gid_of(record.uid) if record.gid is None else record.gid
            if gid is None:
                return Unknown(f"the group of uid {record.uid} is not known")
            found = owner_of_ids(record.uid, gid)
        elif record.euser is None:
            return Unknown("the job has no execution user yet")
        elif not is_user_name(record.euser):
            return Unknown("its execution user cannot be a user's name", suspect=True)
        else:
            found = self._accounts.owner_of_name(record.euser)
        return Unknown("its execution user is root or not a known user") if found is None else Known(found)

    def _record(self, directory: str, job: JobId) -> JobRecord | None:
        with _opened(os.path.join(self._pbs_home, directory), _DIRECTORY_FLAGS) as jobs:
            if jobs is None:
                return None
            self._check(jobs, stat.S_ISDIR, "the directory of job files")
            found = self._search(jobs, job)
            if found is not None:
                return found
            with _opened(_last_digit(job), _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=jobs) as part:
                if part is None:
                    return None
                self._check(part, stat.S_ISDIR, "the directory of job files")
                return self._search(part, job)

    def _search(self, directory: int, job: JobId) -> JobRecord | None:
        for prefix in _prefixes(job):
            for suffix in _SUFFIXES:
                data = self._content(directory, prefix + suffix)
                if data is None:
                    continue
                record = parse(data)
                if record is None:
                    raise _Untrusted(f"{prefix}{suffix} is not a whole job file")
                if _is_of(record, prefix, job):
                    return record
                # Two long ids may share their first characters: another prefix may still be the job's.
        return None

    def _content(self, directory: int, name: str) -> bytes | None:
        with _opened(name, _FILE_FLAGS, dir_fd=directory) as file:
            if file is None:
                return None
            self._check(file, stat.S_ISREG, name)
            content = bytearray()
            while piece := os.read(file, min(1 << 20, MAX_FILE_BYTES + 1 - len(content))):
                content += piece
            if len(content) > MAX_FILE_BYTES:
                raise _Untrusted(f"{name} is larger than {MAX_FILE_BYTES} bytes")
            # Created, and not written yet: as good as not there.
            return bytes(content) or None

    def _check(self, descriptor: int, is_type: Callable[[int], bool], what: str) -> None:
        status = os.fstat(descriptor)
        if not is_type(status.st_mode):
            raise _Untrusted(f"{what} is not what it should be")
        if status.st_uid != self._writer or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _Untrusted(f"{what} could have been written by others than uid {self._writer}")


@contextlib.contextmanager
def _opened(path: str, flags: int, *, dir_fd: int | None = None) -> Iterator[int | None]:
    """A descriptor of *path*, closed at the end; ``None`` if there is nothing of that name."""
    try:
        descriptor = os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            yield None
            return
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise _Untrusted(f"{path} is a link or a device") from None
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_there(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            return False
        raise
    return True


def _prefixes(job: JobId) -> tuple[str, ...]:
    """The names that *job*'s file may have, the likeliest first, without their suffix."""
    of_array = re.sub(r"^([0-9]+)\[([0-9]+)\]", r"\1-\2", job)
    names = [job, of_array, *(name[:length] for length in _PREFIX_LENGTHS for name in (job, of_array))]
    return tuple(dict.fromkeys(names))


def _is_of(record: JobRecord, prefix: str, job: JobId) -> bool:
    """Whether *record*, read from *prefix*'s file, is *job*'s. TORQUE itself drops a file whose recorded prefix is not its
    name. A set is named after the prefix, so *job* is either that or the id; the number must be the same in any case.
    """
    return (
        record.file_prefix == prefix
        and job in {record.job_id, record.file_prefix}
        and _digits(record.job_id) == _digits(job)
    )


def _digits(job: str) -> str:
    return job[: len(job) - len(job.lstrip(string.digits))]


def _last_digit(job: JobId) -> str:
    return _digits(job)[-1]
