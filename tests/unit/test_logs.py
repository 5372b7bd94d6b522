"""A log that users cannot fill."""

from __future__ import annotations

import logging

import pytest

from ckfs.daemon.logs import Bounded


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bounded(clock: Clock) -> Bounded:
    return Bounded(lines=3, per_s=60.0, clock=clock)


def logged(bounded: Bounded, template: str, *args: object, **extra: object) -> str | None:
    record = logging.LogRecord("ckfs", logging.WARNING, "", 0, template, args, None)
    record.__dict__.update(extra)
    return record.getMessage() if bounded.filter(record) else None


def test_what_comes_too_often_is_counted(bounded: Bounded, clock: Clock) -> None:
    lines = [logged(bounded, "image %s is partial", number) for number in range(10)]
    assert lines[:2] == ["image 0 is partial", "image 1 is partial"]
    assert lines[2] == "image 2 is partial (more like this are left out for up to 60 s)"
    assert lines[3:] == [None] * 7
    clock.now = 60.0
    assert (
        logged(bounded, "image %s is partial", 10) == "image 10 is partial (7 more like this were left out)"
    )
    assert logged(bounded, "image %s is partial", 11) == "image 11 is partial"


def test_each_kind_is_counted_for_itself(bounded: Bounded) -> None:
    for number in range(10):
        logged(bounded, "image %s is partial", number)
    assert logged(bounded, "store down") == "store down"


def test_what_is_for_the_record_is_never_left_out(bounded: Bounded) -> None:
    assert {logged(bounded, "set given", always=True) for _ in range(10)} == {"set given"}
