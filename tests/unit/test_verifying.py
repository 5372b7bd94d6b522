"""Comparing what is read on a mount with a digest, where whoever may write the image does so meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import xxhash

from ckfs.cli import verify
from ckfs.cli.ls import Seen
from ckfs.cli.report import Report
from ckfs.store.rereading import Result

CONTENT = b"image" * 1000


class Growing(Report):
    """Somebody adds as much to the image as was just read of it."""

    def __init__(self, image: Path) -> None:
        super().__init__(as_json=True)
        self.image = image

    def progress(self, more_bytes: int) -> None:
        size_bytes = self.image.stat().st_size
        assert size_bytes < 10 * len(CONTENT), "it is read for ever"
        os.truncate(self.image, size_bytes + more_bytes)


def test_what_is_added_while_an_image_is_read_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    said = {"digest": f"xxh3-128:{xxhash.xxh3_128_hexdigest(CONTENT)}"}
    monkeypatch.setattr(verify, "_said", lambda _, attribute: said.get(attribute, ""))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        verifier = verify._Verifier(Growing(image), "/mnt", marks=False)
        assert verifier._compared(Seen(directory, "image", "", image.stat())) is Result.VERIFIED
    finally:
        os.close(directory)
