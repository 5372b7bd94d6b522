"""TORQUE's job files: each version's format, files that lie, and users who write into them."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckfs.model import Owner
from ckfs.names import Gid, JobId, Uid
from ckfs.owners import jobfile
from ckfs.owners import torque as module
from ckfs.owners.accounts import Account, Accounts
from ckfs.owners.jobfile import JobRecord, parse
from ckfs.owners.torque import TorqueJobs
from tests.support import jobfiles
from tests.support.jobfiles import EXEC, MOM, NEW, ROUTE, VERSIONS, Job, binary, with_values, without, xml

JOB = JobId("12.server")
ALICE = Owner(Uid(2101), Gid(2100))
ON_MOM = Job()
ON_SERVER = Job(union_type=EXEC)
MOM_RECORD = JobRecord("12.server", "12.server", 2101, 2100, "alice")
SERVER_RECORD = JobRecord("12.server", "12.server", None, None, "alice")

Writer = Callable[[Job], bytes]
WRITERS: dict[str, Writer] = {
    "xml": xml,
    **{version: functools.partial(binary, version=version) for version in VERSIONS},
}
every_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


# --- formats -----------------------------------------------------------------------------------------------------------


@every_format
def test_a_mom_s_file(write: Writer) -> None:
    assert parse(write(ON_MOM)) == MOM_RECORD


@every_format
@pytest.mark.parametrize("union_type", [NEW, EXEC, ROUTE])
def test_a_server_s_file_has_no_uid(write: Writer, union_type: int) -> None:
    """The union's other members lie over the uid's bytes and must not be taken for it."""
    assert parse(write(dataclasses.replace(ON_SERVER, union_type=union_type))) == SERVER_RECORD


@every_format
def test_before_the_job_starts_the_uid_is_0(write: Writer) -> None:
    assert parse(write(dataclasses.replace(ON_MOM, uid=0, gid=0))) == SERVER_RECORD


@every_format
def test_no_execution_user(write: Writer) -> None:
    assert parse(write(without(ON_SERVER, "euser"))) == dataclasses.replace(SERVER_RECORD, euser=None)


@every_format
def test_the_largest_uid(write: Writer) -> None:
    record = parse(write(dataclasses.replace(ON_MOM, uid=2**32 - 2)))
    assert record is not None
    assert record.uid == 2**32 - 2


@pytest.mark.parametrize("version", VERSIONS)
def test_the_layout_is_the_compiler_s(version: str) -> None:
    number = VERSIONS[version][0]
    layout = jobfile.UNVERSIONED if number is None else jobfile.LAYOUTS[number]
    structure = jobfiles._fixed(version)
    assert layout.size == len(bytes(structure))
    assert layout.job_id_at == type(structure).ji_jobid.offset
    assert layout.union_type_at == type(structure).ji_un_type.offset
    assert layout.union_at == type(structure).ji_un.offset


def test_the_sizes_that_a_64_bit_torque_writes() -> None:
    """As gcc lays the declarations out on x86_64."""
    assert {version: len(bytes(jobfiles._fixed(version))) for version in VERSIONS} == {
        "2.1": 256,
        "2.2": 272,
        "2.3": 320,
        "2.4": 2240,
        "2.5-4": 2240,
    }
    assert len(jobfiles.encoded("a", "", b"")) == 88 + 3


def test_a_mom_s_binary_file_goes_on_after_the_attributes() -> None:
    assert parse(binary(ON_MOM) + struct.pack("<ii", 15003, 15004)) == MOM_RECORD


def test_resources_are_not_attributes() -> None:
    job = Job(attributes=(*ON_MOM.attributes, ("Resource_List", "euser", b"victim")))
    assert parse(binary(job)) == MOM_RECORD
    # In XML a resource becomes an element of that name: two of them, and the file says nothing any more.
    assert parse(xml(job)) is None


@pytest.mark.parametrize(
    "value",
    [
        b"LESS_TERMCAP_mb=\x1b[01;31m",
        b"A=\x01\x02\x7f\xff\xfe",
        b"BASH_FUNC_x()=() {  echo ok > /dev/null && true\n}",
        "LANG=\u00e9\u4e2d\U0001f600".encode(),
        b"&#x1B;&#0;&#xFFFF;&undefined;&;&amp;&lt;",
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_environments_that_break_xml(value: bytes, raw: bool) -> None:
    """adaptivecomputing/torque issues 315 and 318: such files are real, and their users are nobody's attackers."""
    if raw:
        value = value.replace(b"<", b"")
    assert parse(xml(with_values(ON_MOM, Variable_List=value), raw=raw)) == MOM_RECORD


