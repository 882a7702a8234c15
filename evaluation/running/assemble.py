"""From the results of units to the rows of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradguard import Defense
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.message_size import dense_bytes
from gradguard.evaluation.report import Failure, Row
from gradguard.evaluation.running.bench import Bench, Cell
from gradguard.evaluation.running.cell import CellScores
from gradguard.evaluation.running.perform import scores_from
from gradguard.evaluation.running.rows import Cost, guarantees, make_row
from gradguard.evaluation.running.store import Store, kind_of
from gradguard.evaluation.running.units import (
    Trained,
    Undefended,
    Unit,
    Weighed,
    attacks_of,
    cells,
    costs_of,
)


@dataclass(frozen=True)
class Results:
    """Where results lie, by unit, and why some are not there."""

    store: Store
    keys: dict[Unit, str]
    failures: dict[Unit, str]

    def of(self, unit: Unit) -> Any:
        """The unit's result, or ``None``.

        Raises:
            UnusableInputError: The store holds the result of another kind of unit in its place.
        """
        if unit in self.failures:
            return None
        result = self.store.read(self.keys[unit])
        if result is not None and kind_of(result) != type(unit).__name__:
            path = self.store.path(self.keys[unit])
            raise UnusableInputError(f"{path}: no result of {unit}; remove it, and use --resume")
        return result


@dataclass(frozen=True)
class Assembled:
    """What a report is made of."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    attacked_accuracies: list[float]


def assembled(bench: Bench, results: Results) -> Assembled:
    """All rows whose units are there, and all that failed, in the order of the study.

    A row of which some units are neither there nor failed is left out: the study was interrupted.
    """
    rows: list[Row] = []
    failures: list[Failure] = []
    for cell in cells(bench.study):
        for defense in bench.study.defenses:
            made = _row(bench, results, cell, defense)
            if isinstance(made, Row):
                rows.append(made)
            elif made is not None:
                failures.append(made)
    return Assembled(tuple(rows), tuple(failures), _attacked(bench, results))


def _row(bench: Bench, results: Results, cell: Cell, defense: Defense) -> Row | Failure | None:
    attacks = attacks_of(bench.study, defense, cell)
    costs = costs_of(bench.study, defense)
    for unit in (*costs, *attacks):
        if unit in results.failures:
            return _failure(cell, defense, results.failures[unit])
    try:
        found = {unit: results.of(unit) for unit in (*costs, *attacks)}
    except UnusableInputError as error:
        return _failure(cell, defense, one_line(error))
    if any(result is None for result in found.values()):
        return None
    try:
        return _made(bench, cell, defense, found)
    except Exception as error:  # an accountant beyond its range, or whatever it may be
        return _failure(cell, defense, f"{type(error).__name__}: {one_line(error)}")


def _made(bench: Bench, cell: Cell, defense: Defense, found: dict[Unit, Any]) -> Row:
    attacks = attacks_of(bench.study, defense, cell)
    return make_row(
        defense,
        cell,
        CellScores.joined([scores_from(found[unit]) for unit in attacks]),
        _cost(bench, costs_of(bench.study, defense), found),
        needs={name: attack.needs for name, attack in bench.attacks.items()},
        seed=bench.seed("intervals", cell.stage, cell.composition, cell.batch_size),
        guaranteed=guarantees(bench, cell, defense),
    )


def _failure(cell: Cell, defense: Defense, why: str) -> Failure:
    return Failure(
        defense=defense.name,
        composition=cell.composition,
        stage=cell.stage,
        batch_size=cell.batch_size,
        rounds=cell.rounds,
        why=why,
    )


def _cost(bench: Bench, costs: Sequence[Unit], found: dict[Unit, Any]) -> Cost:
    runs = [found[unit] for unit in costs if isinstance(unit, Trained)]
    [weighed] = [found[unit] for unit in costs if isinstance(unit, Weighed)]
    return Cost(
        accuracies=tuple(run["accuracy"] for run in runs),
        diverged=any(run["diverged"] for run in runs),
        step_overhead=weighed["step_overhead"],
        dense_bytes=dense_bytes(bench.fresh_model(0)),
        bytes_per_update=weighed["bytes_per_update"],
    )


def _attacked(bench: Bench, results: Results) -> list[float]:
    """Test accuracies of the models that were trained without a defence, by repeat."""
    found = [results.of(unit) for unit in results.keys if isinstance(unit, Undefended)]
    return [float(result["accuracy"]) for result in found if result is not None]
