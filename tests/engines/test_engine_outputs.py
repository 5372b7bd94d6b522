"""What the engines' tools print, as ckfs reads it. Each sample says where it is from; whatever else a tool may print is refused."""

from __future__ import annotations

import pytest

from ckfs.engines import btrfs, cephfs, glusterfs, lustre, projects
from ckfs.errors import EngineFailed
from ckfs.names import Uid
from ckfs.policy.quota import Account, Amount, Limit, Limits, grace_left_s

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOW_S = 1_700_000_000.0

# Recorded here: btrfs-progs 6.2 on Linux 6.18 (without the blanks that end its lines).
BTRFS = """\
Qgroupid    Referenced    Exclusive  Max referenced  Max exclusive   Path
--------    ----------    ---------  --------------  -------------   ----
0/5              16384        16384            none           none   <toplevel>
0/256         10469376     10469376        10485760           none   users/2101
0/257                0            0            none           none   users/2102
1/100         10469376     10469376            none           none
"""
# In the form of btrfs-progs before 5.19, which named its columns otherwise and had no paths; made up.
BTRFS_OLDER = """\
qgroupid         rfer         excl     max_rfer     max_excl
--------         ----         ----     --------     --------
0/5             16384        16384         none         none
0/256        10469376     10469376     10485760         none
"""

# The headings are those in the source of quota-tools 4.06 (repquota.c); the figures are made up in its form.
REPQUOTA = """\
Project,BlockStatus,FileStatus,BlockUsed,BlockSoftLimit,BlockHardLimit,BlockGrace,FileUsed,FileSoftLimit,FileHardLimit,FileGrace
#0,ok,ok,0,0,0,0,4,0,0,0
#2101,ok,ok,1572864,0,2097152,0,412,0,1000,0
#2102,soft,ok,600,500,1000,1700086400,1,0,0,0
"""

# In the form that clusters' documentation of project quotas shows (EPCC Cirrus, CZ Biohub), without -h; the figures are made up. A
# long name has a line to itself, and what is over a limit has a star.
LFS = """\
Disk quotas for prj 2101 (pid 2101):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
    /mnt/lustre  1225350*      0 1048576       -  714982       0 1000000       -
"""
LFS_LONG_NAME = """\
Disk quotas for prj 2101 (pid 2101):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
/lustre/of/a/long/name/store
                [1024]     512    2048 6d23h59m50s       3       0       0       -
pid 2101 is using default file quota setting
"""

# Recorded here: GlusterFS 10.3 (Debian 12).
GLUSTER = """\
<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<cliOutput>
  <opRet>0</opRet>
  <opErrno>0</opErrno>
  <opErrstr/>
  <volQuota>
    <limit>
      <path>/store/users/2101</path>
      <hard_limit>10485760</hard_limit>
      <soft_limit_percent>80%</soft_limit_percent>
      <soft_limit_value>8388608</soft_limit_value>
      <used_space>4096</used_space>
      <avail_space>10481664</avail_space>
      <sl_exceeded>No</sl_exceeded>
      <hl_exceeded>No</hl_exceeded>
    </limit>
  </volQuota>
</cliOutput>
"""
GLUSTER_OBJECTS = """\
<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<cliOutput>
  <opRet>0</opRet>
  <opErrno>0</opErrno>
  <opErrstr/>
  <volQuota>
    <limit>
      <path>/store/users/2101</path>
      <hard_limit>10</hard_limit>
      <soft_limit_percent>80%</soft_limit_percent>
      <soft_limit_value>8</soft_limit_value>
      <file_count>3</file_count>
      <dir_count>1</dir_count>
      <available>6</available>
      <sl_exceeded>No</sl_exceeded>
      <hl_exceeded>No</hl_exceeded>
    </limit>
  </volQuota>
</cliOutput>
"""
GLUSTER_NONE_YET = """\
<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<cliOutput>
  <opRet>-1</opRet>
  <opErrno>0</opErrno>
  <opErrstr>No quota configured on volume gv0</opErrstr>
  <cliOp>volQuota</cliOp>
</cliOutput>
"""
GLUSTER_REFUSES = """\
<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<cliOutput>
<opRet>-1</opRet>
<opErrno>30800</opErrno>
<opErrstr>Volume storage01 does not exist</opErrstr>
<cliOp>volQuota</cliOp>
</cliOutput>
"""


@pytest.mark.parametrize("text", [BTRFS, BTRFS_OLDER])
def test_btrfs_says_what_each_subvolume_reaches_and_may(text: str) -> None:
    held = btrfs.parse(text)
    assert held[5] == btrfs.Held(16384, None)
    assert held[256] == btrfs.Held(10469376, 10 * MIB)
    assert 100 not in held  # a group of groups


def test_repquota_says_what_each_project_has_and_may() -> None:
    accounts = projects.parse(REPQUOTA, NOW_S)
    assert accounts[Uid(2101)] == Account(
        Uid(2101),
        Amount(1572864 * KIB, 412),
        limits=Limits(Limit(hard=2 * GIB), Limit(hard=1000)),
    )
    over = accounts[Uid(2102)]
    assert over.limits.bytes == Limit(500 * KIB, 1000 * KIB)
    assert grace_left_s(over.over_bytes, over.limits) == 86_400
    assert over.over_files is None


