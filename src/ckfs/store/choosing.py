"""Which items of the trash somebody means: by their tokens, or by set, image, owner and time. Pure: it looks at nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckfs.errors import UsageError
from ckfs.names import NAME_MAX, SetName, shown
from ckfs.store.removed import Damaged, Item

Entry = Item | Damaged

_SHORTEST_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """Times in ns since the epoch: *since_ns* included, *before_ns* not. *image* is ``SET/PATH``, of a file or of a directory and
    all that was in it. None means any, and so do no *tokens*.

    A token may be the beginning of one, of at least four characters.
    """

    set_name: str | None = None
    uid: int | None = None
    since_ns: int | None = None
    before_ns: int | None = None
    tokens: tuple[str, ...] = ()
    image: str | None = None

    @property
    def is_any(self) -> bool:
        return self == Choice()

    def fits(self, entry: Entry) -> bool:
        return (
            self._fits_tokens(entry)
            and self._fits_time(entry.when_ns)
            and self._fits_set(entry)
            and self._fits_image(entry)
            and self._fits_owner(entry)
        )

    def _fits_tokens(self, entry: Entry) -> bool:
        return not self.tokens or any(_begins(entry, token) for token in self.tokens)

    def _fits_time(self, when_ns: int) -> bool:
        return (self.since_ns is None or when_ns >= self.since_ns) and (
            self.before_ns is None or when_ns < self.before_ns
        )

    def _fits_set(self, entry: Entry) -> bool:
        if self.set_name is None:
            return True
        if isinstance(entry, Damaged):
            return False
        # As it is, or as it is shown.
        return self.set_name in (os.fsdecode(entry.note.set_name), shown(entry.note.set_name))

    def _fits_image(self, entry: Entry) -> bool:
        if self.image is None:
            return True
        if isinstance(entry, Damaged):
            return False
        at = entry.note.set_name + b"/" + entry.note.path
        return any(
            (form + "/").startswith(self.image.rstrip("/") + "/") for form in (os.fsdecode(at), shown(at))
        )

    def _fits_owner(self, entry: Entry) -> bool:
        if self.uid is None:
            return True
        if isinstance(entry, Damaged):
            return entry.spot.identity.uid == self.uid
        return entry.note.owner is not None and entry.note.owner.uid == self.uid

    def of(self, fitting: Sequence[Entry]) -> list[Entry]:
        """The chosen ones of all that fit: each token means one. UsageError if it means none, or several."""
        return list(self._named(fitting)) if self.tokens else list(fitting)

    def _named(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        for token in dict.fromkeys(self.tokens):
            fitting = [entry for entry in entries if entry.token == token]
            fitting = fitting or [entry for entry in entries if _begins(entry, token)]
            if not fitting:
                raise UsageError(f"{shown(token)}: there is no such item in the trash: see 'ckfs trash ls'")
            if len(fitting) > 1:
                raise UsageError(f"{shown(token)}: {len(fitting)} items begin so: give more of it")
            yield fitting[0]


def _begins(entry: Entry, token: str) -> bool:
    return entry.token == token or (len(token) >= _SHORTEST_TOKEN and entry.token.startswith(token))


def check_restore(choice: Choice, to: str | None) -> SetName | None:
    """The name that *to* is. UsageError if it is none, or if *choice* is not one of what to restore."""
    if not choice.tokens and choice.set_name is None and choice.image is None:
        raise UsageError(
            "say what to restore: items, as 'ckfs trash ls' shows them, --set SET or --image SET/PATH"
        )
    name = None if to is None else _set_name(to)
    _check_one_way(choice)
    return name


def check_purge(choice: Choice, *, everything: bool) -> None:
    """UsageError unless it is said what to remove for good: *everything*, or by *choice*."""
    if everything == (not choice.is_any):
        raise UsageError("say what to remove for good: items, --set, --image, --owner or times; or --all")
    _check_one_way(choice)


def _check_one_way(choice: Choice) -> None:
    if choice.tokens and choice != Choice(tokens=choice.tokens):
        raise UsageError("give items, or say which by --set, --image, --owner and times; not both")


def _set_name(text: str) -> SetName:
    name = os.fsencode(text)
    if name in (b"", b".", b"..") or b"/" in name or len(name) > NAME_MAX:
        raise UsageError(
            f"{shown(text)}: not a set's name: give one as it is on the mount, without directories"
        )
    return SetName(name)
