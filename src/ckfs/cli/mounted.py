"""Which mount a command means, without asking the mount: it may hang."""

from __future__ import annotations

import os

from ckfs.daemon.mounting import Mounted, is_dead, mount_of, mounts
from ckfs.errors import NotPermitted, UsageError
from ckfs.names import shown


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
    put on it may look like one."""
    here = {os.fsdecode(mounted.path): mounted for mounted in mounts() if mounted.is_ckfs}
    above = os.path.realpath(path)
    while above not in here:
        if above == "/":
            return None
        above = os.path.dirname(above)
    return here[above]


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
