"""Mount options: what is taken, and that everything else is refused by name."""

from __future__ import annotations

import socket

import pytest

from ckfs.daemon.options import KNOWN, MountOptions, parse
from ckfs.errors import UsageError
from ckfs.model import Role
from ckfs.policy import passing
from ckfs.transport.choosing import Wish as Transport


def test_without_options_the_mount_is_the_safest_kind() -> None:
    assert parse([]) == MountOptions(role=Role.NODE, node=socket.gethostname())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("role=node", {"role": Role.NODE}),
        ("role=server", {"role": Role.SERVER}),
        ("role=both", {"role": Role.BOTH}),
        ("node=tqn-1.cluster_a", {"node": "tqn-1.cluster_a"}),
        ("store_id=0d6f3a8e", {"store_id": "0d6f3a8e"}),
        ("service_user=ckfs", {"service_user": "ckfs"}),
        ("op_timeout=2.5", {"op_timeout_s": 2.5}),
        ("op_timeout=86400", {"op_timeout_s": 86400.0}),
        ("io_timeout=60", {"io_timeout_s": 60.0}),
        ("log=/var/log/ckfs", {"log_file": "/var/log/ckfs"}),
        ("transport=auto", {"transport": Transport.AUTO}),
        ("transport=kernel", {"transport": Transport.KERNEL}),
        ("transport=pyfuse3", {"transport": Transport.PYFUSE3}),
        ("passthrough=off", {"passthrough": passing.Wish.OFF}),
        ("passthrough=on", {"passthrough": passing.Wish.ON}),
        ("transport=pyfuse3,passthrough=auto", {"passthrough": passing.Wish.AUTO}),
        ("request_timeout=0", {"request_timeout_s": 0}),
        ("request_timeout=601", {"request_timeout_s": 601}),
        ("io_timeout=20,request_timeout=30", {"request_timeout_s": 30}),
        ("ro", {"read_only": True}),
        ("rw", {"read_only": False}),
        ("ro,rw", {"read_only": False}),
        ("rw,ro", {"read_only": True}),
        (",ro,,", {"read_only": True}),
        ("role=node,role=server", {"role": Role.SERVER}),
    ],
)
def test_options(given: str, expected: dict[str, object]) -> None:
    chosen = parse([given])
    assert {key: getattr(chosen, key) for key in expected} == expected


def test_options_may_be_given_in_several_lists_and_the_last_counts() -> None:
    chosen = parse(["role=server,node=a", "node=b"])
    assert (chosen.role, chosen.node) == (Role.SERVER, "b")


@pytest.mark.parametrize(
    "given",
    [
        "allow_other",
        "rolle=node",
        "Role=node",
        "role",
        "role=",
        "role=head",
        "role=NODE",
        "transport=fuse",
        "transport=",
        "passthrough",
        "passthrough=yes",
        "request_timeout=600",
        "request_timeout=-1",
        "request_timeout=1e3",
        "request_timeout=65536",
        "io_timeout=700,request_timeout=650",
        "transport=pyfuse3,passthrough=on",
        "ro=1",
        "rw=yes",
        "node",
        "node=",
        "node=a/b",
        "node=a;u=0",
        "node=a b",
        "node=" + "a" * 65,
        "op_timeout",
        "op_timeout=",
        "op_timeout=0",
        "op_timeout=-1",
        "op_timeout=nan",
        "op_timeout=inf",
        "op_timeout=86401",
        "op_timeout=ten",
        "io_timeout=0",
        "log",
        "service_user",
    ],
)
def test_what_is_refused_is_named_in_one_line(given: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse([given])
    assert given.partition("=")[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_status == 2


def test_an_unknown_option_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(UsageError) as refused:
        parse(["nosuch=1"])
    assert all(known in str(refused.value) for known in KNOWN)


def test_a_hostile_option_is_shown_harmlessly() -> None:
    with pytest.raises(UsageError) as refused:
        parse(["\x1b[2Jnosuch\n=1"])
    assert str(refused.value).isprintable()


def test_where_this_host_has_further_stores() -> None:
    options = parse(["at.fast=/elsewhere/ckfs,at.slow=none", "role=node"])
    assert options.further == {"fast": "/elsewhere/ckfs", "slow": "none"}
    with pytest.raises(UsageError, match=r"at.fast=elsewhere: must be a path from the root directory"):
        parse(["at.fast=elsewhere"])
    with pytest.raises(UsageError, match=r"at.fast needs a value: at.fast=VALUE"):
        parse(["at.fast"])