# --- files that lie ----------------------------------------------------------------------------------------------------

HEAD = b'<?xml version="1.0"?>\n'
LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))


@pytest.mark.parametrize(
    "head",
    [
        b"<!DOCTYPE job>",
        b'<!DOCTYPE job [<!ENTITY l0 "ha">' + LAUGHS + b"]>",
        b'<!DOCTYPE job [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        b'<!DOCTYPE job SYSTEM "http://example.org/evil.dtd">',
        b'<!DOCTYPE job [<!ATTLIST job a CDATA "x">]>',
        b"<!-- a comment -->",
        b"<?php x ?>",
        b"<job/>",
        b"text",
    ],
)
def test_what_torque_never_writes_before_a_job(head: bytes) -> None:
    content = xml(ON_MOM)
    assert parse(content.replace(HEAD, HEAD + head)) is None


def test_an_entity_is_not_expanded() -> None:
    content = xml(with_values(ON_SERVER, Job_Name=b"x")).replace(b"alice</euser>", b"&l9;</euser>")
    content = content.replace(HEAD, HEAD + b'<!DOCTYPE job [<!ENTITY l0 "ha">' + LAUGHS + b"]>")
    assert parse(content) is None


@pytest.mark.parametrize(
    "tag", ["jobid", "fileprefix", "record_type", "execution_uid", "execution_gid", "euser"]
)
@pytest.mark.parametrize("place", ["</job>", "<job>", "</attributes>", "<attributes>", "</Resource_List>"])
def test_a_second_element_of_a_believed_name(tag: str, place: str) -> None:
    extra, end = f"<{tag}>2102</{tag}>".encode(), place.encode()
    content = xml(ON_MOM)
    assert content.count(end) == 1
    extra = extra + end if place.startswith("</") else end + extra
    assert parse(content.replace(end, extra)) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<job>", b"<jobs>"),
        (b"<jobid>12.server</jobid>", b""),
        (b"<fileprefix>12.server</fileprefix>", b""),
        (b"<jobid>12.server</jobid>", b"<jobid></jobid>"),
        (b"<jobid>12.server</jobid>", b"<jobid><b/>12.server</jobid>"),
        (b"<jobid>12.server</jobid>", b"<jobid>12.\xc3\xa9</jobid>"),
        (b"<jobid>12", b"<jobid>" + b"1" * 3000),
        (b"<execution_uid>2101", b"<execution_uid>-2101"),
        (b"<execution_uid>2101", b"<execution_uid>0x835"),
        (b"<execution_uid>2101", b"<execution_uid>"),
        (b"<execution_uid>2101", b"<execution_uid>99999999999"),
        (b"</job>", b"</job><job></job>"),
        (b"</job>", b""),
        (b"<attributes>", b"<attributes>" + b"<a>" * 100 + b"</a>" * 100),
        (b"<attributes>", b"<attributes></attributes><attributes>"),
    ],
)
def test_a_file_that_is_not_a_job(old: bytes, new: bytes) -> None:
    content = xml(ON_MOM)
    assert content.count(old) == 1
    assert parse(content.replace(old, new)) is None


