"""Runs the scenarios in all places in turn, so that whatever else the machine does meets them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.places import Place, as_user, forget_names, forget_pages, places, scratch_in
from tests.bench.workloads import Caches, Scale, Step, scenarios

Say = Callable[[str], None]


@dataclass(slots=True)
class Measured:
    """*seconds* of each place, one number per repetition."""

    step: Step
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, place: str) -> float | None:
        """The median, in the step's unit; None where the place was not measured."""
        times = self.seconds.get(place)
        return self.step.amount / statistics.median(times) if times else None

    def ratios(self, place: str, control: str) -> list[float]:
        """How many times as fast as *control* the *place* was, in each repetition."""
        return [
            theirs / ours
            for ours, theirs in zip(self.seconds.get(place, []), self.seconds.get(control, []), strict=False)
        ]


def compare(directory: str, scale: Scale, say: Say, *, on_disk: bool) -> list[Measured]:
    """Everything measured in new places below *directory*."""
    measured: list[Measured] = []
    for steps in scenarios(scale):
        chosen = [Measured(step) for step in steps if on_disk or not step.disk_only]
        for repetition in range(scale.repetitions if chosen else 0):
            with scratch_in(directory) as scratch, places(scratch) as found:
                order = list(found.values())
                order = order[repetition % len(order) :] + order[: repetition % len(order)]
                for one in chosen:
                    _measure(one, order, say)
        measured += [one for one in chosen if one.step.amount]
    return measured


def _measure(one: Measured, order: list[Place], say: Say) -> None:
    for place in order:
        if one.step.caches is Caches.NO_PAGES:
            forget_pages(place.below)
        elif one.step.caches is Caches.NO_NAMES:
            forget_names()
        seconds = as_user(one.step.work, place.directory, *one.step.args)
        one.seconds.setdefault(place.name, []).append(seconds)
        if one.step.amount:
            say(f"{one.step.title}: {place.name} {one.step.amount / seconds:,.0f} {one.step.unit}")
