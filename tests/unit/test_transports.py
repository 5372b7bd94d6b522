"""Which transport is tried, in which order, and what becomes of a mount that the first cannot serve."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckfs.daemon import mounting, serve
from ckfs.daemon.options import MountOptions
from ckfs.errors import MountFailed
from ckfs.fs.filesystem import Filesystem
from ckfs.transport import kernel
from ckfs.transport.choosing import Wish, transports
from ckfs.transport.transport import Transport

FS = cast("Filesystem", SimpleNamespace(core=SimpleNamespace(store=SimpleNamespace(path="/store")), passing=SimpleNamespace()))  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        (Wish.AUTO, ["kernel", "pyfuse3"]),
        (Wish.KERNEL, ["kernel"]),
        (Wish.PYFUSE3, ["pyfuse3"]),
    ],
    ids=lambda value: getattr(value, "value", None),
)
def test_the_kernel_transport_is_tried_first_unless_another_is_wanted(wish: Wish, names: list[str]) -> None:
    assert [one.name for one in transports(wish, FS, passes=True, request_timeout_s=0)] == names


class Stub(Transport):
    def __init__(self, name: str, why_not: str = "") -> None:
        super().__init__()
        self.name = name
        self._why_not = why_not

    def begin(self, fd: int) -> None:
        if self._why_not:
            raise MountFailed(self._why_not)

    @property
    def details(self) -> str:
        return "as it likes"

    async def run(self) -> None: ...

    def end(self) -> None: ...

    def close(self) -> None: ...


class Mounts:
    """Stands for the mount point, without a kernel."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def mount(self, store: str, path: str, *, read_only: bool) -> Any:
        self.did.append("mount")
        return SimpleNamespace(fd=7, unmount=lambda: self.did.append("unmount"))


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> Mounts:
    mounts = Mounts()
    monkeypatch.setattr(mounting, "mount", mounts.mount)
    return mounts


def test_what_the_first_cannot_serve_is_mounted_anew_for_the_second(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stubs = [Stub("kernel", "the kernel speaks FUSE 7.30"), Stub("pyfuse3")]
    monkeypatch.setattr(serve, "transports", lambda *_, **__: stubs)
    with caplog.at_level(logging.INFO):
        _, chosen = serve.mounted_by(FS, "/mnt", MountOptions())
    assert chosen.name == "pyfuse3"
    assert mounts.did == ["mount", "unmount", "mount"]
    assert [record.getMessage() for record in caplog.records] == [
        "transport kernel: the kernel speaks FUSE 7.30",
        "transport pyfuse3: as it likes",
    ]


def test_if_none_can_serve_it_nothing_is_left(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "transports", lambda *_, **__: [Stub("kernel", "the kernel speaks FUSE 7.30")])
    with pytest.raises(MountFailed, match=r"^/mnt: the kernel speaks FUSE 7\.30$"):
        serve.mounted_by(FS, "/mnt", MountOptions())
    assert mounts.did == ["mount", "unmount"]


@pytest.mark.parametrize(
    ("granted", "largest"),
    [
        ("256\n", 1 << 20),
        ("512\n", 2 << 20),
        ("65535\n", 4 << 20),
        ("no number\n", 1 << 20),
        (None, 1 << 20),
    ],
)
def test_requests_are_as_large_as_the_kernel_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: str | None, largest: int
) -> None:
    setting = tmp_path / "max_pages_limit"
    if granted is not None:
        setting.write_text(granted)
    monkeypatch.setattr(kernel, "MOST_PAGES", str(setting))
    assert kernel.largest_request() == largest