def test_without_a_record_type_the_uid_is_not_believed() -> None:
    assert parse(xml(ON_MOM).replace(b"<record_type>3</record_type>", b"")) == SERVER_RECORD


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 6, 0, 6),
        (88, 6, 0, 6),
        (99, 6, 0, 6),
        (10**6, 6, 0, 6),
        (100, -6, 6, 12),
        (100, 6, 0, 2**31 - 1),
        (-1, 6, 0, 6),
    ],
)
def test_an_attribute_with_wrong_sizes(sizes: tuple[int, int, int, int]) -> None:
    entry = jobfiles.encoded("euser", "", b"alice")
    content = binary(ON_MOM)
    assert content.count(entry) == 1
    assert parse(content.replace(entry, entry[:64] + struct.pack("<iiii", *sizes) + entry[80:])) is None


@pytest.mark.parametrize("number", [-1, 0x00020303, 0x00020299, 10, 0x7FFFFFFF])
def test_an_unknown_version(number: int) -> None:
    assert parse(struct.pack("<i", number) + binary(ON_MOM)[4:]) is None


def test_two_execution_users() -> None:
    job = Job(attributes=(*ON_MOM.attributes, ("euser", "", b"victim")))
    assert parse(binary(job)) is None
    assert parse(xml(job)) is None


@every_format
def test_a_file_that_is_cut_off(write: Writer) -> None:
    content = write(ON_MOM).rstrip()
    assert parse(content) == MOM_RECORD
    assert [size for size in range(len(content)) if parse(content[:size]) is not None] == []


@given(st.binary(max_size=4096))
@example(b"")
@example(b"<")
@example(b"\0" * 5000)
@example(b"\xff" * 5000)
@example(b"\xef\xbb\xbf<job/>")
@example("<job/>".encode("utf-16"))
def test_garbage_is_nothing(content: bytes) -> None:
    assert parse(content) is None


@given(
    st.sampled_from(sorted(WRITERS)),
    st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 3), st.binary(max_size=8)), min_size=1, max_size=5
    ),
)
def test_damage_is_never_an_exception(version: str, damages: list[tuple[int, int, bytes]]) -> None:
    content = WRITERS[version](ON_MOM)
    for at, length, new in damages:
        content = content[:at] + new + content[at + length :]
    record = parse(content)
    assert record is None or isinstance(record, JobRecord)


# --- users who write into them -----------------------------------------------------------------------------------------

POSES = [
    b"<euser>victim</euser>",
    b"x</Job_Name><euser>victim</euser><Job_Name>",
    b"</Job_Name></attributes><execution_uid>2102</execution_uid><attributes><Job_Name>",
    b"&lt;/Job_Name&gt;&lt;euser&gt;victim&lt;/euser&gt;",
    b"&#60;euser&#62;victim&#60;/euser&#62;",
    b"]]><euser>victim</euser><![CDATA[",
    b"--><euser>victim</euser><!--",
    b"alice\0euser\0victim",
    jobfiles.encoded("euser", "", b"victim"),
    b"victim@host\nJob_Owner: victim@host\neuser=victim",
]
USER_SET = ["Job_Name", "Variable_List", "Account_Name", "User_List", "submit_args", "Checkpoint", "Comment"]


@every_format
@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("attribute", USER_SET)
def test_a_value_that_poses_as_the_owner(write: Writer, pose: bytes, attribute: str) -> None:
    assert parse(write(with_values(ON_MOM, **{attribute: pose}))) == MOM_RECORD
    assert parse(write(with_values(ON_SERVER, **{attribute: pose}))) == SERVER_RECORD


@given(st.sampled_from(sorted(WRITERS)), st.binary(max_size=200), st.binary(max_size=200))
def test_no_value_changes_the_owner(version: str, name: bytes, environment: bytes) -> None:
    job = with_values(ON_SERVER, Job_Name=name, Variable_List=environment)
    assert parse(WRITERS[version](job)) == SERVER_RECORD


