"""Where files of sets lie: in the store itself, and in each further store that this host reaches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ckfs.store.checking.walking import Directory
from ckfs.store.entries import USERS
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.realms import Arrangement
from ckfs.store.spots import HOME, Spot, VolumeId


@dataclass(frozen=True, slots=True)
class Area:
    """*volume* of the *store*. *label* is what its paths begin with in findings: nothing at home, else the further store's name, and a colon."""

    store: Store
    volume: VolumeId = HOME
    label: bytes = b""

    @contextmanager
    def root(self) -> Iterator[Directory]:
        """Unreached if it is a further store that has gone meanwhile."""
        if self.volume == HOME:  # not by its path, where something else may be mounted by now
            with Directory.of(os.dup(self.store.root.fd)) as root:
                yield root
            return
        there = Spot(ROOT, (USERS,), volume=self.volume)
        with self.store.door.volumes.entered(there) as fd, Directory.of(os.dup(fd)) as root:
            yield root

    @property
    def arrangement(self) -> Arrangement:
        return self.store.arrangement.of(self.volume)

    def path(self, *components: bytes) -> bytes:
        return self.label + b"/".join(components)


def areas(store: Store) -> list[Area]:
    """The home first."""
    further = (volume for volume in store.door.volumes.all() if volume.is_usable)
    return [Area(store), *(Area(store, volume.id, volume.said.name.encode() + b":") for volume in further)]
