"""Which mount a command means, without asking the mount: it may hang."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container

from ckfs.daemon.mounting import Mounted, is_dead, mount_of, mounts
from ckfs.errors import NotPermitted, UsageError
from ckfs.names import shown

_MOST_LINKS = 40
"""On the way to a mount, as for the kernel."""


def mount_at(path: str) -> Mounted:
    """The ckfs mount that *path* is on. UsageError if it is on none."""
    try:
        descriptor = os.open(path, os.O_PATH)
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}") from None
    try:
        return mount_through(descriptor, path)
    finally:
        os.close(descriptor)


def mount_through(descriptor: int, path: str) -> Mounted:
    """The ckfs mount that *descriptor* was reached through, by *path*. The kernel is asked: anybody can name a file
    system of his own as he likes."""
    mount = mount_of(descriptor)
    if mount is None or not mount.is_ckfs:
        raise UsageError(f"{shown(path)}: not on a ckfs mount")
    return mount


def mount_above(path: str) -> Mounted | None:
    """The ckfs mount that *path* is on, or names, by its name alone; None if it is on none. A mount comes before a store: what users
    put on it may look like one. No call is made on the mount, nor on anything below it."""
    here = _uppermost()
    above = _as_far_as_a_mount(os.path.join(os.getcwd(), path), here)
    while above not in here:
        if above == "/":
            return None
        above = os.path.dirname(above)
    return here[above]


def _uppermost() -> dict[str, Mounted]:
    """The ckfs mounts that paths lead to."""
    everything = {os.fsdecode(mounted.path): mounted for mounted in mounts()}
    return {point: mounted for point, mounted in everything.items() if mounted.is_ckfs}


def _as_far_as_a_mount(path: str, here: Container[str]) -> str:
    """*path* without links, of which those behind the first mount of *here* are left as they are."""
    reached, rest, links = "/", path.split("/")[::-1], 0
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            reached = os.path.dirname(reached)
            continue
        reached = os.path.join(reached, name)
        if reached in here:
            return os.path.normpath(os.path.join(reached, *rest[::-1]))
        with contextlib.suppress(OSError):  # no link, or nothing at all
            target = os.readlink(reached)
            links += 1
            if links > _MOST_LINKS:
                raise UsageError(f"{shown(path)}: too many symbolic links")
            reached = "/" if target.startswith("/") else os.path.dirname(reached)
            rest += target.split("/")[::-1]
    return reached


def mount_meant(path: str | None) -> Mounted | None:
    """The mount that *path* is on or names, or the one on this host; None where *path* can only be a store."""
    return only_mount() if path is None else mount_above(path)


def store_meant(path: str | None) -> str:
    """The store that *path* is, or whose mount it is on; or the one that is mounted on this host."""
    mount = mount_meant(path)
    return os.fsdecode(mount.source) if mount is not None else str(path)


def device_for_user(path: str | None) -> str:
    """The device number of the mount that a user means, by *path* or as the only one. NotPermitted for what is none."""
    if path is None:
        return only_mount().device
    try:
        return mount_at(path).device
    except UsageError as error:
        raise NotPermitted(
            f"{error}: name a mount, or something on it; only root works on a store itself"
        ) from None


def only_mount(option: str = "--store") -> Mounted:
    """A mount of the one store that is mounted on this host, if possible one that lives. UsageError if there is none, or several;
    *option* would name one."""
    here = {mounted.path: mounted for mounted in mounts() if mounted.is_ckfs}  # the uppermost of each place
    stores = {mounted.source for mounted in here.values()}
    if not stores:
        raise UsageError(f"no ckfs is mounted on this host: name a mount with {option} PATH")
    if len(stores) > 1:
        names = ", ".join(sorted(map(shown, stores)))
        raise UsageError(
            f"{len(stores)} stores are mounted on this host ({names}): name one with {option} PATH"
        )
    latest_first = list(here.values())[::-1]
    living = (mounted for mounted in latest_first if not is_dead(os.fsdecode(mounted.path)))
    return next(living, latest_first[0])
