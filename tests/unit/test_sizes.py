"""Sizes, numbers of files and spans of time: what is understood, what is refused in one line, and how they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.errors import UsageError
from ckfs.policy.sizes import LARGEST, count_of, shown_size, shown_span, size_of, span_of

K, M, G, T, P = (1024**power for power in range(1, 6))

SIZES = [
    ("0", 0),
    ("1", 1),
    ("4096", 4096),
    ("512B", 512),
    ("1K", K),
    ("1k", K),
    ("1KiB", K),
    ("500M", 500 * M),
    ("400G", 400 * G),
    ("400g", 400 * G),
    ("20GiB", 20 * G),
    ("20 GiB", 20 * G),
    ("1.5T", 3 * T // 2),
    ("0.1K", 102),
    ("0.000001K", 0),
    ("1.25P", 5 * P // 4),
    ("4E", LARGEST),
    ("00400G", 400 * G),
    (str(LARGEST), LARGEST),
]


@pytest.mark.parametrize(("text", "expected"), SIZES)
def test_a_size(text: str, expected: int) -> None:
    assert size_of(text) == expected


NO_SIZES = [
    "",
    " ",
    "-1",
    "+1",
    "-1G",
    "1e400",
    "1e3",
    "1E400",
    "inf",
    "nan",
    "NaN",
    "0x10",
    "1_000",
    "1,5T",
    "1.5",
    "1.5B",
    ".5G",
    "5.G",
    "1.2.3G",
    "G",
    "1GG",
    "1Gi",
    "1 G B",
    "1\tG",
    "1  G",
    "1G\n",
    "1G\x00",
    " 1G",
    "1G ",
    "٣",
    "٣G",
    "1\u00a0G",
    "1\u212a",  # the Kelvin sign, which case folding takes for a K
    "½G",
    "²",
    "9" * 30,
    "9" * 19,
    "1" * 100_000,
    "0." + "1" * 100_000 + "G",
    "5E",
    f"{LARGEST + 1}",
    "1Z",
    "10%",
    "none",
    "\x1b[31m1G",
    "\udcff",
]


@pytest.mark.parametrize("text", NO_SIZES, ids=lambda text: ascii(text)[:30])
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        size_of(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["20GB", "1.5tb", "3 kB"])
def test_units_that_mean_two_things_are_refused_with_both(text: str) -> None:
    with pytest.raises(UsageError, match="powers of 1000 or of 1024"):
        size_of(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("10k", 10_000),
        ("10K", 10_000),
        ("2m", 2_000_000),
        ("1g", 1_000_000_000),
    ],
)
def test_a_number_of_files(text: str, expected: int) -> None:
    assert count_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5k", "1e3", "٣", "9" * 30, "9" * 19, "1T", "k", "1 k", "1\n", "1\u212a", "1_0"]
)
def test_what_is_no_number_of_files_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        count_of(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0s", 0),
        ("90s", 90),
        ("30m", 1800),
        ("12h", 43_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1.5h", 5400),
    ],
)
def test_a_span_of_time(text: str, expected: int) -> None:
    assert span_of(text) == expected


@pytest.mark.parametrize("text", ["", "7", "-7d", "7D", "7days", "1e9d", "٣d", "9" * 30 + "d", "7d\n", "inf"])
def test_what_is_no_span_of_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        span_of(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (K, "1K"),
        (K + 1, "1K"),
        (1536, "1.5K"),
        (M - 1, "1M"),
        (G - 1, "1G"),
        (1023 * M, "1023M"),
        (400 * G, "400G"),
        (3 * T // 2, "1.5T"),
        (123_456_789, "117.74M"),
        (LARGEST, "4E"),
        (1 << 70, "1024E"),
        (-3 * G, "-3G"),
    ],
)
def test_a_size_as_it_is_shown(size: int, expected: str) -> None:
    assert shown_size(size) == expected


@given(st.integers(0, LARGEST))
def test_what_is_shown_is_a_size_that_is_right_to_half_a_hundredth_of_its_unit(size: int) -> None:
    text = shown_size(size)
    unit = size_of("1" + text[-1]) if text[-1].isalpha() else 1
    if size < LARGEST - unit:
        assert abs(size_of(text) - size) <= unit // 200 + 1


@given(st.integers(1, 1023), st.sampled_from("KMGTP"))
def test_what_was_written_in_whole_units_is_shown_so_again(number: int, unit: str) -> None:
    assert shown_size(size_of(f"{number}{unit}")) == f"{number}{unit}"


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (0.0, "0s"),
        (0.9, "0s"),
        (59.0, "59s"),
        (60.0, "1m"),
        (3661.0, "1h1m"),
        (604_800.0, "7d"),
        (604_799.0, "6d23h"),
        (86_401.0, "1d"),
    ],
)
def test_a_span_of_time_as_it_is_shown(span: float, expected: str) -> None:
    assert shown_span(span) == expected
