"""Whose is it? Who may take which name, and who may make things where (design: a job's image is its owner's alone)."""

from __future__ import annotations

from ckfs.errors import Denied, NotOwner
from ckfs.model import Caller, Keep, Owner, Record
from ckfs.names import ROOT_UID, SetName, Uid
from ckfs.policy.protection import family
from ckfs.policy.settings import Policy


def check_take(policy: Policy, name: SetName, caller: Caller, job_owner: Owner | None) -> None:
    """Refuse a batch set's name to a user whose job it is not: job ids can be guessed, and who owned the set would own
    the victim's memory image."""
    if policy.is_batch(name) and not caller.is_root and (job_owner is None or job_owner.uid != caller.uid):
        raise Denied("only root, or the job's owner, makes a batch set")


def owner_of_new(policy: Policy, name: SetName, caller: Caller, job_owner: Owner | None) -> Owner | None:
    """Whom a new set belongs to; None for an unclaimed one. Ask :func:`check_take` first."""
    if caller.is_root and policy.is_batch(name):
        return job_owner
    return Owner(caller.uid, caller.gid)


def check_create(policy: Policy, name: SetName, owner: Owner | None, caller: Caller) -> None:
    """Refuse to make anything in somebody else's batch set, or in an unclaimed set, whatever its mode says."""
    if caller.is_root or (owner is not None and caller.uid == owner.uid):
        return
    if owner is None:
        raise Denied("an unclaimed set takes files of root alone until somebody owns it")
    if policy.is_batch(name):
        raise Denied("in a batch set only the owner and root create")


def check_take_away(record: Record, caller: Caller) -> None:
    """Refuse to remove or replace another user's set: the mount's root is sticky, for whatever has a name by now."""
    if not caller.is_root and record.uid != caller.uid:
        raise NotOwner("only its owner, or root, takes a set away")


def check_restore_way(policy: Policy, old: SetName, new: SetName) -> None:
    """Refuse a user to restore into a batch set what was in none of that job's: it could take the place of its newest."""
    if policy.is_batch(new) and family(old) != family(new):
        raise Denied("nothing comes into a batch set from another set")


def check_restore_of(record: Record, caller: Caller, *, in_directory: bool) -> None:
    """Refuse a set's owner what somebody else made *in_directory* of it: that may have been closed to him, and need not be
    the same when it is made again."""
    if in_directory and not caller.is_root and record.uid != caller.uid:
        raise NotOwner(f"uid {record.uid} made it, in a directory: ask an admin to restore it")


def check_give(caller: Caller) -> None:
    """Only root gives a set to another user."""
    if not caller.is_root:
        raise NotOwner("only root gives a set to another user")


def check_keep(keep: Keep, owner: Owner | None, caller: Caller) -> None:
    """An owner pins what he wants kept, and ends that; only root releases what the rules protect."""
    if caller.is_root:
        return
    if owner is None or owner.uid != caller.uid:
        raise NotOwner("only the set's owner, or root, says what is kept")
    if keep is Keep.RELEASED:
        raise NotOwner("only root releases what is protected")


def is_claim(owner: Owner | None, caller: Caller, job_owner: Owner | None) -> bool:
    """*caller* turns out to own the job of an unclaimed set."""
    return owner is None and job_owner is not None and job_owner.uid == caller.uid != ROOT_UID


def other_owner(current: Owner | None, uid: Uid) -> bool:
    """A chown of a set's top to *uid* changes whose set it is."""
    return current is None or current.uid != uid
