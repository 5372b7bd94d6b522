"""What ``ckfs verify`` and ``ckfs scrub`` say: progress, a line for each image that is not as it should be, and counts."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from ckfs.errors import CkfsError
from ckfs.store.rereading import Result

_PROGRESS_EVERY_S = 0.2
_WIDTH = 78


@dataclass(frozen=True, slots=True)
class About:
    """An image, as a line and ``--json`` name it; everything shown. Times are ISO 8601. *item*: under which it lies in the
    trash."""

    set: str
    image: str
    owner: str
    uid: int | None
    written_by: str
    completed: str
    modified: str
    item: str = ""

    def __str__(self) -> str:
        name = f"{self.set}/{self.image}" if self.image else self.set
        where = f" (item {self.item} in the trash)" if self.item else ""
        return (
            f"{name}{where}, of {self.owner}, written by {self.written_by},"
            f" completed {self.completed}, modified {self.modified}"
        )


class Report:
    """A run of the command. Progress goes to a terminal on standard error, and nowhere else; the rest to standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self.counts: Counter[Result] = Counter()
        self.unreadable = 0
        self._as_json = as_json
        self._images: list[dict[str, object]] = []
        self._shows = sys.stderr is not None and sys.stderr.isatty()
        self._shown_at = 0.0
        self._bytes = 0
        self._now = ""

    @property
    def status(self) -> int:
        return CkfsError.exit_status if self.counts[Result.DAMAGED] or self.unreadable else 0

    def begins(self, name: str) -> None:
        self._now = name
        self._show()

    def progress(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self._show()

    def damaged(self, about: About, what: str) -> None:
        """*what* is known of the damage, and done about it."""
        self._say("damaged", about, what)

    def cannot_read(self, about: About | str, reason: str) -> None:
        """An image, or by its name what may hold some."""
        self.unreadable += 1
        self._say("unreadable", about, reason)

    def _say(self, result: str, about: About | str, what: str) -> None:
        self._clear()
        if not self._as_json:
            print(f"{result}: {about}: {what}", flush=True)
        elif isinstance(about, About):
            self._images.append({"result": result, **asdict(about), "what": what})
        else:
            self._images.append({"result": result, "name": about, "what": what})

    def _show(self) -> None:
        if self._shows and time.monotonic() > self._shown_at + _PROGRESS_EVERY_S:
            self._shown_at = time.monotonic()
            done = f"{self.counts.total()} images, {self._bytes / (1 << 30):.1f} GiB read; now {self._now}"
            print(f"\r{done[:_WIDTH]:<{_WIDTH}}", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shows and self._shown_at:
            print(f"\r{'':<{_WIDTH}}\r", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clear()
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            return
        if self._as_json:
            print(json.dumps({**self._figures(), "images": self._images}, indent=1))
            return
        interrupted = "" if kind is None else "interrupted; so far: "
        print(interrupted + ", ".join(f"{count} {what}" for what, count in self._figures().items()))

    def _figures(self) -> dict[str, int]:
        """What is not complete is no image that could be verified; what is of unknown state is counted if there is any."""
        figures = {
            "verified": self.counts[Result.VERIFIED],
            "damaged": self.counts[Result.DAMAGED],
            "without digest": self.counts[Result.NO_DIGEST],
            "unreadable": self.unreadable,
        }
        for rare in (Result.MADE, Result.UNKNOWN):
            if self.counts[rare] or self._as_json:
                figures[rare.value] = self.counts[rare]
        return {key.replace(" ", "_"): n for key, n in figures.items()} if self._as_json else figures
