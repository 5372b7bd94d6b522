"""What a selftest says by what it has measured: the boundaries, without a store."""

from __future__ import annotations

import errno
import math
import os
import time
from pathlib import Path

import pytest

from ckfs.engines import proven
from ckfs.engines.driven import Driven
from ckfs.engines.engine import MountedOn, Realms
from ckfs.engines.lustre import Lustre
from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.policy.advice import Family, Topic, advice, family_of
from ckfs.selftest import coherence, late, syncing
from ckfs.selftest.aspects import ASPECTS
from ckfs.selftest.late import Filled, Told
from ckfs.selftest.outcome import Verdict, decoded, encoded, warn
from ckfs.selftest.peers import is_host
from ckfs.selftest.place import Place
from ckfs.selftest.scratch import Worker
from ckfs.selftest.supervision import Died, NoAnswer, bounded

ROOT, ALICE, BOB = (Owner(Uid(uid), Gid(uid)) for uid in (0, 2101, 2102))
(SIZE,) = (aspect for aspect in ASPECTS if aspect.name == "size")


def place(kind: str) -> Place:
    return Place("/s", "/s/x", "/s/x/y", ROOT, False, 0, (ALICE, BOB), kind, 30.0)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("nfs4", Family.NFS),
        ("fuse.glusterfs", Family.GLUSTER),
        ("fuse.ceph-fuse", Family.CEPH),
        ("lustre", Family.LUSTRE),
        ("beegfs", Family.BEEGFS),
        ("btrfs", Family.LOCAL),
        ("fuse", Family.FUSE),
        ("fuse.sshfs", Family.FUSE),
        ("gpfs", Family.OTHER),
    ],
)
def test_a_file_system_is_known_by_the_kernels_name(kind: str, family: Family) -> None:
    assert family_of(kind) is family


@pytest.mark.parametrize("topic", Topic)
@pytest.mark.parametrize(
    "kind", ["nfs", "fuse.glusterfs", "ceph", "lustre", "beegfs", "cifs", "fuse", "ext4", "gpfs"]
)
def test_there_is_a_way_out_of_everything(kind: str, topic: Topic) -> None:
    assert advice(kind, topic)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("nfs4", "noac,lookupcache=none"),
        ("fuse.glusterfs", "attribute-timeout=0,entry-timeout=0"),
        ("beegfs", "tuneDirSubentryCacheValidityMS"),
        ("fuse", "attr_timeout=0"),
    ],
)
def test_what_is_seen_late_is_mended_by_the_engines_option(kind: str, option: str) -> None:
    outcome = coherence._judged(place(kind), SIZE, {"size": (3.14159, "tqn2")}, 10.0)
    assert outcome.verdict is Verdict.WARN
    assert outcome.says == "a file's new size: seen 3.14 s later (tqn2)"
    assert option in outcome.mend
    assert outcome.figures == {"delay_s": 3.142}


def test_seen_at_once_is_well_and_never_seen_is_a_failure() -> None:
    nfs = place("nfs4")
    assert coherence._judged(nfs, SIZE, {"size": (0.0, "tqn2")}, 10.0).verdict is Verdict.OK
    never = coherence._judged(nfs, SIZE, {"size": (math.inf, "tqn2")}, 10.0)
    assert (never.verdict, never.says) == (Verdict.FAIL, "a file's new size: not seen within 10 s (tqn2)")


def test_the_latest_of_all_who_look_counts() -> None:
    delays: coherence.Delays = {}
    for who, found in (("a", {"size": 0.5}), ("b", {"size": None}), ("c", {"size": 0.0})):
        coherence._note(delays, who, found)
    assert delays == {"size": (math.inf, "b")}


@pytest.mark.parametrize(
    ("told", "verdict"), [(Told.WRITE, Verdict.OK), (Told.FSYNC, Verdict.OK), (Told.CLOSE, Verdict.WARN)]
)
def test_the_later_an_error_comes_the_worse(told: Told, verdict: Verdict) -> None:
    outcome = late.judged(place("nfs4"), Filled(told, 1 << 20, errno.EDQUOT))
    assert outcome.verdict is verdict
    assert outcome.figures == {"told_at": told.value, "error": "EDQUOT", "written_bytes": 1 << 20}


def test_a_sync_that_takes_longer_than_a_second_is_a_warning() -> None:
    assert syncing._judged("fsync.file", "of a file", [0.1, 1.0, 5.0]).verdict is Verdict.OK
    assert syncing._judged("fsync.file", "of a file", [0.1, 1.01, 5.0]).verdict is Verdict.WARN


def test_an_outcome_comes_through_a_pipe_as_it_was() -> None:
    outcome = warn("a.b", "says", "mend", delay_s=0.5)
    assert decoded(encoded(outcome)) == outcome


@pytest.mark.parametrize("name", ["tqn1", "tqn1.example.org", "root@10.0.0.7", "fe80::1%eth0", "A-b_c"])
def test_names_of_hosts(name: str) -> None:
    assert is_host(name)


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", "a;b", "$(x)", "a\nb", "[::1]", "@a"])
def test_what_ssh_might_take_for_something_else_is_no_host(name: str) -> None:
    assert not is_host(name)


def test_a_call_in_a_process_of_its_own_answers() -> None:
    assert bounded(lambda: {"a": [1, None, "x"]}, 60.0) == {"a": [1, None, "x"]}


def test_a_call_that_takes_too_long_is_ended() -> None:
    def hang() -> None:
        time.sleep(3600)

    with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
        bounded(hang, 0.2)


def test_a_call_that_fails_says_why_in_one_line() -> None:
    def fail() -> None:
        raise ValueError("first\nand last")

    with pytest.raises(Died, match=r"^and last$"):
        bounded(fail, 60.0)


def test_who_works_in_a_scratch_directory_is_read_as_it_was_written() -> None:
    worker = Worker.here(1)
    assert Worker.decode(worker.encode()) == worker
    assert worker.is_alive
    assert Worker.decode(b"") is None
    assert Worker.decode(b"boot pid started node") is None


def test_a_driver_that_has_passed_is_not_warned_of_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lustre, "start", lambda _: None)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    engine = Driven(Lustre(realms := Realms(fd, MountedOn("lustre", "mds:/fs", "/mnt"))), realms)
    assert not engine.tried
    proven.record(fd, "btrfs")
    assert not engine.tried
    proven.record(fd, "lustre")
    assert engine.tried
    engine.start()
    engine.close()
    assert caplog.records == []
