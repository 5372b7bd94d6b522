"""What an admin says of quotas: how it is read, which limits may stand beside each other, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ckfs.errors import UsageError
from ckfs.policy.quota import Account, Limit, Limits, Said, Setting, Settings, grace_left_s, limits_of
from ckfs.policy.sizes import count_of, shown_size, shown_span, size_of, span_of

_READ: Mapping[str, Callable[[str], int]] = {
    "soft_bytes": size_of,
    "hard_bytes": size_of,
    "soft_files": count_of,
    "hard_files": count_of,
    "grace_s": span_of,
}
FIELDS = tuple(_READ)
"""Of Settings."""
_WORDS = {word.value: word for word in Said}


def settings_said(before: Settings, said: Mapping[str, str]) -> Settings:
    """*before* with what is *said* of some of FIELDS: an amount in admins' units, ``none`` or ``default``. UsageError for what is
    none of these."""
    changes: dict[str, Setting] = {
        field: _WORDS[text] if text in _WORDS else _READ[field](text) for field, text in said.items()
    }
    return replace(before, **changes)


def check(own: Settings, default: Settings) -> None:
    """UsageError if a soft limit would be above its hard one, whoever said which: it would never be noticed."""
    limits = limits_of(own, default)
    for limit, show, of_what in ((limits.bytes, shown_size, ""), (limits.files, str, " for files")):
        if limit.soft is not None and limit.hard is not None and limit.soft > limit.hard:
            raise UsageError(
                f"the soft limit{of_what} of {show(limit.soft)} would be above the hard one of {show(limit.hard)}:"
                " set both, or 'none' for one of them"
            )


def described(limits: Limits) -> str:
    """*limits* in a line."""
    grace = "none" if limits.grace_s is None else shown_span(limits.grace_s)
    return (
        f"soft {limit_text(limits.bytes.soft, shown_size)}, hard {limit_text(limits.bytes.hard, shown_size)},"
        f" files soft {limit_text(limits.files.soft, str)}, hard {limit_text(limits.files.hard, str)}, grace {grace}"
    )


def limit_text(limit: int | None, show: Callable[[int], str]) -> str:
    return "none" if limit is None else show(limit)


def state(account: Account) -> str:
    """How *account* stands, as of now: ``over`` a limit that holds, ``full``, in ``grace``, or ``ok``."""
    kinds = (
        (account.limits.bytes, account.total.bytes, grace_left_s(account.over_bytes, account.limits)),
        (account.limits.files, account.total.files, grace_left_s(account.over_files, account.limits)),
    )
    words = [_state_of(limit, total, grace_s) for limit, total, grace_s in kinds]
    return next(word for word in ("over", "full", "grace", "ok") if word in words)


def _state_of(limit: Limit, total: int, grace_s: float | None) -> str:
    if grace_s == 0 or (limit.hard is not None and total > limit.hard):
        return "over"
    if limit.hard is not None and total == limit.hard:
        return "full"
    return "grace" if limit.soft is not None and total > limit.soft else "ok"
