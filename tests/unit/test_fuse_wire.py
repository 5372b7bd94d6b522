"""The kernel's protocol as values: layouts, requests, replies, and what is agreed when a mount begins.

Messages are packed and read by hand here, field by field as <linux/fuse.h> has them, and not by the codec's own layouts.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import struct
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.transport.wire import abi, replies, requests
from ckfs.transport.wire.abi import InitFlags, NotifyCode, Opcode, OpenFlags
from ckfs.transport.wire.decoding import decode, io_of
from ckfs.transport.wire.negotiation import BASE, NEVER, TooNew, TooOld, Wanted, negotiate
from ckfs.transport.wire.replies import Attributes, Listing
from ckfs.transport.wire.requests import Header, Init, Malformed, Request, Unsupported, header_of

HEADER = Path("/usr/include/linux/fuse.h")
NS = 1_000_000_000
MOST = 2**64 - 1

# Layouts and numbers

SIZES = {
    "HEADER_IN": 40,
    "HEADER_OUT": 16,
    "FORGET_IN": 8,
    "FORGET_ONE": 16,
    "BATCH_FORGET_IN": 8,
    "GETATTR_IN": 16,
    "STATX_IN": 24,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "LINK_IN": 8,
    "SETATTR_IN": 88,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "WHOLE_IO_IN": 80,
    "WHOLE_WRITE_OUT": 24,
    "FSYNC_IN": 16,
    "COMPAT_SETXATTR_IN": 8,
    "SETXATTR_IN": 16,
    "GETXATTR_IN": 8,
    "LK_IN": 48,
    "ACCESS_IN": 8,
    "VERSION_IN": 8,
    "COMPAT_INIT_IN": 16,
    "INIT_IN": 64,
    "INTERRUPT_IN": 8,
    "BMAP_IN": 16,
    "IOCTL_IN": 32,
    "POLL_IN": 24,
    "FALLOCATE_IN": 32,
    "LSEEK_IN": 24,
    "COPY_FILE_RANGE_IN": 56,
    "SETUPMAPPING_IN": 40,
    "REMOVEMAPPING_IN": 4,
    "REMOVEMAPPING_ONE": 16,
    "SYNCFS_IN": 8,
    "NOTIFY_RETRIEVE_IN": 40,
    "ENTRY_OUT": 128,
    "ATTR_OUT": 104,
    "STATX_OUT": 288,
    "OPEN_OUT": 16,
    "WRITE_OUT": 8,
    "STATFS_OUT": 80,
    "GETXATTR_OUT": 8,
    "LK_OUT": 24,
    "INIT_OUT": 64,
    "BMAP_OUT": 8,
    "IOCTL_OUT": 16,
    "POLL_OUT": 8,
    "LSEEK_OUT": 8,
    "COPY_FILE_RANGE_OUT": 8,
    "DIRENT": 24,
    "DIRENTPLUS": 152,
    "NOTIFY_POLL_WAKEUP_OUT": 8,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_DELETE_OUT": 24,
    "NOTIFY_STORE_OUT": 24,
    "NOTIFY_RETRIEVE_OUT": 32,
    "NOTIFY_PRUNE_OUT": 16,
    "BACKING_MAP": 16,
}
UNNAMED = {"COMPAT_SETXATTR_IN", "VERSION_IN", "COMPAT_INIT_IN"}
"""Beginnings of other layouts, for which the header has no struct."""
HEADERS = {"HEADER_IN": "fuse_in_header", "HEADER_OUT": "fuse_out_header"}


def numbers() -> dict[str, int]:
    """Every number of :mod:`abi` by the header's name of it."""
    named: dict[str, int] = {
        name: value
        for name, value in vars(abi).items()
        if name.startswith(("FATTR_", "FUSE_")) and isinstance(value, int)
    }
    kinds: list[tuple[str, type[IntEnum | IntFlag]]] = [
        ("FUSE_", Opcode),
        ("FUSE_NOTIFY_", NotifyCode),
        ("FUSE_", InitFlags),
        ("FOPEN_", OpenFlags),
    ]
    for prefix, kind in kinds:
        named |= {prefix + name: int(member) for name, member in kind.__members__.items()}
    return named


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of the header's structs and numbers, as far as this machine's header has them."""
    if shutil.which("cc") is None or not HEADER.exists():
        pytest.skip("needs a C compiler and the kernel's headers")
    text = HEADER.read_text()
    asked = {name: f"(unsigned long long)({name})" for name in numbers() if re.search(rf"\b{name}\b", text)}
    for name in SIZES.keys() - UNNAMED:
        kind = HEADERS.get(name, f"fuse_{name.lower()}")
        if re.search(rf"\bstruct {kind} \{{", text):
            asked[name] = f"(unsigned long long)sizeof(struct {kind})"
    lines = "".join(f'printf("{name} %llu\\n", {what});' for name, what in asked.items())
    folder = tmp_path_factory.mktemp("header")
    source, program = folder / "look.c", folder / "look"
    source.write_text(
        f"#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/fuse.h>\nint main(void) {{ {lines} return 0; }}\n"
    )
    subprocess.run(["cc", "-w", "-o", program, source], check=True)
    told = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in told.splitlines())}


def test_every_layout_has_the_size_that_the_protocol_says() -> None:
    assert {
        name: layout.size for name, layout in vars(abi).items() if isinstance(layout, struct.Struct)
    } == SIZES


def test_layouts_are_the_compiler_s(compiled: dict[str, int]) -> None:
    assert {name: size for name, size in compiled.items() if name in SIZES} == {
        name: size for name, size in SIZES.items() if name in compiled
    }
    assert len(compiled.keys() & SIZES.keys()) > 40


def test_numbers_are_the_compiler_s(compiled: dict[str, int]) -> None:
    ours = numbers()
    # A macro of bit 31 is a negative int in C.
    theirs = {
        name: value & 0xFFFFFFFF if name == "FUSE_INIT_RESERVED" else value
        for name, value in compiled.items()
        if name in ours
    }
    assert theirs == {name: value for name, value in ours.items() if name in compiled}
    assert len(theirs) > 120


def test_what_is_newer_than_many_a_header() -> None:
    assert (Opcode.SYNCFS, Opcode.TMPFILE, Opcode.STATX, Opcode.COPY_FILE_RANGE_64) == (50, 51, 52, 53)
    assert (NotifyCode.RESEND, NotifyCode.INC_EPOCH, NotifyCode.PRUNE) == (7, 8, 9)
    assert (InitFlags.DIRECT_IO_ALLOW_MMAP, InitFlags.PASSTHROUGH) == (1 << 36, 1 << 37)
    assert (InitFlags.OVER_IO_URING, InitFlags.REQUEST_TIMEOUT) == (1 << 41, 1 << 42)
    assert OpenFlags.PASSTHROUGH == 1 << 7


@pytest.mark.parametrize(
    ("ours", "direction", "number", "size"),
    [
        (abi.FUSE_DEV_IOC_CLONE, 2, 0, 4),
        (abi.FUSE_DEV_IOC_BACKING_OPEN, 1, 1, 16),
        (abi.FUSE_DEV_IOC_BACKING_CLOSE, 1, 2, 4),
        (abi.FUSE_DEV_IOC_SYNC_INIT, 0, 3, 0),
    ],
)
def test_ioctls_of_the_device_are_numbered_as_asm_generic_does(
    ours: int, direction: int, number: int, size: int
) -> None:
    assert ours == direction << 30 | size << 16 | 229 << 8 | number


# Requests


def packed(layout: str, *fields: int) -> bytes:
    return struct.pack("=" + layout, *fields)


def setattr_body(valid: int) -> bytes:
    times = packed("QQQIII", 2**64 - 2, 20, 30, 5, 6, 7)
    return (
        packed("IIQQQ", valid, 0, 3, 4096, 99)
        + times
        + packed("IIIII", 0o640, 2**32 - 1, 1000, 1001, 2**32 - 1)
    )


NOTHING_SET = requests.Setattr(0, None, None, None, None, None, None, False, False, None, None, None, False)

EXAMPLES: list[tuple[Opcode, bytes, Request]] = [
    (Opcode.LOOKUP, b"a\xff b\n\0", requests.Lookup(b"a\xff b\n")),
    (Opcode.FORGET, packed("Q", MOST), requests.Forget(MOST)),
    (
        Opcode.BATCH_FORGET,
        packed("IIQQQQ", 2, 0, 7, 1, 8, 3),
        requests.BatchForget([(7, 1), (8, 3)]),
    ),
    (Opcode.BATCH_FORGET, packed("II", 0, 0), requests.BatchForget([])),
    (Opcode.GETATTR, packed("IIQ", 0, 0, 5), requests.Getattr(None)),
    (Opcode.GETATTR, packed("IIQ", 1, 0, 0), requests.Getattr(0)),
    (Opcode.SETATTR, setattr_body(0), NOTHING_SET),
    (Opcode.SETATTR, setattr_body(1 << 0), NOTHING_SET._replace(valid=1, mode=0o640)),
    (Opcode.SETATTR, setattr_body(1 << 1), NOTHING_SET._replace(valid=2, uid=1000)),
    (Opcode.SETATTR, setattr_body(1 << 2), NOTHING_SET._replace(valid=4, gid=1001)),
    (Opcode.SETATTR, setattr_body(1 << 3), NOTHING_SET._replace(valid=8, size=4096)),
    (Opcode.SETATTR, setattr_body(1 << 4), NOTHING_SET._replace(valid=16, atime=-2 * NS + 5)),
    (Opcode.SETATTR, setattr_body(1 << 5), NOTHING_SET._replace(valid=32, mtime=20 * NS + 6)),
    (Opcode.SETATTR, setattr_body(1 << 6), NOTHING_SET._replace(valid=64, fh=3)),
    (
        Opcode.SETATTR,
        setattr_body(1 << 7 | 1 << 4),
        NOTHING_SET._replace(valid=144, atime=-2 * NS + 5, atime_now=True),
    ),
    (Opcode.SETATTR, setattr_body(1 << 8), NOTHING_SET._replace(valid=256, mtime_now=True)),
    (Opcode.SETATTR, setattr_body(1 << 9), NOTHING_SET._replace(valid=512, lock_owner=99)),
    (Opcode.SETATTR, setattr_body(1 << 10), NOTHING_SET._replace(valid=1024, ctime=30 * NS + 7)),
    (Opcode.SETATTR, setattr_body(1 << 11), NOTHING_SET._replace(valid=2048, kill_suidgid=True)),
    (Opcode.READLINK, b"", requests.Readlink()),
    (Opcode.SYMLINK, b"name\0../to\0", requests.Symlink(b"name", b"../to")),
    (
        Opcode.MKNOD,
        packed("IIII", 0o20666, 0x103, 0o22, 0) + b"n\0",
        requests.Mknod(0o20666, 0x103, 0o22, b"n"),
    ),
    (Opcode.MKDIR, packed("II", 0o755, 0o22) + b"d\0", requests.Mkdir(0o755, 0o22, b"d")),
    (Opcode.UNLINK, b"n\0", requests.Unlink(b"n")),
    (Opcode.RMDIR, b"n\0", requests.Rmdir(b"n")),
    (Opcode.RENAME, packed("Q", 9) + b"old\0new\0", requests.Rename(9, 0, b"old", b"new")),
    (Opcode.RENAME2, packed("QII", 9, 2, 0) + b"old\0new\0", requests.Rename(9, 2, b"old", b"new")),
    (Opcode.LINK, packed("Q", 9) + b"n\0", requests.Link(9, b"n")),
    (Opcode.OPEN, packed("II", os.O_RDWR, 1), requests.Open(os.O_RDWR, True)),
    (Opcode.OPEN, packed("II", os.O_TRUNC, 0), requests.Open(os.O_TRUNC, False)),
    (Opcode.OPENDIR, packed("II", 5, 0), requests.Opendir(5)),
    (
        Opcode.CREATE,
        packed("IIII", 1, 0o644, 0o22, 1) + b"n\0",
        requests.Create(1, 0o644, 0o22, b"n", True),
    ),
    (
        Opcode.TMPFILE,
        packed("IIII", 1, 0o644, 0o22, 0) + b"/\0",  # as the kernel calls what has no name
        requests.Tmpfile(1, 0o644, 0o22, b"/", False),
    ),
    (Opcode.READ, packed("QQIIQII", 3, 8, 9, 0, 7, 2, 0), requests.Read(3, 8, 9, 2, None)),
    (Opcode.READ, packed("QQIIQII", 3, 8, 9, 2, 7, 2, 0), requests.Read(3, 8, 9, 2, 7)),
    (
        Opcode.WRITE,
        packed("QQIIQII", 3, 8, 4, 1, 7, 2, 0) + b"data",
        requests.Write(3, 8, 1, 2, None, memoryview(b"data")),
    ),
    (
        Opcode.WRITE,
        packed("QQIIQII", 3, 8, 0, 6, 7, 2, 0),
        requests.Write(3, 8, 6, 2, 7, memoryview(b"")),
    ),
    (Opcode.STATFS, b"", requests.Statfs()),
    (Opcode.RELEASE, packed("QIIQ", 3, 2, 1, 7), requests.Release(3, 2, True, False, 7)),
    (Opcode.RELEASE, packed("QIIQ", 3, 2, 2, 7), requests.Release(3, 2, False, True, 7)),
    (Opcode.RELEASEDIR, packed("QIIQ", 3, 2, 0, 0), requests.Releasedir(3)),
    (Opcode.FSYNC, packed("QII", 3, 1, 0), requests.Fsync(3, True)),
    (Opcode.FSYNCDIR, packed("QII", 3, 0, 0), requests.Fsyncdir(3, False)),
    (
        Opcode.SETXATTR,
        packed("II", 3, 1) + b"user.a/b\0x\0y",
        requests.Setxattr(b"user.a/b", b"x\0y", 1),
    ),
    (Opcode.SETXATTR, packed("II", 0, 0) + b"user.a\0", requests.Setxattr(b"user.a", b"", 0)),
    (Opcode.GETXATTR, packed("II", 64, 0) + b"user.a\0", requests.Getxattr(b"user.a", 64)),
    (Opcode.LISTXATTR, packed("II", 64, 0), requests.Listxattr(64)),
    (Opcode.REMOVEXATTR, b"user.a\0", requests.Removexattr(b"user.a")),
    (Opcode.FLUSH, packed("QIIQ", 3, 0, 0, 7), requests.Flush(3, 7)),
    (Opcode.INIT, packed("IIII", 7, 34, 4096, 9), Init(7, 34, 4096, 9)),
    (
        Opcode.INIT,
        packed("IIIII11I", 7, 36, 4096, 9, 255, *[0] * 11),
        Init(7, 36, 4096, 9),  # what the field holds without INIT_EXT is nothing
    ),
    (
        Opcode.INIT,
        packed("IIIII11I", 7, 45, 4096, 1 << 30, 1 << 5, *[0] * 11),
        Init(7, 45, 4096, 1 << 30 | 1 << 37),
    ),
    (Opcode.INIT, packed("II", 8, 0), Init(8, 0, 0, 0)),
    (Opcode.DESTROY, b"", requests.Destroy()),
    (Opcode.READDIR, packed("QQIIQII", 3, 8, 9, 0, 7, 2, 0), requests.Readdir(3, 8, 9)),
    (Opcode.READDIRPLUS, packed("QQIIQII", 3, 8, 9, 0, 7, 2, 0), requests.Readdirplus(3, 8, 9)),
    (Opcode.ACCESS, packed("II", 4, 0), requests.Access(4)),
    *(
        (
            opcode,
            packed("QQQQIIII", 3, 7, 10, 2**63 - 1, 1, 4321, flags, 0),
            requests.Lock(3, 7, 10, 2**63 - 1, 1, 4321, bool(flags)),
        )
        for opcode, flags in [(Opcode.GETLK, 0), (Opcode.SETLK, 1), (Opcode.SETLKW, 0)]
    ),
    (Opcode.INTERRUPT, packed("Q", 77), requests.Interrupt(77)),
    (Opcode.BMAP, packed("QII", 5, 512, 0), requests.Bmap(5, 512)),
    (Opcode.IOCTL, packed("QIIQII", 3, 1, 0x5401, 8, 0, 60), requests.Ioctl(3, 1, 0x5401)),
    (Opcode.POLL, packed("QQII", 3, 8, 1, 4), requests.Poll(3)),
    (Opcode.FALLOCATE, packed("QQQII", 3, 8, 16, 1, 0), requests.Fallocate(3, 8, 16, 1)),
    (Opcode.LSEEK, packed("QQII", 3, 8, 4, 0), requests.Lseek(3, 8, 4)),
    *(
        (
            opcode,
            packed("QQQQQQQ", 1, 2, 3, 4, 5, 6, 7),
            requests.CopyFileRange(1, 2, 3, 4, 5, 6, 7),
        )
        for opcode in (Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64)
    ),
    (Opcode.STATX, packed("IIQII", 1, 0, 3, 0x100, 0x7FF), requests.Statx(3, 0x100, 0x7FF)),
    (Opcode.STATX, packed("IIQII", 0, 0, 3, 0, 0x800), requests.Statx(None, 0, 0x800)),
    (Opcode.SYNCFS, packed("Q", 0), requests.Syncfs()),
]
IDS = [f"{opcode.name}-{number}" for number, (opcode, _, _) in enumerate(EXAMPLES)]
NEVER_AGREED = {Opcode.NOTIFY_REPLY, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING}


@pytest.mark.parametrize(("opcode", "body", "request_"), EXAMPLES, ids=IDS)
def test_a_request_is_read_as_it_was_packed(opcode: Opcode, body: bytes, request_: Request) -> None:
    decoded = decode(int(opcode), memoryview(body))
    assert decoded == request_
    assert type(decoded) is type(request_)


@pytest.mark.parametrize(("opcode", "body", "request_"), EXAMPLES, ids=IDS)
def test_extensions_are_passed_over(opcode: Opcode, body: bytes, request_: Request) -> None:
    groups = packed("IIII", 16, 32, 1, 1000)
    assert decode(opcode, memoryview(body + groups), 2) == request_


def test_there_is_an_example_of_every_request() -> None:
    assert {opcode for opcode, _, _ in EXAMPLES} == set(Opcode) - NEVER_AGREED


def test_what_is_written_is_a_part_of_the_body() -> None:
    body = bytearray(packed("QQIIQII", 3, 8, 4, 0, 0, 0, 0) + b"data")
    written = decode(Opcode.WRITE, memoryview(body))
    assert isinstance(written, requests.Write)
    body[-4:] = b"DATA"
    assert bytes(written.data) == b"DATA"


@pytest.mark.parametrize("opcode", [0, 7, 19, *NEVER_AGREED, 54, 4096, 26 << 24, 2**32 - 1])
def test_what_was_never_agreed_on_is_unsupported(opcode: int) -> None:
    with pytest.raises(Unsupported, match=f"opcode {int(opcode)} "):
        decode(opcode, memoryview(bytes(200)))


@pytest.mark.parametrize(
    ("opcode", "body", "why"),
    [
        (Opcode.LOOKUP, b"", "LOOKUP: a name is empty"),
        (Opcode.LOOKUP, b"\0", "a name is empty"),
        (Opcode.LOOKUP, b"n", "a name is empty"),
        (Opcode.LOOKUP, b"name", "does not end"),
        (Opcode.LOOKUP, b"name\0more", "does not end"),
        (Opcode.LOOKUP, b"name\0more\0", "does not end"),
        (Opcode.LOOKUP, b"a/b\0", "slash"),
        (Opcode.UNLINK, b"/\0", "slash"),
        (Opcode.RMDIR, b"../x\0", "slash"),
        (Opcode.MKDIR, packed("II", 0, 0) + b"a/b\0", "slash"),
        (Opcode.MKNOD, packed("IIII", 0, 0, 0, 0) + b"a/b\0", "slash"),
        (Opcode.CREATE, packed("IIII", 0, 0, 0, 0) + b"a/b\0", "slash"),
        (Opcode.CREATE, packed("IIII", 0, 0, 0, 0), "empty"),
        (Opcode.TMPFILE, packed("IIII", 0, 0, 0, 0) + b"a", "empty"),
        (Opcode.LINK, packed("Q", 1) + b"a/b\0", "slash"),
        (Opcode.RENAME, packed("Q", 1) + b"old\0a/b\0", "slash"),
        (Opcode.RENAME, packed("Q", 1) + b"a/b\0new\0", "slash"),
        (Opcode.RENAME, packed("Q", 1) + b"old\0\0", "empty"),
        (Opcode.RENAME, packed("Q", 1) + b"old\0", "empty"),
        (Opcode.RENAME2, packed("QII", 1, 0, 0) + b"old\0new", "does not end"),
        (Opcode.RENAME2, packed("QII", 1, 0, 0) + b"old", "does not end"),
        (Opcode.SYMLINK, b"a/b\0target\0", "slash"),
        (Opcode.SYMLINK, b"name\0\0", "empty"),
        (Opcode.SYMLINK, b"name\0target", "does not end"),
        (Opcode.GETXATTR, packed("II", 0, 0), "empty"),
        (Opcode.GETXATTR, packed("II", 0, 0) + b"user.a", "does not end"),
        (Opcode.REMOVEXATTR, b"user.a", "does not end"),
        (Opcode.SETXATTR, packed("II", 4, 0) + b"user.a\0abc", "3 bytes is said to have 4"),
        (Opcode.SETXATTR, packed("II", 2, 0) + b"user.a\0abc", "3 bytes is said to have 2"),
        (Opcode.SETXATTR, packed("II", 2**32 - 1, 0) + b"user.a\0abc", "said to have 4294967295"),
        (Opcode.SETXATTR, packed("II", 3, 0) + b"\0abc", "empty"),
        (Opcode.SETXATTR, packed("II", 3, 0) + b"abc", "does not end"),
        (Opcode.WRITE, packed("QQIIQII", 3, 8, 5, 0, 0, 0, 0) + b"data", "4 bytes to write are said to be 5"),
        (Opcode.WRITE, packed("QQIIQII", 3, 8, 3, 0, 0, 0, 0) + b"data", "4 bytes to write are said to be 3"),
        (Opcode.BATCH_FORGET, packed("IIQQ", 2, 0, 1, 1), "not 2 nodes"),
        (Opcode.BATCH_FORGET, packed("IIQQ", 0, 0, 1, 1), "not 0 nodes"),
        (Opcode.BATCH_FORGET, packed("II", 2**32 - 1, 0), "not 4294967295 nodes"),
        (Opcode.READ, b"", "READ with a body of 0 bytes is too short"),
        (Opcode.INIT, packed("IIII", 7, 45, 0, 1 << 30), "INIT with a body of 16 bytes is too short"),
    ],
)
def test_bytes_that_are_no_request_are_malformed(opcode: Opcode, body: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=re.escape(why)):
        decode(opcode, memoryview(body))


@pytest.mark.parametrize(
    ("opcode", "body", "request_"), [example for example in EXAMPLES if len(example[1]) > 8]
)
def test_a_request_cut_short_is_malformed(opcode: Opcode, body: bytes, request_: Request) -> None:
    whole = 16 if isinstance(request_, Init) and not request_.flags >> 32 else len(body)
    for length in range(whole):
        with pytest.raises(Malformed, match=f"^{opcode.name}"):
            decode(opcode, memoryview(body)[:length])


def test_extensions_that_are_longer_than_the_body_are_malformed() -> None:
    with pytest.raises(Malformed, match="cannot end in 16 of extensions"):
        decode(Opcode.LOOKUP, memoryview(b"name\0"), 2)


@given(
    st.sampled_from([*map(int, Opcode), 0, 7, 54, 4096]),
    st.binary(max_size=160) | st.sampled_from([body for _, body, _ in EXAMPLES]),
    st.just(0) | st.integers(0, 2**16 - 1),
)
def test_whatever_the_bytes_are_they_are_a_request_or_refused(
    opcode: int, body: bytes, extensions_length: int
) -> None:
    with contextlib.suppress(Malformed, Unsupported):
        decode(opcode, memoryview(body), extensions_length)


# The short way to reads and writes


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Requests with a header, most of them reads and writes, of which some lie about their length, or their data's, or have extensions."""
    usual = st.sampled_from([int(Opcode.WRITE), int(Opcode.READ)])
    opcode = draw(usual | st.sampled_from([*map(int, Opcode)]))
    off = st.just(0) | st.integers(-2, 2)
    data = b"" if opcode == Opcode.READ and draw(st.booleans()) else draw(st.binary(max_size=40))
    fh, offset, owner = (draw(st.integers(0, MOST)) for _ in range(3))
    body = packed("QQIIQII", fh, offset, max(0, len(data) + draw(off)), 0, owner, 1, 0) + data
    length, unique = max(0, 40 + len(body) + draw(off)), draw(st.integers(0, MOST))
    extensions = draw(st.just(0) | st.integers(0, 3))
    whole = packed("IIQQIIIHH", length, opcode, unique, 1, 1000, 1001, 4321, extensions, 0) + body
    return whole[: draw(st.just(len(whole)) | st.integers(0, len(whole)))]


