"""What the file system asks of users and jobs."""

from __future__ import annotations

from typing import Protocol

from ckfs.model import JobFate, Owner
from ckfs.names import SetName


class OwnerLookup(Protocol):
    """Who owns the job of a batch set, and who a user is. Blocking; asked aside from the store's threads."""

    def owner_of_set(self, name: SetName) -> Owner | None:
        """The owner of the job that *name* belongs to; None if unknown."""

    def fate_of_set(self, name: SetName) -> JobFate:
        """What the batch system says of the job that *name* belongs to."""

    def owner_named(self, name: str) -> Owner | None:
        """The user of that name or number; None if there is none."""

    def name_of(self, uid: int) -> str | None:
        """A user's name; None if there is none, or nobody knows in time."""
