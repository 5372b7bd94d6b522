"""What goes over a control socket, without one: whatever comes is understood, or refused as Malformed."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.control.protocol import (
    REPLY_BYTES,
    REQUEST_BYTES,
    VERSION,
    Asked,
    Busy,
    Done,
    Failed,
    Lines,
    Malformed,
    OtherVersion,
    Reply,
    Request,
    Says,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from ckfs.errors import CkfsError, MountFailed, NotPermitted, StoreUnusable, UsageError, of_status

names = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
"""As names of files are in Python."""
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
fields = st.dictionaries(names, values, max_size=5)
replies = st.one_of(
    st.builds(Says, fields),
    st.just(Busy()),
    st.just(Done()),
    st.builds(Failed, names, st.integers(1, 255)),
)


@given(names, fields)
def test_a_request_arrives_as_it_was_made(operation: str, asked: dict[str, object]) -> None:
    line = encode_request(Request(operation, asked))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line[:-1]) == Request(operation, asked)


@given(replies)
def test_a_reply_arrives_as_it_was_made(reply: Reply) -> None:
    line = encode_reply(reply)
    assert line.count(b"\n") == 1
    assert decode_reply(line[:-1]) == reply


@given(st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), values))
def test_whatever_else_comes_is_refused_and_nothing_worse(line: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(Malformed, OtherVersion):
            decode(line)


@given(fields, st.sampled_from(["text", "number", "flag", "texts"]), names)
def test_a_field_is_of_its_type_or_refused(asked: dict[str, object], kind: str, name: str) -> None:
    try:
        value = getattr(Asked(asked), kind)(name)
    except Malformed:
        return
    types = {"text": str | None, "number": int | None, "flag": bool, "texts": tuple}
    assert isinstance(value, types[kind])
    for text in [value] if isinstance(value, str) else value if isinstance(value, tuple) else []:
        assert b"\0" not in text.encode("utf-8", "surrogateescape")


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=6), st.data())
def test_lines_are_cut_wherever_pieces_end(lines: list[bytes], data: st.DataObject) -> None:
    stream, cutting, got = b"".join(line + b"\n" for line in lines), Lines(30), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        cutting.feed(stream[:size])
        stream = stream[size:]
        while (line := cutting.line()) is not None:
            got.append(line)
    assert got == lines
    assert cutting.is_empty


@pytest.mark.parametrize("rest", [b"", b"\n"])
def test_a_line_has_a_longest_length(rest: bytes) -> None:
    cutting = Lines(10)
    cutting.feed(b"x" * 10 + b"\n")
    assert cutting.line() == b"x" * 10
    cutting.feed(b"x" * 11 + rest)
    with pytest.raises(Malformed):
        cutting.line()


def test_a_request_that_would_be_refused_for_its_length_is_not_sent() -> None:
    with pytest.raises(Malformed, match="choose fewer"):
        encode_request(Request("trash-ls", {"tokens": ["x" * 20] * (REQUEST_BYTES // 20)}))
    assert REPLY_BYTES > REQUEST_BYTES


def test_fields_that_nobody_reads_are_refused() -> None:
    Asked({"a": 1}).only("a", "b")
    with pytest.raises(Malformed, match="besides a"):
        Asked({"a": 1, "c": 1}).only("a")


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_another_version_is_said_to_be_one(version: object) -> None:
    line = json.dumps({"ckfs": version, "do": "status", "with": {}, "later": 1}).encode()
    with pytest.raises(OtherVersion, match=f"version {VERSION}"):
        decode_request(line)


@pytest.mark.parametrize("kind", [CkfsError, UsageError, StoreUnusable, NotPermitted, MountFailed])
def test_an_error_is_raised_again_as_what_it_was(kind: type[CkfsError]) -> None:
    assert type(of_status(kind.exit_status, "a line")) is kind
    assert str(of_status(kind.exit_status, "a line")) == "a line"
    assert type(of_status(99, "a line")) is CkfsError
