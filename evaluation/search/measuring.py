"""Measuring candidates: one evaluation a batch, whose finished cells are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradguard import Defense
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.evaluate import evaluate
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.report import Failure, Report
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.running.keys import data_digest
from gradguard.evaluation.running.preflight import check_defenses
from gradguard.evaluation.running.units import cells
from gradguard.evaluation.search.objectives import Candidate, candidates
from gradguard.evaluation.study import Study


@dataclass(frozen=True)
class Meter:
    """Measures defences under the conditions of one study.

    A defence that cannot be used with the study's model is a failure with its reason, and the
    others are measured.

    Args:
        study: Its own defences must be usable. They are part of every report.
        store: Folder for finished cells, which are not computed again.
        progress: Makes one progress for each evaluation.
        options: Further arguments of :func:`gradguard.evaluation.evaluate`.

    Raises:
        UnusableInputError: The study itself cannot be used.
    """

    study: Study
    store: Path
    progress: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(Silent())
    options: dict[str, Any] = field(default_factory=dict)
    bench: Bench = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bench", prepare(self.study))

    @property
    def data(self) -> str:
        """A digest of the images and labels that candidates are measured on."""
        return data_digest(self.bench.data)

    def __call__(self, defenses: Sequence[Defense]) -> list[Candidate]:
        """What is measured of each, in their order."""
        return candidates(self.report(defenses), defenses)

    def report(self, defenses: Sequence[Defense]) -> Report:
        """A report on the study's defences and on these; its failures have what is unusable."""
        why = {defense.name: self._unusable(defense) for defense in defenses}
        usable = tuple(defense for defense in defenses if why[defense.name] is None)
        # Of a study without any row nobody could say whether it is the study that is at fault.
        # What the study has itself was measured with the first batch, and lies in the store.
        known = tuple(defense for defense in self.study.defenses if defense not in usable)
        failures = tuple(
            Failure(
                defense=defense.name,
                composition=cell.composition,
                stage=cell.stage,
                batch_size=cell.batch_size,
                rounds=cell.rounds,
                why=str(why[defense.name]),
            )
            for cell in cells(self.study)
            for defense in defenses
            if why[defense.name] is not None
        )
        described = replace(self.study, defenses=(*known, *defenses)).to_dict()
        with self.progress() as progress:
            report = evaluate(
                replace(self.study, defenses=(*known, *usable)),
                progress=progress,
                store=self.store,
                resume=True,
                **self.options,
            )
        return replace(report, study=described, failures=(*report.failures, *failures))

    def _unusable(self, defense: Defense) -> str | None:
        try:
            alone = replace(self.study, defenses=(defense,))
            check_defenses(alone, self.bench.fresh_model(0), self.bench.data)
        except UnusableInputError as error:
            return one_line(error)
        return None