FORGED = b"<euser>victim</euser>"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"x</Job_Name>" + FORGED + b"<Job_Name>x", b""),
        (b"x</Job_Name>" + FORGED + b"<Job_Name><!--x", b"--></hashname></Job_Name><hashname>"),
        (b"x</Job_Name>" + FORGED + b"<Job_Name><![CDATA[x", b"]]></Job_Name><hashname>"),
        (b"x</Job_Name>" + FORGED + b"<Job_Name><?x x", b"?></Job_Name><hashname>"),
        (b"x</Job_Name>" + FORGED + b"<z><Job_Name>x", b"</hashname></z><hashname>x"),
        (b"x</Job_Name>" + FORGED + b'<z a="', b'"/><hashname>x'),
        (
            b"x</Job_Name>" + FORGED + b"</attributes><z><Job_Name>x",
            b"</hashname></z><attributes><hashname>x",
        ),
        (b"x</Job_Name>" + FORGED + b"</attributes></job>", b""),
        (b"x</Job_Name>" + FORGED + b"</attributes></job>\0", b""),
        (b"x</Job_Name></attributes><execution_uid>2102</execution_uid><attributes><Job_Name>x", b""),
    ],
)
@pytest.mark.parametrize("job", [ON_MOM, ON_SERVER])
def test_even_unescaped_nothing_can_be_forged(before: bytes, after: bytes, job: Job) -> None:
    """Were a value ever written as it is, around the real owner, the file would say nothing rather than the wrong thing."""
    content = xml(with_values(job, Job_Name=before, hashname=after), raw=True)
    assert parse(content) is None


@given(
    st.lists(
        st.sampled_from(
            [*POSES, FORGED, b"<", b">", b"/", b"<!--", b"-->", b"<a>", b"</a>", b"</Job_Name>", b"]]>"]
        )
    )
)
def test_unescaped_the_owner_is_right_or_unknown(pieces: list[bytes]) -> None:
    for at in range(len(pieces) + 1):
        parts = {"Job_Name": b"".join(pieces[:at]), "hashname": b"".join(pieces[at:])}
        for job, right in ((ON_MOM, MOM_RECORD), (ON_SERVER, SERVER_RECORD)):
            assert parse(xml(with_values(job, **parts), raw=True)) in {None, right}


# --- files and directories ---------------------------------------------------------------------------------------------


class Names:
    def __init__(self) -> None:
        self.asked: list[int | str] = []

    def by_uid(self, uid: int) -> Account | None:
        self.asked.append(uid)
        return Account("alice", Uid(2101), Gid(2100)) if uid == 2101 else None

    def by_name(self, name: str) -> Account | None:
        self.asked.append(name)
        known = {"alice": 2101, "root": 0, "toor": 0}
        return Account(name, Uid(known[name]), Gid(2100)) if name in known else None


