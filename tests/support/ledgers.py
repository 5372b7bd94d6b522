"""Where the ledger of a test's store is: in a file of this host, or in PostgreSQL. What holds of quotas holds with both."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from tests.support.postgres import Server

Policy = Callable[[str], str]
"""What is made of the text of a policy."""

_EMBEDDED = 'ledger = "embedded"'


def embedded(policy: str) -> str:
    """As a new store says."""
    assert _EMBEDDED in policy
    return policy


def ledger_file(store: Path) -> Path:
    """Where the embedded ledger of *store* is, for what runs here now: the state of this host may know many stores."""
    found = re.search(r'^id = "(.*)"$', (store / "ckfs.toml").read_text(), re.MULTILINE)
    assert found
    return Path(os.environ["CKFS_STATE_DIR"]) / found[1] / "ledger.sqlite"


def in_new_database(server: Server) -> Policy:
    """Of *server*, for one store."""
    connection = server.new_database(f"ckfs_{secrets.token_hex(4)}")

    def policy(text: str) -> str:
        assert _EMBEDDED in text
        return text.replace(_EMBEDDED, f'ledger = "{connection}"')

    return policy


def rewrite_policy(store: Path, policy: Policy) -> None:
    path = store / "policy.toml"
    path.write_text(policy(path.read_text()))
