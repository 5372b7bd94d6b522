"""How many examples hypothesis tries, and what it does with one that fails."""

from __future__ import annotations

import os

from hypothesis import Phase

_ASKED = os.environ.get("CKFS_EXAMPLES")
PHASES = tuple(Phase) if _ASKED else (Phase.explicit, Phase.generate)
"""An example that fails is shrunk only for who looks for the reason, and says how many examples he wants: that takes minutes."""


def examples(count: int) -> int:
    """*count*, unless ``CKFS_EXAMPLES`` in the environment says how many."""
    return int(_ASKED or count)
