"""What ``ckfs.toml`` says of a store: its format, its id, where in it lies what, and whether it is another store's.

Format 1 is a store; format 2 one whose layout is that of realms (:mod:`ckfs.store.realms`); format 3 a *further store*, in which
files of another store's sets lie, its home's: it has no names and no policy, and is never mounted by itself.
"""

from __future__ import annotations

import tomllib
import uuid
from dataclasses import dataclass

from ckfs import __version__
from ckfs.errors import StoreUnusable
from ckfs.names import shown
from ckfs.store import texts
from ckfs.store.realms import Arrangement

FORMAT = 3
FORMAT_FILE = b"ckfs.toml"
_FURTHER = 3
_FORMATS = {Arrangement.SHARED: 1, Arrangement.REALMS: 2}


@dataclass(frozen=True, slots=True)
class Form:
    """*home* is the id of the store to which a further store belongs; None of a store that is one by itself."""

    id: str
    arrangement: Arrangement = Arrangement.SHARED
    home: str | None = None


def text_of_new(arrangement: Arrangement, home: str | None = None) -> str:
    """What a new store says, with a new id."""
    text = "# A ckfs store. What lies here is described in docs/store.md.\n"
    number = _FORMATS[arrangement] if home is None else _FURTHER
    text += f'format = {number}\nid = "{uuid.uuid4()}"\n'
    if home is not None:
        text += f'home = "{home}"\n'
    elif arrangement is not Arrangement.SHARED:
        text += f'layout = "{arrangement.value}"\n'
    return text + f'made_by = "ckfs {__version__}"\n'


def read_form(root_fd: int, path: str) -> Form:
    """What the store at *path* says of itself. Raises StoreUnusable."""
    try:
        text = texts.read_text(root_fd, FORMAT_FILE, path)
    except FileNotFoundError:
        raise StoreUnusable(
            f"{shown(path)}: not a ckfs store: make one with 'ckfs init {shown(path)}'"
        ) from None
    damaged = StoreUnusable(f"{shown(path)}: its ckfs.toml is damaged: restore that file from a backup")
    try:
        table = tomllib.loads(text)
        version, identifier = table["format"], table["id"]
    except (tomllib.TOMLDecodeError, KeyError):
        raise damaged from None
    if not isinstance(version, int) or not isinstance(identifier, str):
        raise damaged
    if version > FORMAT:
        raise StoreUnusable(
            f"{shown(path)}: a store of format {version}, and ckfs {__version__} knows up to {FORMAT}: update ckfs"
        )
    layout, home = table.get("layout", Arrangement.SHARED.value), table.get("home")
    arrangement = next((known for known in Arrangement if known.value == layout), None)
    expected = _FURTHER if home is not None else _FORMATS.get(arrangement or Arrangement.SHARED)
    if arrangement is None or expected != version:
        raise StoreUnusable(
            f"{shown(path)}: its ckfs.toml says format {version} and layout {shown(str(layout))}, which ckfs {__version__}"
            " does not know together: update ckfs, or restore that file from a backup"
        )
    if home is not None and not isinstance(home, str):
        raise damaged
    return Form(identifier, arrangement, home)


def read_own_form(root_fd: int, path: str) -> Form:
    """As :func:`read_form`; StoreUnusable for a further store, which is no store by itself."""
    form = read_form(root_fd, path)
    if form.home is not None:
        raise StoreUnusable(
            f"{shown(path)}: a further store of the store {shown(form.home)}, which has its names and its policy: name that one"
        )
    return form
