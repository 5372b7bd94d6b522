"""What the store's engine refuses to a user who is at his own limit, and what becomes of that: some say ENOSPC where EDQUOT is meant,
and some refuse even what takes no room to speak of.

Synchronous, for worker threads.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from ckfs.errors import Stale
from ckfs.names import Uid
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.realms import realm_at
from ckfs.store.spots import Spot, Target

OverQuota = Callable[[Uid], bool]
"""Whether it is this user's own limit that an ENOSPC tells of, not the end of the store. Blocking, and raises nothing."""

Headroom = Callable[[Uid], AbstractContextManager[None]]
"""In the block this user may have a little more than his limit. Blocking."""


class Refusals:
    """Of one store. Until it is told of an engine's ways, all is as the store says."""

    def __init__(self) -> None:
        self._over_quota: OverQuota | None = None
        self._headroom: Headroom | None = None

    def tell_quotas_by(self, over_quota: OverQuota) -> None:
        """Before the first call: for a store whose engine says ENOSPC to one who is over his own limit."""
        self._over_quota = over_quota

    def note_by(self, headroom: Headroom) -> None:
        """Before the first call: for a store whose engine refuses notes and renames to one at his limit."""
        self._headroom = headroom

    def told(self, error: OSError, uid: Uid | None) -> OSError | Stale:
        """*error* as callers are to see it, who were writing something of *uid*'s (None: nobody's): an ENOSPC that is due to his own limit is
        EDQUOT, as everywhere else. What a network's store says of a file that another host removed is Stale."""
        if error.errno == errno.ESTALE:
            return Stale("the store says that the file is gone")
        if error.errno != errno.ENOSPC or self._over_quota is None or uid is None:
            return error
        with acting_as(ROOT):
            is_his = self._over_quota(uid)
        return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)) if is_his else error

    @contextmanager
    def stored_as(self, uid: Uid | None) -> Iterator[None]:
        """In the block something of *uid*'s is written, and OSError is as :meth:`told`."""
        try:
            yield
        except OSError as error:
            raise self.told(error, uid) from None

    def headroom(self, where: Target) -> AbstractContextManager[None] | None:
        """In the block whose *where* is may have a little more than his limit; None if that is not for ckfs to say."""
        uid = realm_at(where) if isinstance(where, Spot) else Uid(os.fstat(where.fd).st_uid)
        return None if self._headroom is None or uid is None else self._headroom(uid)


class _Refused(Protocol):
    @property
    def refusals(self) -> Refusals: ...


P = ParamSpec("P")
T = TypeVar("T")
Store = TypeVar("Store", bound=_Refused)
Where = TypeVar("Where", bound=Target)


def noting(call: Callable[Concatenate[Store, Where, P], T]) -> Callable[Concatenate[Store, Where, P], T]:
    """For what takes no room to speak of: also where the engine refuses it to one at his limit."""

    @functools.wraps(call)
    def noted(store: Store, where: Where, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(store, where, *args, **kwargs)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            headroom = store.refusals.headroom(where)
            if headroom is None:
                raise
        with headroom:
            return call(store, where, *args, **kwargs)

    return noted
