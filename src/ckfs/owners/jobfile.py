"""What a TORQUE job file says about its job. Pure: bytes in, a record or nothing out; never raises.

Formats
    *XML* (5 and 6; tags in TORQUE's src/include/job_recovery.h): ``<job>`` with one element per fixed field
    (``jobid``, ``fileprefix``, ``record_type``, on a mom ``execution_uid`` and ``execution_gid``) and ``<attributes>``
    with one element per attribute, among them ``euser``. Written through libxml2.
    *Binary* (2 to 4): ``struct jobfix`` as the compiler laid it out on a 64-bit little-endian host, then the attributes,
    each a ``struct svrattrl`` with name, resource and value behind it, up to one with the size -711
    (src/include/pbs_job.h, attribute.h; sizes of older versions in src/server/job_qs_upgrade.cpp; attr_recov.c).

What is believed
    *uid, gid*: ``ji_un.ji_momt.ji_exuid`` and ``ji_exgid``, the numbers that pbs_mom itself looked up and runs the job
    as. Only a mom writes them (the union's type is 3). TORQUE's own pam_pbssimpleauth lets users in by this field.
    *euser*: the execution user's name, computed by pbs_server (set_jobexid in src/server/geteusernam.c, from Job_Owner
    or an allowed User_List, refusing root) and passed on to the moms. No client may set it: in job_attr_def it has
    only manager-read and mom flags, and qsub -W, -u and -N reach other attributes.
    Not believed: Job_Owner (``user@submithost``, before the mapping to the execution user), User_List, Variable_List.

What is hostile
    Names and values of users stand in the same file. In the binary format lengths keep them apart. In XML they could
    only pose as elements if they were written unescaped, so everything that TORQUE never writes and that could hide
    an element (a document type, comments, CDATA, processing instructions) refuses the file, and so does a second
    element with one of the believed names at any depth. Real files are not always well-formed: control characters and
    bare ``&`` of users' environments are blanked before parsing (adaptivecomputing/torque issues 315 and 318).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from xml.parsers import expat

_UNION_TYPE_MOM = 3
_MAX_DEPTH = 32
_MAX_TEXT = 2048


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What is believed of a job file. Fields that the file does not hold, or that say root, are ``None``."""

    job_id: str
    file_prefix: str
    uid: int | None
    gid: int | None
    euser: str | None


class _Refused(Exception):
    """Not a job file as TORQUE writes them. Never leaves this module."""


def parse(data: bytes) -> JobRecord | None:
    """The record in a job file's *data*, or ``None`` if it is anything but one whole, unambiguous job."""
    try:
        return _parse_xml(data) if data.lstrip()[:1] == b"<" else _parse_binary(data)
    except (_Refused, expat.ExpatError, struct.error, UnicodeDecodeError, ValueError):
        return None


# --- XML, TORQUE 5 and 6 ---------------------------------------------------------------------------------------------

_FIXED = {"jobid", "fileprefix", "record_type", "execution_uid", "execution_gid"}
_BELIEVED = _FIXED | {"euser"}
_ATTRIBUTES = "attributes"
_NOT_XML = bytes(b for b in range(32) if b not in b"\t\n\r") + b"\x7f"
_BLANKED = bytes.maketrans(_NOT_XML, b" " * len(_NOT_XML))
_REFERENCE = re.compile(rb"&(?:(?:amp|lt|gt|quot|apos);|#(x[0-9A-Fa-f]{1,8}|[0-9]{1,10});)?")


def _repaired(data: bytes) -> bytes:
    """*data* without what an older TORQUE writes and no XML parser takes. A blank is put in its place: unlike any
    other character it cannot make markup out of its neighbours.
    """
    return _REFERENCE.sub(_repaired_reference, data.translate(_BLANKED))


def _repaired_reference(found: re.Match[bytes]) -> bytes:
    number = found[1]
    if number is None:
        return found[0] if len(found[0]) > 1 else b" "
    code = int(number[1:], 16) if number.startswith(b"x") else int(number)
    return found[0] if code in {9, 10, 13} or 32 <= code < 0xD800 or 0xE000 <= code < 0xFFFE else b" "


