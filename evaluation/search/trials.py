"""The search itself: propose a batch, measure it, learn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gradguard import Defense
from gradguard.evaluation.search.journal import Journal
from gradguard.evaluation.search.objectives import Candidate, Objectives
from gradguard.evaluation.search.proposals import propose
from gradguard.evaluation.search.settings import SearchSettings
from gradguard.evaluation.search.space import Point, description

Measure = Callable[[Sequence[Defense]], Sequence[Candidate]]
"""Measures defences, and answers in their order."""


@dataclass
class _Roll:
    """Every candidate once, under a name of its own."""

    by_description: dict[str, Defense] = field(default_factory=dict)

    def enter(self, defense: Defense) -> Defense:
        """The defence as it is known: under its first name if it was there before."""
        known = self.by_description.get(description(defense))
        if known is not None:
            return known
        taken = {other.name for other in self.by_description.values()}
        name, number = defense.name, 2
        while name in taken:
            name, number = f"{defense.name} ({number})", number + 1
        defense = replace(defense, name=name)
        self.by_description[description(defense)] = defense
        return defense


def run_trials(
    settings: SearchSettings,
    references: Sequence[Defense],
    *,
    measure: Measure,
    journal: Journal,
    seed: int,
    told: Callable[[int], None] = lambda number: None,
) -> list[Defense]:
    """Propose and measure candidates, batch by batch.

    What is in the journal is not measured again, so a search that was killed goes on where it was.
    Of a batch that was killed half way, the same candidates are proposed as before.

    Guarantees:

    - the same settings and seed give the same candidates, whatever is in the journal already, if
      the measurements are the same;
    - no candidate is measured twice by one call: two that do the same are one;
    - all names are different.

    Args:
        references: Measured with the first batch. The sampler does not learn from them, for they
            need not be in the space.
        measure: Called once a batch, with what is new in it.
        seed: Decides which candidates are proposed.
        told: Called with the number of trials that are done, after each batch.

    Returns:
        The references, then every different candidate, in the order in which they were proposed.
    """
    roll = _Roll()
    waiting = [roll.enter(defense) for defense in references]
    values: dict[str, Objectives] = {}
    for start in range(0, settings.trials, settings.batch):
        count = min(settings.batch, settings.trials - start)
        points = _batch(settings, journal, start=start, count=count, seed=seed)
        batch = [roll.enter(settings.space.defense(point)) for point in points]
        done = journal.tried()[start : start + count]
        for defense, trial in zip(batch, done, strict=False):
            values.setdefault(defense.name, _objectives(trial.values))
        new = {d.name: d for d in [*waiting, *batch] if d.name not in values}
        if len(done) < count:
            if new:
                for found in measure(list(new.values())):
                    values[found.name] = found.objectives
            for defense, point in list(zip(batch, points, strict=True))[len(done) :]:
                journal.tell(point, values[defense.name])
        waiting = []
        told(start + count)
    return list(roll.by_description.values())


def _batch(
    settings: SearchSettings, journal: Journal, *, start: int, count: int, seed: int
) -> list[Point]:
    tried = journal.tried()
    known = [trial.point for trial in tried[start : start + count]]
    if len(known) == count:
        return known
    proposed = propose(settings.space, tried[:start], count=count, seed=seed)
    return [*known, *proposed[len(known) :]]


def _objectives(values: Sequence[float]) -> Objectives:
    read, accuracy, size = values
    return read, accuracy, size
