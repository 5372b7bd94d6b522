"""The codec against what a real kernel has asked and taken (tests/support/recording.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckfs.transport.wire import replies
from ckfs.transport.wire.decoding import decode
from ckfs.transport.wire.replies import Attributes
from ckfs.transport.wire.requests import Malformed, Unsupported
from tests.support.recording import plain

RECORDED = json.loads((Path(__file__).parent / "fuse_recording.json").read_text("utf-8"))
REQUESTS: list[dict[str, Any]] = RECORDED["requests"]


def named(request: dict[str, Any]) -> str:
    return f"{request['kind']}-{request['opcode']}-{len(request['body']) // 2}"


@pytest.mark.parametrize("request_", REQUESTS, ids=named)
def test_what_a_kernel_asked_is_understood(request_: dict[str, Any]) -> None:
    found = decode(request_["opcode"], memoryview(bytes.fromhex(request_["body"])))
    assert type(found).__name__ == request_["kind"]
    assert plain(found) == request_["fields"]


@pytest.mark.parametrize("request_", REQUESTS, ids=named)
def test_a_request_that_ends_early_is_refused_or_is_another_one(request_: dict[str, Any]) -> None:
    whole = bytes.fromhex(request_["body"])
    for length in range(len(whole)):
        try:
            found = decode(request_["opcode"], memoryview(whole[:length]))
        except (Malformed, Unsupported):
            continue
        assert plain(found) != request_["fields"] or whole[length:].strip(b"\0") == b""


@pytest.mark.parametrize("name", RECORDED["replies"])
def test_what_a_kernel_took_is_what_is_sent(name: str) -> None:
    said = RECORDED["replies"][name]
    args = [Attributes(*arg) if isinstance(arg, list) else arg for arg in said["args"]]
    assert getattr(replies, name)(*args, **said["kwargs"]).hex() == said["body"]


def test_the_recording_has_nearly_every_message() -> None:
    """Not those that only other mounts than ckfs are sent."""
    kinds = {request["kind"] for request in REQUESTS}
    assert len(kinds) >= 38
    assert {"BatchForget", "Interrupt", "Lock", "Fallocate", "Statx", "CopyFileRange"} <= kinds
    assert {"init", "entry", "created", "statx", "lock", "xattr_size"} <= RECORDED["replies"].keys()
