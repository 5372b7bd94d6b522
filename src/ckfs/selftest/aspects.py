"""What one mount changes and another must see by its next call, each in a directory of its own.

The other has looked before (*prime*), so that it has something to keep that is out of date.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ckfs.policy.advice import Topic

_SIZE = 8192
_OLD, _NEW = b"o" * _SIZE, b"n" * _SIZE
_ATTRIBUTE = "user.ckfs.selftest"


@dataclass(slots=True)
class Watched:
    """What the one that looks keeps between its looks."""

    directory: str
    held: list[int] = field(default_factory=list)

    def close(self) -> None:
        while self.held:
            os.close(self.held.pop())


def _path(directory: str, name: str = "f") -> str:
    return os.path.join(directory, name)


def _put(path: str, content: bytes, flags: int = os.O_CREAT | os.O_EXCL) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return os.pread(fd, 2 * _SIZE, 0)
    finally:
        os.close(fd)


def _is_there(directory: str, name: str = "f") -> bool:
    try:
        os.stat(_path(directory, name), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Aspect:
    """*prepare* and *change* are the one's that changes, with the directory; *prime* and *seen* the other's."""

    name: str
    what: str
    topic: Topic
    prepare: Callable[[str], object]
    prime: Callable[[Watched], object]
    change: Callable[[str], object]
    seen: Callable[[Watched], bool]


def _nothing(_: str) -> None: ...


def _two_files(directory: str) -> None:
    _put(_path(directory), _OLD)
    _put(_path(directory, "g"), _NEW)


def _with_attribute(directory: str) -> None:
    _put(_path(directory), _OLD)
    os.setxattr(_path(directory), _ATTRIBUTE, b"old")


def _hold(watched: Watched) -> None:
    fd = os.open(_path(watched.directory), os.O_RDONLY | os.O_NOFOLLOW)
    watched.held.append(fd)
    os.pread(fd, _SIZE, 0)


ASPECTS: tuple[Aspect, ...] = (
    Aspect(
        "new_name",
        "a new name, which was looked for in vain before",
        Topic.SEEN_NAMES,
        prepare=_nothing,
        prime=lambda watched: _is_there(watched.directory),
        change=lambda directory: _put(_path(directory), _NEW),
        seen=lambda watched: _is_there(watched.directory),
    ),
    Aspect(
        "listing",
        "a new name in a directory that was listed before",
        Topic.SEEN_NAMES,
        prepare=lambda directory: _put(_path(directory, "g"), _OLD),
        prime=lambda watched: os.listdir(watched.directory),
        change=lambda directory: _put(_path(directory), _NEW),
        seen=lambda watched: "f" in os.listdir(watched.directory),
    ),
    Aspect(
        "removed_name",
        "that a name is gone",
        Topic.SEEN_NAMES,
        prepare=lambda directory: _put(_path(directory), _OLD),
        prime=lambda watched: _read(_path(watched.directory)),
        change=lambda directory: os.unlink(_path(directory)),
        seen=lambda watched: not _is_there(watched.directory),
    ),
    Aspect(
        "replaced_name",
        "that a file was renamed over another",
        Topic.SEEN_NAMES,
        prepare=_two_files,
        prime=lambda watched: _read(_path(watched.directory)),
        change=lambda directory: os.rename(_path(directory, "g"), _path(directory)),
        seen=lambda watched: _read(_path(watched.directory)) == _NEW,
    ),
    Aspect(
        "size",
        "a file's new size",
        Topic.SEEN_NAMES,
        prepare=lambda directory: _put(_path(directory), _OLD),
        prime=lambda watched: os.stat(_path(watched.directory)),
        change=lambda directory: _put(_path(directory), _NEW, os.O_APPEND),
        seen=lambda watched: os.stat(_path(watched.directory)).st_size == 2 * _SIZE,
    ),
    Aspect(
        "mode",
        "a file's new mode",
        Topic.SEEN_NAMES,
        prepare=lambda directory: _put(_path(directory), _OLD),
        prime=lambda watched: os.stat(_path(watched.directory)),
        change=lambda directory: os.chmod(_path(directory), 0o600),
        seen=lambda watched: os.stat(_path(watched.directory)).st_mode & 0o777 == 0o600,
    ),
    Aspect(
        "attribute",
        "an extended attribute's new value",
        Topic.SEEN_NAMES,
        prepare=_with_attribute,
        prime=lambda watched: os.getxattr(_path(watched.directory), _ATTRIBUTE),
        change=lambda directory: os.setxattr(_path(directory), _ATTRIBUTE, b"new"),
        seen=lambda watched: os.getxattr(_path(watched.directory), _ATTRIBUTE) == b"new",
    ),
    Aspect(
        "data",
        "what was written over, by opening the file anew",
        Topic.SEEN_DATA,
        prepare=lambda directory: _put(_path(directory), _OLD),
        prime=lambda watched: _read(_path(watched.directory)),
        change=lambda directory: _put(_path(directory), _NEW, 0),
        seen=lambda watched: _read(_path(watched.directory)) == _NEW,
    ),
    Aspect(
        "open_data",
        "what was written over, in a file that is open",
        Topic.SEEN_DATA,
        prepare=lambda directory: _put(_path(directory), _OLD),
        prime=_hold,
        change=lambda directory: _put(_path(directory), _NEW, 0),
        seen=lambda watched: os.pread(watched.held[-1], _SIZE, 0) == _NEW,
    ),
)


def seen_or_stale(aspect: Aspect, watched: Watched) -> bool:
    """An error of a look (ESTALE) is a look that does not see it yet."""
    with contextlib.suppress(OSError):
        return aspect.seen(watched)
    return False
