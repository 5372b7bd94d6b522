"""The two formats in which a machine names its apt sources, and which of them is the Debian archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckfs.demo.apt import AptSource, archives_of, parse_deb822, parse_one_line, sources_of_machine

MAIN = "http://mirror.example/debian"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"deb {MAIN} bookworm main", AptSource((MAIN,), ("bookworm",), ("main",))),
        (
            f"  deb\t{MAIN}/  bookworm   main contrib # the mirror next door",
            AptSource((f"{MAIN}/",), ("bookworm",), ("main", "contrib")),
        ),
        (
            f"deb [ arch=amd64,arm64 signed-by=/usr/share/keyrings/x.gpg ] {MAIN} bookworm main",
            AptSource((MAIN,), ("bookworm",), ("main",)),
        ),
        (f"deb [trusted=yes] {MAIN} flat/", AptSource((MAIN,), ("flat/",), ())),
        (
            "deb mirror+file:/etc/apt/mirrors/debian.list bookworm main",
            AptSource(("mirror+file:/etc/apt/mirrors/debian.list",), ("bookworm",), ("main",)),
        ),
    ],
)
def test_one_line_entry(line: str, expected: AptSource) -> None:
    assert parse_one_line(line) == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "# a comment",
        f"# deb {MAIN} bookworm main",
        f"deb-src {MAIN} bookworm main",
        f"debris {MAIN} bookworm main",
        "deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64 NETINST]/ bookworm main",
        f"deb {MAIN}",
        "deb [arch=amd64",
    ],
)
def test_one_line_without_an_entry(line: str) -> None:
    assert parse_one_line(line) == []


def test_one_line_file_keeps_the_order() -> None:
    text = f"deb {MAIN} bookworm main\ndeb-src {MAIN} bookworm main\n\ndeb {MAIN}-security bookworm-security main\n"
    assert [source.suites for source in parse_one_line(text)] == [("bookworm",), ("bookworm-security",)]


def test_deb822_stanzas() -> None:
    text = f"""\
# the installer wrote this
Types: deb deb-src
URIs: {MAIN} http://second.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg


Types: deb
URIs: {MAIN}-security
Suites: bookworm-security
Components: main
"""
    assert parse_deb822(text) == [
        AptSource(
            (MAIN, "http://second.example/debian"),
            ("bookworm", "bookworm-updates"),
            ("main", "non-free-firmware"),
        ),
        AptSource((f"{MAIN}-security",), ("bookworm-security",), ("main",)),
    ]


def test_deb822_continued_lines_any_case_and_an_embedded_key() -> None:
    text = f"""\
TYPES: deb
uris:
 {MAIN}
# a comment does not end the field, nor the stanza
\thttp://second.example/debian
Suites: bookworm
components:main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 Types: deb-src
 -----END PGP PUBLIC KEY BLOCK-----
"""
    assert parse_deb822(text) == [AptSource((MAIN, "http://second.example/debian"), ("bookworm",), ("main",))]


@pytest.mark.parametrize("word", ["no", "No", "false", "off", "disable", "without"])
def test_deb822_disabled(word: str) -> None:
    assert (
        parse_deb822(f"Types: deb\nURIs: {MAIN}\nSuites: bookworm\nComponents: main\nEnabled: {word}\n") == []
    )


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a comment\n", "Types: deb-src\nURIs: x\n", " astray\nno field\n"]
)
def test_deb822_without_an_entry(text: str) -> None:
    assert parse_deb822(text) == []


def source(uri: str, suites: str = "bookworm", components: str = "main") -> AptSource:
    return AptSource((uri,), tuple(suites.split()), tuple(components.split()))


def test_the_archive_is_the_entry_of_the_release_itself() -> None:
    sources = [
        source(f"{MAIN}-security", "bookworm-security"),
        source("http://other.example/tools", "stable-tools"),
        source("http://other.example/debian-like", "bookworm", "contrib"),
        source(MAIN, "bookworm bookworm-updates"),
    ]
    assert archives_of(sources, "bookworm") == [MAIN]


def test_the_archive_that_calls_itself_debian_comes_first_and_once() -> None:
    vendor = source("http://vendor.example/tool")
    assert archives_of([vendor, source(MAIN), source(MAIN)], "bookworm") == [
        MAIN,
        "http://vendor.example/tool",
    ]


def test_a_release_may_be_named_by_its_alias() -> None:
    assert archives_of([source(MAIN, "stable")], "bookworm") == [MAIN]


def test_a_local_copy_of_one_release_is_no_archive() -> None:
    assert archives_of([source("file:///srv/debian"), source("cdrom:[x]/")], "bookworm") == []


def test_another_distribution_has_no_archive() -> None:
    assert archives_of([source("http://mirror.example/ubuntu", "noble", "main universe")], "") == []


def test_both_formats_of_one_machine(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(f"deb {MAIN}/1 bookworm main\n")
    (parts / "two.list").write_text(f"deb {MAIN}/2 bookworm main\n")
    (parts / "three.sources").write_text(f"Types: deb\nURIs: {MAIN}/3\nSuites: bookworm\nComponents: main\n")
    (parts / "four.sources.disabled").write_text("Types: deb\nURIs: x\nSuites: bookworm\nComponents: main\n")
    uris = [uri for entry in sources_of_machine(str(tmp_path)) for uri in entry.uris]
    assert uris == [f"{MAIN}/1", f"{MAIN}/2", f"{MAIN}/3"]


def test_a_machine_without_apt(tmp_path: Path) -> None:
    assert sources_of_machine(str(tmp_path / "missing")) == []
