"""A study as units of work: each is computed once, kept in one file, and depends on no other.

The one exception is a model trained without a defence, which all units that attack it share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradguard import Defense
from gradguard.evaluation.running.bench import Cell
from gradguard.evaluation.study import Study


@dataclass(frozen=True)
class Attacked:
    """Every attack on the messages of one defence, at one model."""

    defense: str
    cell: Cell
    repeat: int

    def __str__(self) -> str:
        rounds = "" if self.cell.rounds == 1 else f", {self.cell.rounds} rounds"
        where = f"{self.cell.stage}, {self.cell.composition}, B = {self.cell.batch_size}{rounds}"
        return f"{self.defense}: {where}, seed {self.repeat + 1}"


@dataclass(frozen=True)
class Trained:
    """One training run with a defence."""

    defense: str
    repeat: int

    def __str__(self) -> str:
        return f"{self.defense}: training, seed {self.repeat + 1}"


@dataclass(frozen=True)
class Weighed:
    """Bytes and step time of a defence."""

    defense: str

    def __str__(self) -> str:
        return f"{self.defense}: bytes and step time"


@dataclass(frozen=True)
class Undefended:
    """A model that was trained without a defence, to be attacked."""

    repeat: int

    def __str__(self) -> str:
        return f"training without a defence, seed {self.repeat + 1}"


Unit = Attacked | Trained | Weighed | Undefended

Task = tuple[Unit, ...]
"""Units that one process works through in turn: they share raw gradients and templates."""


def cells(study: Study) -> list[Cell]:
    """The conditions of a study, in the order of its rows."""
    spec = study.attack
    return [
        Cell(stage, composition, size, rounds)
        for stage in spec.stages
        for composition in spec.compositions
        for size in spec.batch_sizes
        for rounds in spec.rounds
    ]


def costs_of(study: Study, defense: Defense) -> list[Unit]:
    """What a defence costs, the same in all of its rows."""
    repeats = range(study.training.seeds)
    return [*(Trained(defense.name, repeat) for repeat in repeats), Weighed(defense.name)]


def attacks_of(study: Study, defense: Defense, cell: Cell) -> list[Attacked]:
    """What the scores of one row are made of."""
    return [Attacked(defense.name, cell, repeat) for repeat in range(study.attacked_seeds)]


def tasks_of(study: Study, *, jobs: int) -> list[Task]:
    """All units of a study, in tasks for ``jobs`` processes, in the order of the rows.

    A task is what shares the raw gradients of one model and its batches. Only where there are
    fewer of those than about four for each process are they divided, and then shared no more.
    """
    tasks: list[Task] = [tuple(costs_of(study, defense)) for defense in study.defenses]
    groups: dict[tuple[Cell, int], list[Attacked]] = {}
    for cell in cells(study):
        for defense in study.defenses:
            for unit in attacks_of(study, defense, cell):
                groups.setdefault((cell.batches, unit.repeat), []).append(unit)
    trained = [group for (cell, _), group in groups.items() if cell.stage == "trained"]
    fresh = [group for (cell, _), group in groups.items() if cell.stage != "trained"]
    pieces = -(-4 * jobs // max(len(groups), 1)) if jobs > 1 else 1
    tasks += [task for group in fresh for task in _divided(group, pieces)]
    if trained:  # before what needs them, so that nobody has to wait
        tasks += [(Undefended(repeat),) for repeat in range(study.training.seeds)]
    return tasks + [task for group in trained for task in _divided(group, pieces)]


def _divided(group: Sequence[Unit], pieces: int) -> list[Task]:
    length = max(1, -(-len(group) // pieces))
    return [tuple(group[i : i + length]) for i in range(0, len(group), length)]
