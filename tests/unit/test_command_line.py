"""What ``ckfs`` itself understands, before any command does its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckfs.cli.main import COMMANDS, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ckfs {command} [-h]")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_commands_has_every_command(command: str) -> None:
    assert f"`ckfs {command} " in PAGE.read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["--frobnicate", "ls"], "unrecognized arguments: --frobnicate"),
        (["ls", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["status"], "the following arguments are required: MOUNTPOINT (see 'ckfs status --help')"),
        (["trash"], "the following arguments are required: ACTION (see 'ckfs trash --help')"),
    ],
)
def test_what_is_not_understood_is_said_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ckfs: ")
    assert said in err
    assert err.count("\n") == 1


def test_quota_shows_unless_it_is_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quota", "alice", "--help"])
    assert capsys.readouterr().out.startswith("usage: ckfs quota show")
