"""The account that keeps a store."""

from __future__ import annotations

from ckfs.errors import UsageError
from ckfs.model import Owner
from ckfs.names import shown
from ckfs.owners.accounts import Accounts, uid_in
from ckfs.store.identity import ROOT


def account_of(name: str | None) -> Owner:
    """The service account *name*; root itself for None. Raises UsageError if there is no such user."""
    if name is None:
        return ROOT
    accounts = Accounts()
    uid = uid_in(name)
    if uid is None:
        uid = accounts.uid_of(name)
    gid = None if uid is None else accounts.primary_gid_of(uid)
    if uid is None or gid is None:
        raise UsageError(f"mount option service_user={shown(name)}: there is no such user on this host")
    return Owner(uid, gid)
