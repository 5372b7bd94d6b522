"""Hosts that reach the ledger's database through PgBouncer, which has fewer sessions there than there are hosts."""

from __future__ import annotations

import contextlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.postgres import pooled, running, skip_unless_pooler_installed
from tests.support.users import ALICE, as_user

pytestmark = pytest.mark.root

HOSTS = 4
SESSIONS = 2
UNIT = 4096
PATIENT_S = 60
"""Longer than a mount may take to begin: hosts that keep a session from each other fail for that, a slow machine does not."""


def test_hosts_that_begin_at_once_count_together(store: Path, workdir: Path) -> None:
    skip_unless_pooler_installed()
    name = f"ckfs_{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running())
        string_for = stack.enter_context(pooled(server, SESSIONS))
        server.new_database(name)
        (store / "policy.toml").write_text(f'[quota]\nledger = "{string_for(name)}"\n')

        def mount(number: int) -> Mount:
            path, node = workdir / f"m{number}", f"n{number}"
            return stack.enter_context(mounted(store, path, node=node, options=[f"op_timeout={PATIENT_S}"]))

        with ThreadPoolExecutor(HOSTS) as pool:
            mounts = list(pool.map(mount, range(HOSTS)))

        for number, host in enumerate(mounts):
            as_user(ALICE, lambda path=host.path / f"set-{number}": _save(path))
        checked = run_ckfs("quota", "check", "--store", store)
        assert (checked.returncode, "differences: 0" in checked.stdout) == (0, True), checked


def _save(directory: Path) -> None:
    os.mkdir(directory)
    (directory / "image").write_bytes(b"x" * UNIT)