@given(messages())
def test_the_short_way_finds_what_the_long_one_does_or_nothing(whole: bytes) -> None:
    found = io_of(memoryview(whole))
    try:
        header = header_of(memoryview(whole))
        asked = decode(header.opcode, memoryview(whole)[40 : header.length], header.extensions_length)
    except (Malformed, Unsupported):
        assert found is None
        return
    if found is None:  # what has extensions, or was not received alone, is rare
        is_short = header.extensions_length == 0 and header.length == len(whole)
        is_plain = isinstance(asked, requests.Write) or (
            isinstance(asked, requests.Read) and len(whole) == 80
        )
        assert not (is_short and is_plain)
    elif isinstance(asked, requests.Write):
        assert found == (header.unique, asked.fh, asked.offset, len(asked.data), asked.data)
    else:
        assert isinstance(asked, requests.Read)
        assert found == (header.unique, asked.fh, asked.offset, asked.size, None)


def test_the_short_answer_to_a_write_is_the_long_one() -> None:
    assert replies.whole_written(MOST, 4096) == replies.header(MOST, 0, 8) + replies.written(4096)


# The header

MESSAGE = packed("IIQQIIIHH", 45, 1, 2**63 + 6, 1, 1000, 1001, 4321, 2, 0) + b"name\0"


