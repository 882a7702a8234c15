"""Play client against attacker, for every defence of a study."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from gradguard.evaluation.certificates.law import (
    broken_certificates,
    certificates_sentence,
    weak_deltas,
)
from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.models import Factory
from gradguard.evaluation.nesting import weak_attacks, weak_pooling
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.provenance import provenance
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.running.bench import Bench, Cell, prepare
from gradguard.evaluation.running.rows import guarantees, make_row
from gradguard.evaluation.running.work import working
from gradguard.evaluation.study import Study


class StoppedStudyError(RuntimeError):
    """A study that cannot go on, for the reason in ``__cause__``; ``report`` holds what it has."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"stopped after {len(report.rows)} finished rows")
        self.report = report


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
    jobs: int = 1,
) -> Report:
    """Train with every defence, attack every defence, and report both.

    For each of ``study.training.seeds`` repeats there is one fresh model. The stage ``"init"``
    attacks that model. The stage ``"trained"`` attacks it after training *without* a defence, the
    same model for every defence: rows then differ by the defence alone, and a defence that
    post-processes another can be compared with it. It has been trained on clients' images that
    are in no attacked batch: what a model has memorised leaks least. Accuracy comes from training
    *with* the defence on all clients' images, through ``Defense.attach``, or as
    :func:`gradguard.evaluation.federated.train_federated` does where the server sees a sum over a
    cohort or clients train locally. What is attacked is the mean of the messages of a fresh
    client's first ``attack.rounds`` rounds, all computed from one batch at one model; see
    :class:`gradguard.evaluation.exchange.Exchange`.

    Guarantees:

    - the worst attack is chosen on batches that share no image with those it is scored on;
    - the attacker's images are in no client's data;
    - an attack that is clearly above a certificate is a warning in the report;
    - a study and seed give the same report on the same machine, times aside.

    Args:
        data: Instead of what ``study.data`` names, for data that is not in an ``.npz``.
        factory: Instead of what ``study.model`` names.
        progress: Told what is being done; silent when not given.
        command: Recorded in the report.
        jobs: Processes to work in. More than one gives the same report in less time; a script
            that asks for it needs the usual ``if __name__ == "__main__":``.

    >>> from gradguard import Defense, Sign
    >>> from gradguard.evaluation import AttackSpec, ModelSpec, TrainingSpec
    >>> study = Study(
    ...     (Defense("sign", transform=Sign()),),
    ...     model=ModelSpec(name="mlp"),
    ...     training=TrainingSpec(steps=5, seeds=1),
    ...     attack=AttackSpec(
    ...         batch_sizes=(8,), compositions=("skewed",), stages=("init",), attackers=("LLG",)
    ...     ),
    ... )
    >>> [row] = evaluate(study).rows
    >>> row.worst_attack, row.worst_asr > row.blind_asr
    ('LLG', True)

    Raises:
        UnusableInputError: The study, its data or its model cannot be used.
        StoppedStudyError: Something failed after the first row; it holds the finished rows.
        InterruptedStudyError: Ctrl-C; a ``KeyboardInterrupt`` that holds the finished rows.
    """
    if jobs < 1:
        raise UnusableInputError(f"jobs must be a whole number of at least 1, got {jobs!r}")
    progress = Silent() if progress is None else progress
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    bench = prepare(study, data=data, factory=factory)
    rows: list[Row] = []

    def report(complete: bool) -> Report:
        taken = time.perf_counter() - start
        facts = provenance(bench, command=command, started=started, seconds=taken)
        facts["warnings"] = [
            *broken_certificates(rows),
            *weak_deltas(rows, len(bench.parts.client)),
            *weak_attacks(study.defenses, rows),
            *weak_pooling(rows),
        ]
        facts["certificates"] = certificates_sentence(rows) or "none: no row has a certificate"
        return Report(study.to_dict(), tuple(rows), facts, complete)

    try:
        _run(bench, rows, progress, jobs)
    except KeyboardInterrupt as interrupt:
        raise InterruptedStudyError(report(complete=False)) from interrupt
    except Exception as error:
        if not rows:
            raise
        # Whatever went wrong with this row, hours may lie behind the others.
        raise StoppedStudyError(report(complete=False)) from error
    return report(complete=True)


def cells(study: Study) -> list[Cell]:
    """The conditions of a study, in the order in which they are worked through."""
    spec = study.attack
    return [
        Cell(stage, composition, size, rounds)
        for stage in spec.stages
        for composition in spec.compositions
        for size in spec.batch_sizes
        for rounds in spec.rounds
    ]


def _run(bench: Bench, rows: list[Row], progress: Progress, jobs: int) -> None:
    """Fill ``rows`` one by one, so that an interruption keeps what is finished."""
    study = bench.study
    conditions = cells(study)
    defenses, repeats = study.defenses, study.training.seeds
    fits = len(conditions) * study.attacked_seeds * len(bench.attacks)
    needs = {name: attack.needs for name, attack in bench.attacks.items()}
    # A piece is one training run, or one attack fitted to one model under one defence.
    pieces = len(defenses) * (repeats + fits)
    undefended = repeats if "trained" in study.attack.stages else 0
    progress.begin(pieces + undefended)
    with working(bench, conditions, progress, jobs=jobs) as work:
        # After the workers were started: loading their libraries takes them as long as this.
        for repeat in range(undefended):
            progress.doing(f"training without a defence, seed {repeat + 1}")
            bench.undefended(repeat)
            progress.advance()
        for cell in conditions:
            for defense in defenses:
                cost, scores = work.cost(defense), work.scores(cell, defense)
                seed = bench.seed("intervals", cell.stage, cell.composition, cell.batch_size)
                promised = guarantees(bench, cell, defense)
                rows.append(
                    make_row(
                        defense, cell, scores, cost, needs=needs, seed=seed, guaranteed=promised
                    )
                )