class _Elements:
    """Collects the believed elements by their place in the tree, and refuses what TORQUE never writes."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._seen: set[str] = set()
        self._path: list[str] = []
        self._believed: str | None = None
        self._text: list[str] = []

    def start(self, name: str, _: dict[str, str]) -> None:
        if self._believed is not None or len(self._path) >= _MAX_DEPTH:
            raise _Refused
        if not self._path and name != "job":
            raise _Refused
        if name in _BELIEVED or name == _ATTRIBUTES:
            place = ["job", _ATTRIBUTES] if name == "euser" else ["job"]
            if name in self._seen or self._path != place:
                raise _Refused
            self._seen.add(name)
            self._believed, self._text = (None if name == _ATTRIBUTES else name), []
        self._path.append(name)

    def end(self, _: str) -> None:
        self._path.pop()
        if self._believed is not None:
            self.texts[self._believed] = "".join(self._text).strip()
            self._believed = None

    def characters(self, text: str) -> None:
        if self._believed is not None:
            self._text.append(text)
            if sum(map(len, self._text)) > _MAX_TEXT:
                raise _Refused

    def refuse(self, *_: object) -> None:
        raise _Refused


def _parse_xml(data: bytes) -> JobRecord:
    elements = _Elements()
    # Latin-1 whatever the file says: environments hold any bytes, and all that is believed is ASCII.
    parser = expat.ParserCreate("iso-8859-1")
    parser.StartElementHandler = elements.start
    parser.EndElementHandler = elements.end
    parser.CharacterDataHandler = elements.characters
    parser.StartDoctypeDeclHandler = elements.refuse
    parser.EntityDeclHandler = elements.refuse
    parser.CommentHandler = elements.refuse
    parser.StartCdataSectionHandler = elements.refuse
    parser.ProcessingInstructionHandler = elements.refuse
    parser.Parse(_repaired(data), True)
    texts = elements.texts
    on_mom = texts.get("record_type") == str(_UNION_TYPE_MOM)
    return JobRecord(
        job_id=_required(texts.get("jobid")),
        file_prefix=_required(texts.get("fileprefix")),
        uid=_number(texts.get("execution_uid")) if on_mom else None,
        gid=_number(texts.get("execution_gid")) if on_mom else None,
        euser=texts.get("euser") or None,
    )


def _required(text: str | None) -> str:
    if not text or not text.isascii():
        raise _Refused
    return text


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise _Refused
    return int(text) or None


# --- binary, TORQUE 2 to 4 -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """``struct jobfix`` of one version: the sizes of its strings, in bytes with the NUL."""

    versioned: bool
    job_id: int
    file_prefix: int
    destination: int
    queue: int = 16

    @property
    def job_id_at(self) -> int:
        """Seven ints (six before 2.2, which had no version), and a time_t on its boundary."""
        return _aligned(4 * (7 if self.versioned else 6), 8) + 8

    @property
    def union_type_at(self) -> int:
        return _aligned(self.job_id_at + self.job_id + self.file_prefix + self.queue + self.destination, 4)

    @property
    def union_at(self) -> int:
        return _aligned(self.union_type_at + 4, 8)

    @property
    def size(self) -> int:
        """With the union: a long, three ints and padding."""
        return self.union_at + 24


def _aligned(offset: int, boundary: int) -> int:
    return -(-offset // boundary) * boundary


LAYOUTS = {
    0x00020302: Layout(versioned=True, job_id=1047, file_prefix=62, destination=1047),  # 2.5, 3 and 4
    0x00020301: Layout(versioned=True, job_id=1046, file_prefix=62, destination=1047),  # 2.4
    0x00020300: Layout(versioned=True, job_id=86, file_prefix=62, destination=87),  # 2.3
    0x00020200: Layout(versioned=True, job_id=86, file_prefix=12, destination=87),  # 2.2
}
UNVERSIONED = Layout(versioned=False, job_id=80, file_prefix=12, destination=87)  # 2.1 and before
_STATES = range(10)
"""What stands first in an unversioned file: the job's state. Any other number is a version that is not known here."""

_ATTRIBUTE = struct.Struct("<24x40xiiiiI4x")
"""``struct svrattrl``: list_link (three pointers) and attropl (four and an int), then the sizes of all, of the name, the
resource and the value, and the flags. The pointers are another process's and mean nothing."""
_END = -711


def _parse_binary(data: bytes) -> JobRecord:
    (version,) = struct.unpack_from("<i", data)
    layout = UNVERSIONED if version in _STATES else LAYOUTS.get(version)
    if layout is None:
        raise _Refused
    job_id = _string(data, layout.job_id_at, layout.job_id)
    file_prefix = _string(data, layout.job_id_at + layout.job_id, layout.file_prefix)
    (union_type,) = struct.unpack_from("<i", data, layout.union_type_at)
    uid, gid = struct.unpack_from("<12xII4x", data, layout.union_at)
    on_mom = union_type == _UNION_TYPE_MOM
    names = [
        value
        for name, resource, value in _attributes(data, layout.size)
        if (name, resource) == (b"euser", b"")
    ]
    if len(names) > 1:
        raise _Refused
    return JobRecord(
        job_id=job_id,
        file_prefix=file_prefix,
        uid=(uid or None) if on_mom else None,
        gid=(gid or None) if on_mom else None,
        euser=names[0].decode("ascii") if names else None,
    )


def _string(data: bytes, at: int, size: int) -> str:
    raw, nul, _ = data[at : at + size].partition(b"\0")
    if not nul:
        raise _Refused
    return _required(raw.decode("ascii"))


def _attributes(data: bytes, at: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, resource and value of each attribute. All of them up to the end mark, or the file is refused."""
    while True:
        total, *sizes, _ = _ATTRIBUTE.unpack_from(data, at)
        if total == _END:
            return
        start = at + _ATTRIBUTE.size
        if min(sizes) < 0 or _ATTRIBUTE.size + sum(sizes) > total or at + total > len(data):
            raise _Refused
        strings = []
        for size in sizes:
            strings.append(data[start : start + size].partition(b"\0")[0])
            start += size
        yield strings[0], strings[1], strings[2]
        at += total
