"""/proc/self/mountinfo: what is mounted where, names of any kind among it."""

from __future__ import annotations

import pytest

from ckfs.daemon import mounting
from ckfs.daemon.mounting import Mounted, top_mount

_LINES = b"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:5 / /proc rw,nosuid - proc proc rw
41 22 0:40 / /ck rw,nosuid,nodev shared:7 master:2 - fuse.ckfs /srv/store rw,user_id=0
42 41 0:41 / /ck rw,nosuid,nodev - fuse.ckfs /srv/my\\040store rw,user_id=0
43 22 0:42 /sub /a\\040b\\011c\\134d rw - tmpfs none rw
44 22 0:43 / /r\\303\\251 rw propagate_from:3 - nfs4 host:/export rw
45 22 0:44 / /dash - - fuse.other some - thing rw
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (0, Mounted(b"/", "ext4", b"/dev/sda1", 22, "8:1", ("rw",))),
        (2, Mounted(b"/ck", "fuse.ckfs", b"/srv/store", 41, "0:40", ("rw", "user_id=0"))),
        (3, Mounted(b"/ck", "fuse.ckfs", b"/srv/my store", 42, "0:41", ("rw", "user_id=0"))),
        (4, Mounted(b"/a b\tc\\d", "tmpfs", b"none", 43, "0:42", ("rw",))),
        (5, Mounted("/ré".encode(), "nfs4", b"host:/export", 44, "0:43", ("rw",))),
    ],
)
def test_a_line(line: int, expected: Mounted) -> None:
    assert mounting._parsed(_LINES.splitlines(keepends=True)[line]) == expected


def test_a_source_may_be_empty() -> None:
    """Programs may mount with an empty source; the kernel then prints nothing between two blanks."""
    line = b"43 22 0:42 / /x rw - tmpfs  rw\n"
    assert mounting._parsed(line) == Mounted(b"/x", "tmpfs", b"", 43, "0:42", ("rw",))


def test_a_users_own_file_system_is_no_ckfs_whatever_it_calls_itself() -> None:
    ours, theirs = (
        mounting._parsed(b"43 22 0:42 / /x rw - fuse.ckfs /store rw,user_id=%d,group_id=0\n" % uid)
        for uid in (0, 2101)
    )
    assert ours.is_ckfs
    assert not theirs.is_ckfs


def test_the_mount_of_an_open_directory() -> None:
    with open("/proc/self/mountinfo") as any_file:
        mount = mounting.mount_of(any_file.fileno())
    assert mount is not None
    assert mount.kind == "proc"


def test_of_several_mounts_at_one_place_the_uppermost_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [mounting._parsed(line) for line in _LINES.splitlines()[:5]]
    monkeypatch.setattr(mounting, "mounts", lambda: lines)
    top = top_mount("/ck")
    assert top is not None
    assert top.source == b"/srv/my store"
    assert top_mount("/ck/inner") is None
    assert top_mount("/a b\tc\\d") is not None


def test_this_machine_has_a_root() -> None:
    assert any(mounted.path == b"/" for mounted in mounting.mounts())
