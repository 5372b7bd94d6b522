"""What root may do in the store, and who keeps it where that is nothing."""

from __future__ import annotations

import os
import pwd

from ckfs.names import shown
from ckfs.policy.advice import Topic
from ckfs.policy.enforcing import QuotaMode
from ckfs.selftest.identities import create
from ckfs.selftest.outcome import Check, Outcome, fail, ok, warn
from ckfs.selftest.place import Place
from ckfs.store.identity import acting_as


def _squash(place: Place) -> list[Outcome]:
    check = "root.squash"
    if not place.squashed:
        return [ok(check, "root is root; ckfs needs no service account", squashed=0)]
    who = "nobody who may write" if place.root_is < 0 else f"uid {place.root_is}"
    says = f"root is squashed (he is {who}): an account of its own keeps the store"
    if place.quota is not None and place.quota.mode is QuotaMode.ENGINE and place.quota.engine != "statvfs":
        return [
            fail(
                check,
                f"{says}, but quotas by an engine need root",
                "export to these hosts with no_root_squash",
            )
        ]
    return [ok(check, says, squashed=1)]


def _keeper(place: Place) -> list[Outcome]:
    check = "root.keeper"
    uid = place.keeper.uid
    with acting_as(place.keeper):
        fd = create(os.path.join(place.new_room(), "keeper"))
        made_by = os.fstat(fd).st_uid
        os.close(fd)
    if made_by != uid:
        says = f"what uid {uid}, who owns the store's directory, makes there belongs to uid {made_by}"
        return [fail(check, says, place.mend(Topic.ROOT))]
    if not place.squashed:
        return [ok(check, f"uid {uid} keeps the store")]
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return [
            warn(
                check,
                f"uid {uid}, who owns the store's directory, has no name on this host",
                "make an account of that number on every host; ckfs takes it by --service-user and service_user=",
            )
        ]
    shown_name = shown(name)
    return [
        ok(
            check,
            f"{shown_name} (uid {uid}) keeps the store: 'ckfs init --service-user {shown_name}' and"
            f" 'ckfs mount -o service_user={shown_name}'",
        )
    ]


def _chown(place: Place) -> list[Outcome]:
    check = "root.chown"
    one, other = place.users
    path = os.path.join(place.new_room(0o1777), "file")
    with acting_as(one):
        os.close(create(path))
    try:
        os.chown(path, other.uid, other.gid)
    except PermissionError:
        return [ok(check, "root may give nothing away: sets that change hands are copied", may=0)]
    with acting_as(other):
        uid = os.stat(path).st_uid
    if uid != other.uid:
        return [fail(check, f"a file that root gave to uid {other.uid} belongs to uid {uid}")]
    return [ok(check, "root may give files away: sets that change hands are not copied", may=1)]


CHECKS = (
    Check(("root.squash",), _squash),
    Check(("root.keeper",), _keeper),
    Check(("root.chown",), _chown),
)
