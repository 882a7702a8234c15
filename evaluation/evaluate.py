"""Play client against attacker, for every defence of a study."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gradguard.evaluation.certificates.law import (
    broken_certificates,
    certificates_sentence,
    weak_deltas,
)
from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError, unknown
from gradguard.evaluation.interruption import uninterrupted
from gradguard.evaluation.models import Factory
from gradguard.evaluation.nesting import weak_attacks, weak_pooling
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.provenance import provenance
from gradguard.evaluation.report import Report, Row
from gradguard.evaluation.running.assemble import Results, assembled
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.running.keys import Keys
from gradguard.evaluation.running.pool import (
    BACKENDS,
    Backend,
    Failures,
    one_thread,
    run_elsewhere,
    run_here,
)
from gradguard.evaluation.running.store import Store
from gradguard.evaluation.running.units import Undefended, Unit, tasks_of
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
    jobs: int = 1,
    backend: Backend = "loky",
    ray_address: str | None = None,
    store: Path | None = None,
    resume: bool = False,
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
    - a study and seed give the same report on the same machine, times aside, whatever ``jobs``
      and ``backend``;
    - what was finished when the process ended, however it ended, is never computed again with
      ``resume``; nor is what another study has computed in the same ``store``;
    - a row that cannot be made is one of ``failures``, with its reason; the others are made.

    Args:
        data: Instead of what ``study.data`` names, for data that is not in an ``.npz``.
        factory: Instead of what ``study.model`` names.
        progress: Told what is being done; silent when not given.
        command: Recorded in the report.
        jobs: Processes to work in. More than one gives the same report in less time; a script
            that asks for it needs the usual ``if __name__ == "__main__":``.
        backend: ``"loky"``, processes of this machine, or ``"ray"``.
        ray_address: ``host:port`` of a Ray cluster; without it one is started on this machine.
        store: A folder for finished units of work; a temporary one when not given. For a cluster
            all of its machines must see it.
        resume: Take from ``store`` what is there. Without it everything is computed anew, but for
            models trained without a defence, and replaces what is there.

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
        UnusableInputError: The study, its data or its model cannot be used, or no row could be
            made; the message has the first reason.
        InterruptedStudyError: Ctrl-C; a ``KeyboardInterrupt`` that holds the finished rows.
    """
    if jobs < 1:
        raise UnusableInputError(f"jobs must be a whole number of at least 1, got {jobs!r}")
    if backend not in BACKENDS:
        raise unknown("backend", str(backend), BACKENDS)
    if ray_address is not None and backend != "ray":
        raise UnusableInputError("an address of a Ray cluster goes with the backend 'ray'")
    if ray_address is not None and store is None:
        raise UnusableInputError(
            "a Ray cluster needs a store: a folder for results that all of its machines see"
        )
    progress = Silent() if progress is None else progress
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    # Before the folder is made: a study that cannot be used leaves nothing behind.
    with one_thread():
        bench = prepare(study, data=data, factory=factory)
    with one_thread(), _folder(store) as folder:
        made = Keys(bench)
        keys = {unit: made.of(unit) for task in tasks_of(study, jobs=1) for unit in task}

        def report(failures: Failures, *, complete: bool) -> Report:
            results = assembled(bench, Results(folder, keys, failures))
            taken = time.perf_counter() - start
            facts = provenance(
                *(bench, results.attacked_accuracies),
                command=command,
                started=started,
                seconds=taken,
            )
            facts |= {"jobs": jobs, "backend": backend}
            facts |= _judged(study, bench, results.rows)
            return Report(study.to_dict(), results.rows, facts, complete, results.failures)

        failures: Failures = {}
        try:
            failures = _run(bench, folder, keys, progress, jobs, backend, ray_address, resume)
            finished = report(failures, complete=True)
        except KeyboardInterrupt as interrupt:
            with uninterrupted():
                raise InterruptedStudyError(report(failures, complete=False)) from interrupt
    if not finished.rows:
        raise UnusableInputError(finished.failures[0].why)
    return finished


@contextlib.contextmanager
def _folder(path: Path | None) -> Iterator[Store]:
    with contextlib.ExitStack() as stack:
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradguard-")))
        store = Store(path)
        stack.enter_context(store.opened())
        yield store


def _run(
    bench: Bench,
    store: Store,
    keys: dict[Unit, str],
    progress: Progress,
    jobs: int,
    backend: Backend,
    address: str | None,
    resume: bool,
) -> Failures:
    """Compute what is not there; why units failed."""
    # Without resume all is computed anew, and replaces what is there when it comes: nothing is
    # deleted beforehand, for whoever forgot to say so may want it back.
    there = {unit for unit in keys if resume and _is_there(store, unit, keys[unit])}
    progress.begin(len(keys), done=len(there))
    damaged = sum(resume and store.path(keys[unit]).exists() for unit in keys.keys() - there)
    if damaged:
        progress.note(
            f"{damaged} of the results in {store.folder} cannot be believed: cut short, changed, "
            "or of something else; they are computed anew"
        )
    cut = (tuple(u for u in task if u not in there) for task in tasks_of(bench.study, jobs=jobs))
    left = [task for task in cut if task]
    if not left:
        return {}
    if jobs == 1 and backend == "loky":
        return run_here(bench, store, left, keys, progress)
    return run_elsewhere(
        *(bench, store, left, keys, progress),
        jobs=jobs,
        backend=backend,
        address=address,
    )


def _is_there(store: Store, unit: Unit, key: str) -> bool:
    if isinstance(unit, Undefended):
        return store.read_tensors(key) is not None
    return store.has(key)


def _judged(study: Study, bench: Bench, rows: Sequence[Row]) -> dict[str, object]:
    """What the rows say about one another."""
    warnings = [
        *broken_certificates(rows),
        *weak_deltas(rows, len(bench.parts.client)),
        *weak_attacks(study.defenses, rows),
        *weak_pooling(rows),
    ]
    certificates = certificates_sentence(rows) or "none: no row has a certificate"
    return {"warnings": warnings, "certificates": certificates}
