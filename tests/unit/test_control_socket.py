"""How many may ask a mount at a time, and the names of control sockets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckfs.control.client import socket_name
from ckfs.control.server import Places, TooMany, listen

pytestmark = pytest.mark.root

DEVICE = "0:1"


def test_places_are_few_for_each_user_and_some_are_root_s() -> None:
    places = Places()
    for user in range(12):
        for _ in range(4):
            places.take(2101 + user)
        with pytest.raises(TooMany):
            places.take(2101 + user)
    with pytest.raises(TooMany):
        places.take(3000)
    for _ in range(16):
        places.take(0)
    with pytest.raises(TooMany):
        places.take(0)
    places.give_back(2101)
    places.take(3000)


# The socket's name


def test_a_name_that_another_has_by_now_is_left_to_him(tmp_path: Path) -> None:
    first = listen(DEVICE, str(tmp_path / "run"))
    second = listen(DEVICE, str(tmp_path / "run"))
    first.close()
    assert os.listdir(tmp_path / "run") == [socket_name(DEVICE)]
    second.close()
    assert os.listdir(tmp_path / "run") == []


def test_sockets_of_the_dead_are_cleared_away_and_others_stay(tmp_path: Path) -> None:
    dead, living = listen("0:7", str(tmp_path / "run")), listen("0:8", str(tmp_path / "run"))
    dead.listener.close()
    (tmp_path / "run/note").touch()
    one = listen(DEVICE, str(tmp_path / "run"))
    assert set(os.listdir(tmp_path / "run")) == {socket_name(DEVICE), socket_name("0:8"), "note"}
    one.close()
    living.close()
    os.close(dead.directory_fd)


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "run")
    os.chown(tmp_path / "run", 2101, 2101)
    with pytest.raises(PermissionError):
        listen(DEVICE, str(tmp_path / "run"))
    os.rename(tmp_path / "run", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "run")
    with pytest.raises(OSError, match=r"directory|links"):
        listen(DEVICE, str(tmp_path / "run"))


def test_others_than_root_cannot_put_a_socket_there(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "run")
    os.chmod(tmp_path / "run", 0o777)
    listen(DEVICE, str(tmp_path / "run")).close()
    assert os.stat(tmp_path / "run").st_mode & 0o7777 == 0o755
