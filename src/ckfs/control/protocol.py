"""What goes over a control socket, without any socket: one JSON line asks, JSON lines answer.

    {"ckfs": 1, "do": "status", "with": {}}       the one request of a connection
    {}                                            the daemon is at it
    {"says": {...}}                               a part of the answer; any number of them
    {"done": true}                                the end
    {"error": "...", "status": 2}                 the end, with the exit status of docs/commands.md

Both sides take nothing of the other for granted: sizes are bounded, and whatever is no line of this kind is refused by
:class:`Malformed`. Names that are not UTF-8 travel as lone surrogates, as Python has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ckfs.errors import CkfsError, FsError, NotPermitted, StoreDown, StoreUnusable, UsageError
from ckfs.errors import Denied as _Denied
from ckfs.errors import NotOwner as _NotOwner

VERSION = 1
REQUEST_BYTES = 64 << 10
REPLY_BYTES = 1 << 20
_MOST_TEXTS = 1000
_LARGEST = 1 << 63

Values = Mapping[str, object]


class Malformed(UsageError):
    """A line that is none of the protocol."""


class OtherVersion(CkfsError):
    """The two sides are of ckfs versions that do not speak alike."""


@dataclass(frozen=True, slots=True)
class Request:
    """*operation* may be one that nobody knows."""

    operation: str
    fields: Values


@dataclass(frozen=True, slots=True)
class Says:
    values: Values


@dataclass(frozen=True, slots=True)
class Busy:
    """Still at it: whoever waits may go on to."""


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    """*message* is one line; *status* an exit status of ``errors.py``."""

    message: str
    status: int


Reply = Says | Busy | Done | Failed


@dataclass(slots=True)
class Lines:
    """Cuts what arrives into lines of up to *limit* bytes."""

    limit: int
    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        self._rest += data

    def line(self) -> bytes | None:
        """The next line; None if it has not come whole. Malformed if it never will."""
        end = self._rest.find(b"\n", 0, self.limit + 1)
        if end < 0:
            if len(self._rest) > self.limit:
                raise Malformed(f"a line of more than {self.limit} bytes")
            return None
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    @property
    def is_empty(self) -> bool:
        """Nothing came after the last line."""
        return not self._rest


# Asking


def encode_request(request: Request) -> bytes:
    """Malformed if it would be too long."""
    line = _line({"ckfs": VERSION, "do": request.operation, "with": request.fields})
    if len(line) > REQUEST_BYTES:
        raise Malformed("too much at once: choose fewer")
    return line


def decode_request(line: bytes) -> Request:
    """Malformed, or OtherVersion."""
    values = _values(line)
    version = values.get("ckfs")
    if version != VERSION or isinstance(version, bool):
        raise OtherVersion(
            f"the mount's daemon speaks version {VERSION} of its protocol: use the ckfs that it is of"
        )
    operation, fields = values.get("do"), values.get("with", {})
    if not isinstance(operation, str) or not isinstance(fields, dict) or len(values) > 3:
        raise Malformed("not a request")
    return Request(operation, fields)


# Answering


def encode_reply(reply: Reply) -> bytes:
    match reply:
        case Says(values):
            return _line({"says": values})
        case Busy():
            return _line({})
        case Done():
            return _line({"done": True})
        case Failed(message, status):
            return _line({"error": message, "status": status})


def decode_reply(line: bytes) -> Reply:
    """Malformed for anything else."""
    match dict(_values(line)):
        case {"says": dict(values), **rest} if not rest:
            return Says(values)
        case {"done": True, **rest} if not rest:
            return Done()
        case {"error": str(message), "status": int(status), **rest} if not rest and 0 < status < 256:
            return Failed(message, int(status))
        case {**rest} if not rest:
            return Busy()
    raise Malformed("not a reply")


def failed(error: Exception) -> Failed:
    """What whoever asked is told of *error*: a line, and the exit status for it."""
    match error:
        case CkfsError():
            return Failed(str(error), error.exit_status)
        case StoreDown():
            return Failed(f"the store does not answer: {error}", StoreUnusable.exit_status)
        case _Denied() | _NotOwner():
            return Failed(str(error), NotPermitted.exit_status)
        case FsError():
            return Failed(str(error), CkfsError.exit_status)
        case OSError():
            return Failed(f"the store: {error.strerror or error}", StoreUnusable.exit_status)
        case RecursionError():
            return Failed("a tree there is deeper than ckfs walks", CkfsError.exit_status)
        case _:
            return Failed("the daemon met a bug: see its log", CkfsError.exit_status)


def _line(values: Values) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _values(line: bytes) -> Values:
    try:
        values = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Malformed("a line that is no JSON") from None
    if not isinstance(values, dict):
        raise Malformed("a line that is no JSON object")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(constant)


# What came with a request


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a request, each read by its type; Malformed if it is of another, and for those that nobody reads."""

    fields: Values

    def only(self, *names: str) -> None:
        """Refuse fields that are none of *names*: what is not understood must not be passed over."""
        if not self.fields.keys() <= set(names):
            raise Malformed(f"a request with fields besides {', '.join(names) or 'none'}")

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        if value is not None and not _is_text(value):
            raise Malformed(f"{name} must be a text")
        return value  # type: ignore[return-value]  # _is_text has looked

    def number(self, name: str) -> int | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not -_LARGEST <= value < _LARGEST:
            raise Malformed(f"{name} must be a number")
        return value

    def flag(self, name: str) -> bool:
        value = self.fields.get(name, False)
        if not isinstance(value, bool):
            raise Malformed(f"{name} must be true or false")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.fields.get(name, [])
        if not isinstance(value, list) or not all(map(_is_text, value)):
            raise Malformed(f"{name} must be a list of texts")
        if len(value) > _MOST_TEXTS:
            raise Malformed(f"more than {_MOST_TEXTS} at once: choose fewer")
        return tuple(value)


def _is_text(value: object) -> bool:
    """A string that stands for bytes without NUL, as names do."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
