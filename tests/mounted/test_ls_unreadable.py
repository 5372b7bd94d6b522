"""``ckfs ls`` where the store cannot read everything: the rest is shown, and what is missing is named."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from typing import Any

import pytest

from ckfs.cli import ls
from ckfs.cli.main import main
from ckfs.store import walks
from ckfs.store.door import Door
from ckfs.store.spots import Spot
from tests.support.mounting import Mount
from tests.support.users import ALICE, ROOT, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]


def make_sets(top: str) -> None:
    for name in ("one", "two", "three"):
        os.mkdir(f"{top}/{name}")
        with open(f"{top}/{name}/image", "wb") as image:
            image.write(b"image")


class FailingOs:
    """Module os, for ckfs ls alone, with one call that fails for what lies at *path*."""

    def __init__(self, call: str, path: str, number: int) -> None:
        self._call = call
        self._path = path
        self._number = number

    def __getattr__(self, name: str) -> Any:
        real: Callable[..., Any] = getattr(os, name)
        return self._failing(real) if name == self._call else real

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            if dir_fd is not None:
                kwargs["dir_fd"] = dir_fd
                path_of_it = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
            else:
                head, _, last = path.rpartition("/")
                path_of_it = os.path.join(os.path.realpath(head), last)
            if path_of_it == self._path:
                raise OSError(self._number, os.strerror(self._number))
            return real(path, *args, **kwargs)

        return call


def list_with(failing: FailingOs, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``ckfs ls``. For a forked child: the module is changed."""
    vars(ls)["os"] = failing
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["ls", *arguments])
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("call", "what", "still_shown"),
    [
        ("getxattr", "two/image", ["one/image", "three/image", "two/image"]),
        ("getxattr", "two", ["one/image", "three/image", "two/image"]),
        ("stat", "two/image", ["one/image", "three/image"]),
        ("stat", "two", ["one/image", "three/image"]),
        ("open", "two", ["one/image", "three/image"]),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_shown(
    mount: Mount, call: str, what: str, still_shown: list[str]
) -> None:
    as_user(ALICE, make_sets, str(mount.path))
    failing = FailingOs(call, f"{mount.path}/{what}", errno.EIO)
    status, out, err = as_user(ROOT, list_with, failing, str(mount.path))
    names = sorted(line.split()[-1] for line in out.splitlines()[1:])
    assert [name for name in names if "/" in name] == still_shown
    assert err == f"ckfs: {what}: cannot be read: Input/output error\n"
    assert status == 1


def test_a_store_that_is_out_of_reach_ends_it(mount: Mount) -> None:
    as_user(ALICE, make_sets, str(mount.path))
    failing = FailingOs("stat", f"{mount.path}/two", errno.ETIMEDOUT)
    status, _, err = as_user(ROOT, list_with, failing, str(mount.path))
    assert (status, err.count("\n")) == (3, 1)


def test_a_bare_store(mount: Mount) -> None:
    as_user(ALICE, make_sets, str(mount.path))
    mount.umount()
    status, out, err = as_user(ROOT, list_bare_with_unreadable, b"two", str(mount.store))
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["one", "one/image", "three", "three/image"]
    assert err == "ckfs: two: cannot be read: Input/output error\n"
    assert status == 1


def list_bare_with_unreadable(name: bytes, store: str) -> tuple[int, str, str]:
    """As :func:`list_with`, for a store whose set *name* cannot be listed."""
    real = walks.files

    def files(door: Door, spot: Spot) -> Any:
        if spot.components[-1] == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(door, spot)

    walks.files = files
    return list_with(FailingOs("none", "", 0), store)
