"""Play client against attacker, for every defence of a study."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from gradguard import Defense
from gradguard.evaluation.bench import Bench, Cell, prepare
from gradguard.evaluation.cell import attack_cell
from gradguard.evaluation.data import Data
from gradguard.evaluation.models import Factory
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.provenance import provenance
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.rows import Cost, make_row, measure_accuracy, measure_overhead
from gradguard.evaluation.study import Study


class InterruptedStudyError(KeyboardInterrupt):
    """Ctrl-C during a study; ``report`` holds the rows that were finished."""

    def __init__(self, report: Report) -> None:
        super().__init__("interrupted")
        self.report = report


def evaluate(
    study: Study,
    *,
    data: Data | None = None,
    factory: Factory | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Report:
    """Train with every defence, attack every defence, and report both.

    For each of ``study.training.seeds`` repeats there is one fresh model. The stage ``"init"``
    attacks that model. The stage ``"trained"`` attacks it after training *without* a defence on
    the clients' images, the same model for every defence: rows then differ by the defence alone,
    and a defence that post-processes another can be compared with it. Accuracy comes from
    training *with* the defence, through ``Defense.attach``. Every attacked message is the first
    of a fresh client: it shows no residual that error feedback would have gathered in earlier
    rounds.

    Guarantees:

    - the worst attack is chosen on batches that share no image with those it is scored on;
    - the attacker's images are in no client's data;
    - a study and seed give the same report on the same machine, times aside.

    Args:
        data: Instead of what ``study.data`` names, for data that is not in an ``.npz``.
        factory: Instead of what ``study.model`` names.
        progress: Told what is being done; silent when not given.
        command: Recorded in the report.

    Raises:
        UnusableInputError: The study, its data or its model cannot be used.
        InterruptedStudyError: Ctrl-C; a ``KeyboardInterrupt`` that holds the finished rows.
    """
    progress = Silent() if progress is None else progress
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    bench = prepare(study, data=data, factory=factory)
    rows: list[Row] = []

    def report(complete: bool) -> Report:
        taken = time.perf_counter() - start
        facts = provenance(bench, command=command, started=started, seconds=taken)
        return Report(study.to_dict(), tuple(rows), facts, complete)

    try:
        _run(bench, rows, progress)
    except KeyboardInterrupt as interrupt:
        raise InterruptedStudyError(report(complete=False)) from interrupt
    return report(complete=True)


def cells(study: Study) -> list[Cell]:
    """The conditions of a study, in the order in which they are worked through."""
    spec = study.attack
    return [
        Cell(stage, composition, size)
        for stage in spec.stages
        for composition in spec.compositions
        for size in spec.batch_sizes
    ]


def _run(bench: Bench, rows: list[Row], progress: Progress) -> None:
    """Fill ``rows`` one by one, so that an interruption keeps what is finished."""
    study = bench.study
    repeats, conditions = study.training.seeds, cells(study)
    attacked = len(conditions) * len(study.defenses) * repeats * len(bench.attacks)
    trained = (len(study.defenses) + ("trained" in study.attack.stages)) * repeats
    progress.begin(attacked + trained)
    costs: dict[str, Cost] = {}
    for cell in conditions:
        if cell.stage == "trained" and cell == _first(conditions, "trained"):
            for repeat in range(repeats):
                progress.doing(f"training without a defence, seed {repeat + 1}")
                bench.undefended(repeat)
                progress.advance()
        for defense in study.defenses:
            if defense.name not in costs:
                costs[defense.name] = _cost(bench, defense, progress)
            scores = attack_cell(bench, cell, defense, progress)
            seed = bench.seed("intervals", cell.stage, cell.composition, cell.batch_size)
            rows.append(make_row(defense, cell, scores, costs[defense.name], seed=seed))


def _first(conditions: Sequence[Cell], stage: str) -> Cell:
    return next(cell for cell in conditions if cell.stage == stage)


def _cost(bench: Bench, defense: Defense, progress: Progress) -> Cost:
    runs = []
    for repeat in range(bench.study.training.seeds):
        progress.doing(f"{defense.name}: training, seed {repeat + 1}")
        runs.append(measure_accuracy(bench, defense, repeat))
        progress.advance()
    parameters = sum(p.numel() for p in bench.fresh_model(0).parameters())
    return Cost(
        accuracies=tuple(accuracy for accuracy, _ in runs),
        diverged=any(diverged for _, diverged in runs),
        step_overhead=measure_overhead(bench, defense),
        dense_bytes=4 * parameters,
    )
