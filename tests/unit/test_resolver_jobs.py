"""Job ids out of the names of sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.owners.jobs import MAX_JOB_ID, is_job_id, job_of


@pytest.mark.parametrize(
    ("name", "job"),
    [
        (b"12.server.CK", "12.server"),
        (b"12.server.CK.old", "12.server"),
        (b"12[3].server.CK", "12[3].server"),
        (b"12-3.server.example.org.CK", "12-3.server.example.org"),
        (b"12.CK", "12"),
        (b"0.s_1.CK", "0.s_1"),
        (b"12.server.CK.CK", "12.server.CK"),
        (b"9" * MAX_JOB_ID + b".CK", "9" * MAX_JOB_ID),
    ],
)
def test_a_job_s_set(name: bytes, job: str) -> None:
    assert job_of(name) == job


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".CK",
        b".CK.old",
        b"12.server",
        b"12.server.ck",
        b"12.server.CK\n",
        b"12.server\n.CK",
        b"server.12.CK",
        b"-12.server.CK",
        b"--version.CK",
        b"../12.CK",
        b"12/../../etc/passwd.CK",
        b"12..server.CK",
        b"12.server\0.CK",
        b"12.ser ver.CK",
        b"12.$(id).CK",
        b"12.server:15001.CK",
        "\u0661\u0662.server.CK".encode(),
        b"12.\xff\xfe.CK",
        b"9" * (MAX_JOB_ID + 1) + b".CK",
    ],
)
def test_not_a_job_s_set(name: bytes) -> None:
    assert job_of(name) is None


def test_other_suffixes() -> None:
    assert job_of(b"12.server.ckpt", (b".ckpt",)) == "12.server"
    assert job_of(b"12.server.CK", (b".ckpt",)) is None
    assert job_of(b"12.server", (b"",)) is None


@given(st.binary(max_size=300))
def test_whatever_comes_out_is_safe(stem: bytes) -> None:
    job = job_of(stem + b".CK")
    if job is not None:
        assert is_job_id(job)
        assert job[0] in "0123456789"
        assert "/" not in job
        assert "\0" not in job
        assert len(f"{job}.CK.old") <= 255


@given(st.text())
def test_any_text_may_be_asked(text: str) -> None:
    assert is_job_id(text) == (job_of(text.encode("utf-8", "surrogatepass") + b".CK") == text)