def test_lfs_says_what_a_project_has_and_may() -> None:
    assert lustre.parse(LFS, Uid(2101)) == Account(
        Uid(2101), Amount(1225350 * KIB, 714982), limits=Limits(Limit(hard=GIB), Limit(hard=1_000_000))
    )
    wrapped = lustre.parse(LFS_LONG_NAME, Uid(2101))
    assert wrapped.used == Amount(MIB, 3)
    assert wrapped.limits.bytes == Limit(512 * KIB, 2048 * KIB)


@pytest.mark.parametrize(
    ("text", "project"),
    [
        ("    0 - /mnt/lustre/users/2101\n", (0, False)),
        (" 2101 P /mnt/lustre/users/2101\n", (2101, True)),
    ],
)
def test_lfs_says_which_project_a_directory_is_of(text: str, project: tuple[int, bool]) -> None:
    assert lustre.parse_project(text) == project


def test_gluster_says_what_each_directory_with_a_limit_has_and_may() -> None:
    assert glusterfs.parse(GLUSTER, "used_space") == {"/store/users/2101": glusterfs.Listed(4096, 10 * MIB)}


def test_gluster_counts_files_and_directories() -> None:
    listed = glusterfs.parse(GLUSTER_OBJECTS, "file_count", "dir_count")
    assert listed == {"/store/users/2101": glusterfs.Listed(4, 10)}


@pytest.mark.parametrize("kind", ["quota", "inode quota"])
def test_that_no_directory_has_a_limit_gluster_says_as_a_failure(kind: str) -> None:
    assert glusterfs.parse(GLUSTER_NONE_YET.replace("quota conf", f"{kind} conf"), "used_space") == {}


def test_what_gluster_refuses_is_said_in_its_words() -> None:
    with pytest.raises(EngineFailed, match="Volume storage01 does not exist"):
        glusterfs.parse(GLUSTER_REFUSES, "used_space")


def test_no_document_type_of_gluster_is_taken() -> None:
    bomb = GLUSTER.replace("<cliOutput>", '<!DOCTYPE x [<!ENTITY a "aaaa">]><cliOutput>', 1)
    with pytest.raises(EngineFailed, match="does not understand"):
        glusterfs.parse(bomb, "used_space")


@pytest.mark.parametrize(
    ("source", "volume", "below"),
    [
        ("server:/gv0", "gv0", ""),
        ("server:gv0", "gv0", ""),
        ("server:/gv0/checkpoints/a", "gv0", "/checkpoints/a"),
        ("fd00::1:/gv0", "gv0", ""),
    ],
)
def test_the_volume_is_the_one_that_was_mounted(source: str, volume: str, below: str) -> None:
    assert glusterfs.volume_of(source) == (volume, below)


@pytest.mark.parametrize(("raw", "number"), [(b"0", 0), (b"10485760", 10 * MIB), (b"7\0", 7)])
def test_attributes_of_cephfs_are_numbers(raw: bytes, number: int) -> None:
    assert cephfs.parse("ceph.dir.rbytes", raw) == number


@pytest.mark.parametrize("raw", [b"", b"-1", b"1 2", b"many", b"\xff"])
def test_an_attribute_of_cephfs_that_is_no_number_is_refused(raw: bytes) -> None:
    with pytest.raises(EngineFailed, match=r"ceph\.dir\.rbytes"):
        cephfs.parse("ceph.dir.rbytes", raw)


UNEXPECTED = ["", "\n", "Segmentation fault\n", "a,b,c\n1,2,3\n", "<html></html>", "x" * 100_000]


@pytest.mark.parametrize(
    "text", [*UNEXPECTED, BTRFS.replace("10469376", "10,4"), BTRFS.replace("Referenced", "Used")]
)
def test_btrfs_printing_something_else_is_one_line(text: str) -> None:
    _refused(lambda: btrfs.parse(text))


@pytest.mark.parametrize(
    "text", [*UNEXPECTED, REPQUOTA.replace(",412,", ",many,"), REPQUOTA.replace("#2101,ok", "#2101")]
)
def test_repquota_printing_something_else_is_one_line(text: str) -> None:
    _refused(lambda: projects.parse(text, NOW_S))


@pytest.mark.parametrize(
    "text",
    [*UNEXPECTED, LFS.replace("2101", "2102"), LFS.replace("1048576", ""), LFS.replace("1225350*", "-")],
)
def test_lfs_printing_something_else_is_one_line(text: str) -> None:
    _refused(lambda: lustre.parse(text, Uid(2101)))


@pytest.mark.parametrize(
    "text",
    [*UNEXPECTED, GLUSTER.replace("4096", "4kB"), GLUSTER.replace("<path>/store/users/2101</path>", "")],
)
def test_gluster_printing_something_else_is_one_line(text: str) -> None:
    _refused(lambda: glusterfs.parse(text, "used_space"))


def _refused(parse: object) -> None:
    assert callable(parse)
    with pytest.raises(EngineFailed) as refused:
        parse()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