class Host:
    """A PBS_HOME with a resolver over it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.names = Names()
        self.accounts = Accounts(10, names=self.names)
        self.resolver = TorqueJobs(os.fsencode(home), self.accounts, writer=os.getuid())

    def put(
        self, content: bytes, name: str = "12.server.JB", directory: str = "mom_priv/jobs", mode: int = 0o600
    ) -> Path:
        path = self.home / directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def owner_of(self, job: str = "12.server") -> Owner | None:
        return self.resolver.owner_of(JobId(job))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    yield host
    assert len(os.listdir("/proc/self/fd")) == before
    host.accounts.close()


@every_format
@pytest.mark.parametrize("directory", ["mom_priv/jobs", "server_priv/jobs"])
def test_the_owner_of_a_job(write: Writer, directory: str, host: Host) -> None:
    host.put(write(ON_MOM if directory.startswith("mom") else ON_SERVER), directory=directory)
    assert host.owner_of() == ALICE


def test_a_mom_s_number_needs_no_name_service(host: Host) -> None:
    host.put(xml(ON_MOM))
    assert host.owner_of() == ALICE
    assert host.names.asked == []


def test_the_mom_is_asked_first(host: Host) -> None:
    host.put(xml(dataclasses.replace(ON_MOM, uid=2103, gid=2104)))
    host.put(xml(ON_SERVER), directory="server_priv/jobs")
    assert host.owner_of() == Owner(Uid(2103), Gid(2104))


def test_a_mom_that_does_not_know_yet(host: Host) -> None:
    host.put(xml(without(dataclasses.replace(ON_MOM, uid=0, gid=0), "euser")))
    host.put(xml(ON_SERVER), directory="server_priv/jobs")
    assert host.owner_of() == ALICE


def test_group_0_is_not_taken(host: Host) -> None:
    host.put(xml(dataclasses.replace(ON_MOM, gid=0)))
    assert host.owner_of() == ALICE


def test_no_group_at_all(host: Host) -> None:
    host.put(xml(dataclasses.replace(ON_MOM, uid=4242, gid=0)))
    assert host.owner_of() is None


@pytest.mark.parametrize(
    "euser", [b"root", b"toor", b"carol", b"", b"0", b"-alice", b"alice@host:x", b"al ice"]
)
def test_root_and_nobody_known(euser: bytes, host: Host) -> None:
    """Not root by another name either; and Job_Owner is not fallen back to."""
    host.put(xml(with_values(ON_SERVER, euser=euser, Job_Owner=b"alice@login")), directory="server_priv/jobs")
    assert host.owner_of() is None


def test_root_s_own_job(host: Host) -> None:
    host.put(xml(with_values(dataclasses.replace(ON_MOM, uid=0, gid=0), euser=b"root")))
    assert host.owner_of() is None


def test_uid_minus_1(host: Host) -> None:
    host.put(xml(dataclasses.replace(ON_MOM, uid=2**32 - 1)))
    assert host.owner_of() is None


def test_nothing_there(host: Host) -> None:
    assert host.owner_of() is None
    (host.home / "mom_priv").write_bytes(b"")
    assert host.owner_of() is None


@pytest.mark.parametrize("job", ["13.server", "1.server", "12.serve", "12.server2", "12"])
def test_another_job(job: str, host: Host) -> None:
    host.put(xml(ON_MOM))
    assert host.owner_of(job) is None


@every_format
@pytest.mark.parametrize(
    ("job_id", "prefix"),
    [
        ("13.server", "13.server"),
        ("13.server", "12.server"),
        ("12.server", "13.server"),
        ("12.other", "12.other"),
    ],
)
def test_a_file_of_another_job(write: Writer, job_id: str, prefix: str, host: Host) -> None:
    prefix = prefix[:11]
    host.put(write(dataclasses.replace(ON_MOM, job_id=job_id, file_prefix=prefix)))
    assert host.owner_of() is None


@pytest.mark.parametrize(
    "job", ["../12.server", "/etc/passwd", "12/../12.server", "", "-12", "x", "12\0", "12..server"]
)
def test_what_is_not_a_job_opens_nothing(job: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("opened"))
    assert host.owner_of(job) is None


ARRAY = Job(job_id="12[3].server", file_prefix="12-3.server")


@pytest.mark.parametrize("asked", ["12[3].server", "12-3.server"])
def test_a_sub_job_of_an_array(asked: str, host: Host) -> None:
    host.put(xml(ARRAY), "12-3.server.JB")
    assert host.owner_of(asked) == ALICE


def test_a_sub_job_of_2_4(host: Host) -> None:
    host.put(binary(dataclasses.replace(ARRAY, job_id="12-3.server"), "2.4"), "12-3.server.JB")
    assert host.owner_of("12-3.server") == ALICE


@pytest.mark.parametrize("length", [61, 11])
def test_a_long_job_id(length: int, host: Host) -> None:
    """The file, and the set, are named after the first characters; another job with the same ones is not taken for it."""
    job_id = "1234567.server." + "sub." * 12 + "example.org"
    prefix = job_id[:length]
    version = "2.5-4" if length == 61 else "2.2"
    host.put(binary(Job(job_id=job_id, file_prefix=prefix), version), f"{prefix}.JB")
    assert host.owner_of(job_id) == ALICE
    assert host.owner_of(prefix) == ALICE
    assert host.owner_of(job_id + ".other") is None


def test_jobs_in_subdirectories(host: Host) -> None:
    host.put(xml(ON_SERVER), directory="server_priv/jobs/2")
    assert host.owner_of() == ALICE
    host.put(xml(ARRAY), "12-3.server.JB", directory="server_priv/jobs/2")
    assert host.owner_of("12[3].server") == ALICE


def test_a_file_that_is_being_replaced(host: Host) -> None:
    """job_save(): the new content is whole in .JC before .JB is unlinked, and then linked to its name."""
    path = host.put(xml(ON_MOM), "12.server.JC")
    assert host.owner_of() == ALICE
    path.with_suffix(".JB").write_bytes(b"")
    assert host.owner_of() == ALICE


def test_at_most_a_few_names_are_opened(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        host.put(xml(ON_MOM), f"{number}.x.JB")
    opened: list[str] = []
    real = os.open

    def counting(path: str, *args: object, **kwargs: object) -> int:
        opened.append(path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(os, "open", counting)
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("scanned"))
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("scanned"))
    assert host.owner_of() is None
    assert len(opened) <= 8


# --- files that the batch system did not put there -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o622])
def test_a_file_that_others_may_write(mode: int, host: Host) -> None:
    host.put(xml(ON_MOM), mode=mode)
    assert host.owner_of() is None


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o400])
def test_a_file_that_others_may_read(mode: int, host: Host) -> None:
    host.put(xml(ON_MOM), mode=mode)
    assert host.owner_of() == ALICE


@pytest.mark.parametrize("mode", [0o1777, 0o770, 0o757])
def test_a_directory_that_others_may_write(mode: int, host: Host) -> None:
    host.put(xml(ON_MOM)).parent.chmod(mode)
    assert host.owner_of() is None


def test_files_of_somebody_else(host: Host) -> None:
    host.put(xml(ON_MOM))
    host.resolver = TorqueJobs(str(host.home), host.accounts, writer=os.getuid() + 1)
    assert host.owner_of() is None


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else(host: Host) -> None:
    os.chown(host.put(xml(ON_MOM)), 2101, 0)
    assert host.owner_of() is None


def test_a_symbolic_link(host: Host) -> None:
    path = host.put(xml(ON_MOM), "other")
    path.with_name("12.server.JB").symlink_to(path)
    assert host.owner_of() is None


def test_a_subdirectory_that_is_a_link(host: Host) -> None:
    path = host.put(xml(ON_MOM), directory="elsewhere")
    (host.home / "mom_priv/jobs").mkdir(parents=True)
    (host.home / "mom_priv/jobs/2").symlink_to(path.parent)
    assert host.owner_of() is None


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device"])
def test_not_a_file(kind: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host.put(b"")
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    assert host.owner_of() is None


def test_a_file_that_is_too_large(host: Host) -> None:
    path = host.put(xml(ON_MOM))
    with path.open("ab") as file:
        file.write(b" " * (module.MAX_FILE_BYTES - path.stat().st_size))
    assert host.owner_of() == ALICE
    with path.open("ab") as file:
        file.write(b" ")
    assert host.owner_of() is None


def test_a_huge_sparse_file_is_not_read(host: Host) -> None:
    os.truncate(host.put(xml(ON_MOM)), 1 << 40)
    assert host.owner_of() is None


def test_a_file_that_is_not_whole_yet(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.put(xml(ON_MOM)[:500])
    assert host.owner_of() is None
    (record,) = caplog.records
    assert "12.server" in record.getMessage()


def test_a_bad_file_of_the_mom_does_not_hide_the_server_s(host: Host) -> None:
    host.put(b"garbage")
    host.put(xml(ON_SERVER), directory="server_priv/jobs")
    assert host.owner_of() == ALICE


def test_an_error_while_reading(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.put(xml(ON_MOM))

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    assert host.owner_of() is None


def test_the_types_of_records_are_torque_s() -> None:
    assert (NEW, EXEC, ROUTE, MOM) == (0, 1, 2, 3)