def test_a_header_is_read_as_it_was_packed() -> None:
    assert header_of(memoryview(MESSAGE)) == Header(45, 1, 2**63 + 6, 1, 1000, 1001, 4321, 2)


@pytest.mark.parametrize(
    "message", [b"", MESSAGE[:39], MESSAGE[:-1], packed("I", 39) + MESSAGE[4:], bytes(40)]
)
def test_a_header_that_is_none_or_lies_is_malformed(message: bytes) -> None:
    with pytest.raises(Malformed, match=f"a message of {len(message)} bytes"):
        header_of(memoryview(message))


@given(st.binary(max_size=100))
def test_whatever_the_bytes_are_they_have_a_header_or_none(message: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert 40 <= header_of(memoryview(message)).length <= len(message)


# Replies

FILE = Attributes(
    ino=5,
    size=4097,
    blocks=16,
    atime_ns=10 * NS + 1,
    mtime_ns=20 * NS + 2,
    ctime_ns=30 * NS + 3,
    mode=0o100640,
    nlink=1,
    uid=1000,
    gid=1001,
    rdev=0,
    blksize=4096,
)
FILE_PACKED = packed(
    "QQQQQQIIIIIIIIII", 5, 4097, 16, 10, 20, 30, 1, 2, 3, 0o100640, 1, 1000, 1001, 0, 4096, 0
)


def unpacked(layout: str, body: bytes) -> tuple[int, ...]:
    return struct.unpack("=" + layout, body)


def attr_of(body: bytes) -> tuple[int, ...]:
    """The fields of struct fuse_attr, which an answer to GETATTR ends in."""
    return unpacked("QQQqqqIIIIIIIIII", body[16:])


def test_a_header_of_a_reply() -> None:
    assert replies.header(7, 0, 104) == packed("IiQ", 120, 0, 7)
    assert replies.header(MOST, errno.ENOENT, 0) == packed("IiQ", 16, -2, MOST)


@pytest.mark.parametrize("error", [-1, 512, 10**12])
def test_an_errno_that_the_kernel_would_refuse_is_eio(error: int) -> None:
    assert replies.header(7, error, 0) == packed("IiQ", 16, -errno.EIO, 7)


def test_attributes_are_packed_as_the_header_has_them() -> None:
    assert replies.attributes(FILE, 1.25) == packed("QII", 1, 250_000_000, 0) + FILE_PACKED
    assert replies.entry(FILE, 9, 0, 2.5) == packed("QQQQII", 9, 0, 0, 2, 0, 500_000_000) + FILE_PACKED


def test_an_open_file_and_one_that_was_made() -> None:
    flags = OpenFlags.DIRECT_IO | OpenFlags.PASSTHROUGH
    assert replies.opened(3, flags, 6) == packed("QIi", 3, 129, 6)
    assert replies.created(FILE, 9, 1, 2, 3, 0) == replies.entry(FILE, 9, 1, 2) + packed("QIi", 3, 0, 0)


def test_replies_of_a_number_or_a_few() -> None:
    assert replies.written(4096) == packed("II", 4096, 0)
    assert replies.copied(2**40) == packed("Q", 2**40)
    assert replies.xattr_size(12) == packed("II", 12, 0)
    assert replies.sought(2**40) == packed("Q", 2**40)
    assert replies.lock(1, 2**63 - 1, 2, 99) == packed("QQII", 1, 2**63 - 1, 2, 99)
    assert replies.statfs(1, 2, 3, 4, 5, 6, 7, 8) == packed("QQQQQIII7I", 1, 2, 3, 4, 5, 6, 7, 8, *[0] * 7)


STATX = "QII2Q" + "IIQIIIHHQQQQ" + "qIi" * 4 + "IIII14Q"


def test_statx_says_the_time_of_birth_if_it_is_known() -> None:
    device = FILE._replace(rdev=os.makedev(0x12345, 0x6789AB), mode=0o60600)
    spare = [0] * 14
    assert replies.statx(device, 40 * NS + 4, 1.5) == packed(
        STATX,
        *(1, 500_000_000, 0, 0, 0),
        *(0xFFF, 4096, 0, 1, 1000, 1001, 0o60600, 0, 5, 4097, 16, 0),
        *(10, 1, 0, 40, 4, 0, 30, 3, 0, 20, 2, 0),
        *(0x12345, 0x6789AB, 0, 0, *spare),
    )
    unborn = unpacked(STATX, replies.statx(FILE, None, 0))
    assert (unborn[5], unborn[20:22]) == (0x7FF, (0, 0))


@pytest.mark.parametrize(
    ("seconds", "packed_as"),
    [
        (0, (0, 0)),
        (-1, (0, 0)),
        (math.nan, (0, 0)),
        (0.1, (0, 100_000_000)),
        (86400, (86400, 0)),
        (1e30, (2**63 - 1, 0)),
        (math.inf, (2**63 - 1, 0)),
    ],
)
def test_how_long_the_kernel_may_use_an_answer(seconds: float, packed_as: tuple[int, int]) -> None:
    assert unpacked("QI", replies.attributes(FILE, seconds)[:12]) == packed_as


@pytest.mark.parametrize(
    ("when_ns", "seconds", "nsec"),
    [
        (-1, -1, NS - 1),
        (-2 * NS + 5, -2, 5),
        (2**63 * NS, 2**63 - 1, NS - 1),
        (-(10**40), -(2**63), 0),
    ],
)
def test_any_time_is_told_as_near_as_it_fits(when_ns: int, seconds: int, nsec: int) -> None:
    file = FILE._replace(atime_ns=when_ns, mtime_ns=when_ns, ctime_ns=when_ns)
    assert attr_of(replies.attributes(file, 0))[3:9] == (seconds,) * 3 + (nsec,) * 3
    assert unpacked(STATX, replies.statx(file, when_ns, 0))[17:29] == (seconds, nsec, 0) * 4


def test_a_size_is_never_more_than_the_kernel_takes() -> None:
    """More than an off_t, and the kernel answers EIO."""
    for size in (2**63, MOST, 10**40):
        assert attr_of(replies.attributes(FILE._replace(size=size), 0))[1] == 2**63 - 1
        assert unpacked("Q", replies.statx(FILE._replace(size=size), 0, 0)[72:80]) == (2**63 - 1,)
    assert attr_of(replies.attributes(FILE._replace(size=-1), 0))[1] == 0


def test_values_that_do_not_fit_their_fields_are_the_nearest_that_do() -> None:
    assert attr_of(replies.attributes(FILE._replace(nlink=2**32, uid=2**40, gid=-1, blocks=-1), 0)) == (
        *(5, 4097, 0, 10, 20, 30, 1, 2, 3),
        *(0o100640, 2**32 - 1, 2**32 - 1, 0, 0, 4096, 0),
    )
    assert replies.written(2**32) == packed("II", 2**32 - 1, 0)


@given(
    st.lists(st.integers(-(10**40), 10**40) | st.integers(-3, 3), min_size=12, max_size=12),
    st.floats(),
)
def test_no_attributes_are_beyond_being_told(fields: list[int], valid_s: float) -> None:
    any_file = Attributes(*fields)
    listing = Listing(4096)
    assert len(replies.attributes(any_file, valid_s)) == 104
    assert len(replies.entry(any_file, 1, valid_s, valid_s)) == 128
    assert len(replies.statx(any_file, fields[0], valid_s)) == 288
    assert listing.add(b"name", fields[0], fields[1], fields[2])
    assert listing.add_plus(b"name", fields[0], any_file, 1, valid_s, valid_s)
    assert len(listing.bytes()) == 32 + 160


def new_encode_dev(major: int, minor: int) -> int:
    """As include/linux/kdev_t.h has it."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_a_device_is_packed_as_the_kernel_unpacks_it(major: int, minor: int) -> None:
    device = FILE._replace(rdev=os.makedev(major, minor))
    assert attr_of(replies.attributes(device, 0))[13] == new_encode_dev(major, minor)
    assert unpacked("II", replies.statx(device, 0, 0)[160:168]) == (major, minor)


def test_a_device_that_the_kernel_cannot_have_is_not_taken_for_another() -> None:
    device = FILE._replace(rdev=os.makedev(0x1001, 0x100001))
    assert attr_of(replies.attributes(device, 0))[13] == new_encode_dev(0xFFF, 0xFFFFF)


# Listings


def test_entries_of_a_listing_are_aligned() -> None:
    listing = Listing(4096)
    assert listing.add(b"1234567", 1, 5, 0o100640)
    assert listing.add(b"12345678", 2, 6, 0o40755)
    assert listing.add(b"123456789", 3, MOST, 0o120777)
    assert listing.bytes() == (
        packed("QQII", 5, 1, 7, 8)
        + b"1234567\0"
        + packed("QQII", 6, 2, 8, 4)
        + b"12345678"
        + packed("QQII", MOST, 3, 9, 10)
        + b"123456789\0\0\0\0\0\0\0"
    )


def test_entries_with_attributes_are_aligned() -> None:
    listing = Listing(4096)
    assert listing.add_plus(b"abc", 1, FILE, 9, 1, 2)
    assert listing.add_plus(b"d", 2, FILE._replace(ino=6), 0, 0, 0)
    once = packed("QQQQII", 9, 0, 1, 2, 0, 0) + FILE_PACKED + packed("QQII", 5, 1, 3, 8) + b"abc" + bytes(5)
    assert listing.bytes()[:160] == once
    assert unpacked("Q", listing.bytes()[160:168]) == (0,)
    assert listing.bytes()[-32:] == packed("QQII", 6, 2, 1, 8) + b"d" + bytes(7)


@pytest.mark.parametrize(("room", "taken"), [(0, 0), (31, 0), (32, 1), (63, 1), (64, 2), (95, 2)])
def test_a_listing_takes_what_it_has_room_for(room: int, taken: int) -> None:
    listing = Listing(room)
    assert [listing.add(b"name", number, 5, 0o100640) for number in range(3)] == [
        number < taken for number in range(3)
    ]
    assert len(listing.bytes()) == 32 * taken


@pytest.mark.parametrize(("room", "taken"), [(159, 0), (160, 1), (319, 1), (320, 2)])
def test_a_listing_with_attributes_takes_what_it_has_room_for(room: int, taken: int) -> None:
    listing = Listing(room)
    assert [listing.add_plus(b"name", number, FILE, 9, 0, 0) for number in range(3)] == [
        number < taken for number in range(3)
    ]
    assert len(listing.bytes()) == 160 * taken


# What is agreed

LINUX_5_4 = InitFlags(0x3FFFFFB)
LINUX_6_1 = InitFlags(0x73FFFFFB)
LINUX_6_18 = InitFlags(0x7FF_73FFFFFB)
WANTED = Wanted(max_write=1 << 20, max_readahead=1 << 20, max_background=64, congestion_threshold=48)
EVERYTHING = Wanted(
    max_write=1 << 20,
    max_readahead=1 << 17,
    max_background=64,
    congestion_threshold=48,
    passthrough=True,
    locks=True,
    direct_io_allow_mmap=True,
    request_timeout_s=300,
)
REPLY = "IIIIHHIIHHIIH11H"


def test_a_new_kernel_gets_all_that_is_wanted() -> None:
    agreed, body = negotiate(Init(7, 45, 1 << 18, LINUX_6_18), EVERYTHING)
    flags = int(agreed.flags)
    assert unpacked(REPLY, body) == (
        *(7, 45, 1 << 17, flags & 0xFFFFFFFF, 64, 48, 1 << 20, 1, 256, 0, flags >> 32, 1, 300),
        *[0] * 11,
    )
    assert agreed.flags == (
        BASE
        | InitFlags.POSIX_LOCKS
        | InitFlags.FLOCK_LOCKS
        | InitFlags.PASSTHROUGH
        | InitFlags.DIRECT_IO_ALLOW_MMAP
        | InitFlags.REQUEST_TIMEOUT
    )
    assert (agreed.minor, agreed.max_write, agreed.max_pages) == (45, 1 << 20, 256)
    assert (agreed.max_readahead, agreed.passthrough, agreed.request_timeout_s) == (1 << 17, True, 300)


def test_what_is_not_wanted_is_not_asked_for() -> None:
    agreed, body = negotiate(Init(7, 45, 1 << 17, LINUX_6_18), WANTED)
    assert agreed.flags == BASE
    assert (agreed.max_readahead, agreed.passthrough, agreed.request_timeout_s) == (1 << 17, False, 0)
    assert unpacked(REPLY, body)[10:13] == (0, 0, 0)


def test_debian_12_gets_no_passthrough_and_no_timeout() -> None:
    agreed, body = negotiate(Init(7, 37, 1 << 17, LINUX_6_1), EVERYTHING)
    assert agreed.flags == BASE | InitFlags.POSIX_LOCKS | InitFlags.FLOCK_LOCKS
    assert (agreed.minor, agreed.passthrough, agreed.request_timeout_s) == (37, False, 0)
    assert unpacked(REPLY, body)[:2] == (7, 37)
    assert unpacked(REPLY, body)[10:13] == (0, 0, 0)


def test_a_kernel_without_the_second_word_of_flags_gets_none() -> None:
    agreed, _ = negotiate(Init(7, 31, 1 << 17, LINUX_5_4 | LINUX_6_18 >> 32 << 32), EVERYTHING)
    assert int(agreed.flags) >> 32 == 0
    assert not agreed.passthrough


def test_without_many_pages_a_write_is_at_most_32_of_them() -> None:
    agreed, body = negotiate(Init(7, 37, 0, LINUX_6_1 & ~InitFlags.MAX_PAGES), WANTED)
    assert (agreed.max_write, agreed.max_pages) == (32 * 4096, 32)
    assert unpacked(REPLY, body)[6:9] == (32 * 4096, 1, 0)


@pytest.mark.parametrize(
    ("max_write", "page_bytes", "agreed_write", "pages"),
    [
        (1, 4096, 4096, 1),
        (4097, 4096, 4097, 2),
        (1 << 20, 65536, 1 << 20, 16),
        (1 << 40, 4096, 65535 * 4096, 65535),
    ],
)
def test_a_write_takes_as_many_pages_as_it_needs(
    max_write: int, page_bytes: int, agreed_write: int, pages: int
) -> None:
    wanted = Wanted(
        max_write=max_write,
        max_readahead=0,
        max_background=10**6,
        congestion_threshold=-1,
        page_bytes=page_bytes,
    )
    agreed, body = negotiate(Init(7, 45, 0, LINUX_6_18), wanted)
    assert (agreed.max_write, agreed.max_pages) == (agreed_write, pages)
    assert unpacked(REPLY, body)[4:9] == (65535, 0, agreed_write, 1, pages)


def test_the_buffer_takes_the_largest_write_and_the_largest_attribute() -> None:
    large, _ = negotiate(Init(7, 45, 0, LINUX_6_18), WANTED)
    assert large.buffer_bytes == (1 << 20) + 80
    small, _ = negotiate(
        Init(7, 45, 0, LINUX_6_18),
        Wanted(max_write=4096, max_readahead=0, max_background=0, congestion_threshold=0),
    )
    assert small.buffer_bytes == 40 + 8 + 256 + 65536


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99), (0, 0)])
def test_a_kernel_that_is_too_old_is_refused_in_one_line(major: int, minor: int) -> None:
    with pytest.raises(TooOld, match=rf"^the kernel speaks FUSE {major}\.{minor}, and ckfs needs 7\.31 .*$"):
        negotiate(Init(major, minor, 0, LINUX_6_18), WANTED)


def test_a_kernel_of_another_major_version_is_told_ours() -> None:
    with pytest.raises(TooNew) as refused:
        negotiate(Init(8, 1, 0, 0), WANTED)
    assert unpacked(REPLY, refused.value.reply) == (7, 45, *[0] * 22)


def test_what_the_daemon_cannot_carry_is_not_to_be_wanted() -> None:
    for flag in NEVER:
        with pytest.raises(ValueError, match="never agreed on"):
            Wanted(
                max_write=4096,
                max_readahead=0,
                max_background=0,
                congestion_threshold=0,
                flags=BASE | flag,
            )


@given(st.integers(31, 2**32 - 1), st.integers(0, MOST), st.sampled_from([WANTED, EVERYTHING]))
def test_nothing_is_agreed_that_was_not_offered(minor: int, offered: int, wanted: Wanted) -> None:
    agreed, body = negotiate(Init(7, minor, 1 << 17, offered), wanted)
    fields = unpacked(REPLY, body)
    assert fields[3] | fields[10] << 32 == agreed.flags
    assert int(agreed.flags) & ~offered == 0
    assert not agreed.flags & NEVER
    assert len(body) == 64
