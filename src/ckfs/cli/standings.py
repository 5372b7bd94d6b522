"""How owners stand by their quotas, as a table, or as JSON in bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from ckfs.cli.users import user_name
from ckfs.fs.standing import Standing
from ckfs.policy import limits
from ckfs.policy.limits import limit_text
from ckfs.policy.quota import Limits
from ckfs.policy.sizes import shown_size, shown_span

_HEAD = (
    f"{'OWNER':<16} {'STATE':<5} {'USED':>8} {'CLAIMED':>8} {'TRASH':>8} {'SOFT':>8} {'HARD':>8} {'GRACE':>7}"
    f" {'FILES':>9} {'SOFT':>9} {'HARD':>9} {'GRACE':>7}"
)


def print_table(rows: Sequence[Standing], default: Limits | None) -> None:
    print(_HEAD)
    for row in rows:
        print(_line(row))
    if default is not None:
        print(f"default: {limits.described(default)}")


def _line(row: Standing) -> str:
    state = "" if row.state == "ok" else row.state
    of_bytes = [shown_size(row.used_bytes), shown_size(row.claimed_bytes), shown_size(row.trash_bytes)]
    of_bytes += [limit_text(row.soft_bytes, shown_size), limit_text(row.hard_bytes, shown_size)]
    files = [
        str(row.used_files),
        limit_text(row.soft_files, str),
        limit_text(row.hard_files, str),
    ]
    text = " ".join(
        [
            f"{user_name(row.uid):<16} {state or '-':<5}",
            *(f"{column:>8}" for column in of_bytes),
            f"{_grace(row.grace_bytes_s):>7}",
            *(f"{column:>9}" for column in files),
            f"{_grace(row.grace_files_s):>7}",
        ]
    )
    return text.rstrip()


def _grace(left_s: int | None) -> str:
    return "-" if left_s is None else "ended" if left_s <= 0 else shown_span(left_s)


def print_json(rows: Sequence[Standing], default: Limits | None) -> None:
    """Bytes, files and seconds; null where there is no limit."""
    document: dict[str, object] = {"owners": [{"owner": user_name(row.uid), **asdict(row)} for row in rows]}
    if default is not None:
        document["default"] = {
            "soft_bytes": default.bytes.soft,
            "hard_bytes": default.bytes.hard,
            "soft_files": default.files.soft,
            "hard_files": default.files.hard,
            "grace_s": default.grace_s,
        }
    print(json.dumps(document, indent=1))
