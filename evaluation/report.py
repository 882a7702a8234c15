"""The result of a study as data: rows, where they come from, and ``report.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.metrics import Interval

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class AttackScore:
    """One attack on one row: success rate, its 95 % interval, and the advantage over blind."""

    asr: float
    ci: Interval
    advantage: float


@dataclass(frozen=True)
class KnowledgeScore:
    """The best attack of those that an attacker with some knowledge can run, and its score.

    Args:
        attack: Chosen on calibration batches among the attacks that need no more.
        asr: Its success rate on the scored batches.
        ci: The 95 % interval of that.
        advantage: Over a blind guess.
    """

    attack: str
    asr: float
    ci: Interval
    advantage: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One defence under one composition, stage and batch size.

    Args:
        rounds: How many messages the server pools, all computed from the same batch.
        accuracy: Mean test accuracy of training with the defence; a diverged run counts as 0.
        accuracy_ci: 95 % t-interval over seeds; ``None`` from one seed.
        accuracy_seeds: The accuracies behind it.
        diverged: At least one training run stopped being finite.
        bytes_per_update: Mean length of a client's encoded message, see
            :func:`gradguard.evaluation.message_size.bytes_per_update`; ``None`` in reports that
            were written before it was measured.
        dense_bytes: Size of the gradient as float32.
        step_overhead: Time of a defended training step over that of a bare one.
        attacks: Scores by attack name, blind baselines included.
        skipped: Reason by name for attacks that cannot be mounted here. Not a low score.
        worst_attack: The best attack on calibration batches.
        worst_asr: Its success rate on the scored batches, which share no image with those.
        blind_asr: Success rate of the best guess without looking, on the same scored batches.
        advantage: ``(worst_asr - blind_asr) / (1 - blind_asr)``.
        knowledge: The worst case by what the attacker knows, by the names of
            :data:`gradguard.evaluation.knowledge.LEVELS`; the last is the worst attack. Empty in
            reports that were written before it was measured.
        epsilon: Of a training run with the defence, at ``delta``, for one record added or
            removed; no less than that of the attacked rounds where these are several; an
            upper value, and infinite where there is none. ``None`` without
            differential privacy, as are the next two.
        delta: See ``epsilon``.
        certificate: Upper bounds on what any attacker reads; see
            :func:`gradguard.evaluation.certificates.certify.certify`.
    """

    defense: str
    composition: str
    stage: str
    batch_size: int
    rounds: int = 1
    accuracy: float
    accuracy_ci: Interval | None
    accuracy_seeds: tuple[float, ...]
    diverged: bool
    bytes_per_update: float | None = None
    dense_bytes: int
    step_overhead: float
    attacks: dict[str, AttackScore]
    skipped: dict[str, str]
    worst_attack: str
    worst_asr: float
    worst_ci: Interval
    blind_asr: float
    advantage: float
    advantage_ci: Interval
    knowledge: dict[str, KnowledgeScore] = field(default_factory=dict)
    epsilon: float | None = None
    delta: float | None = None
    certificate: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Row:
        """The row that :func:`dataclasses.asdict` wrote, through JSON or not."""
        values = dict(table)
        for key in ("accuracy_ci", "accuracy_seeds", "worst_ci", "advantage_ci"):
            values[key] = None if values[key] is None else tuple(values[key])
        values["attacks"] = {
            name: AttackScore(score["asr"], tuple(score["ci"]), score["advantage"])
            for name, score in values["attacks"].items()
        }
        values["knowledge"] = {
            level: KnowledgeScore(
                found["attack"], found["asr"], tuple(found["ci"]), found["advantage"]
            )
            for level, found in (values.get("knowledge") or {}).items()
        }
        if values.get("epsilon") == "inf":
            values["epsilon"] = math.inf
        # A later gradguard may write more into a row; what is known here is still readable.
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A row that could not be made, and why: no number at all, which is no low one."""

    defense: str
    composition: str
    stage: str
    batch_size: int
    rounds: int = 1
    why: str


@dataclass(frozen=True)
class Report:
    """What a study found.

    Args:
        study: The study as plain data.
        rows: In the order of the study.
        provenance: Versions, seed, command, numbers of batches, time taken.
        complete: Whether every row of the study is there, or its failure.
        failures: Rows that could not be made.
    """

    study: dict[str, Any]
    rows: tuple[Row, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    failures: tuple[Failure, ...] = ()

    def to_json(self) -> str:
        """JSON without NaN or infinity, which JSON does not have.

        An infinite bound of a defence is written ``"inf"``, as ``Defense.from_json`` reads it;
        so is an infinite epsilon.
        """
        table = {
            "schema": SCHEMA,
            "complete": self.complete,
            "study": _finite(self.study),
            "rows": [_plain(row) for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
            "provenance": self.provenance,
        }
        return json.dumps(table, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def to_frame(self) -> pd.DataFrame:
        """A pandas table with one row per row of the report, in its order.

        Columns are the conditions and the numbers of a :class:`Row`, an interval as ``..._low``
        and ``..._high``; then for every attack ``asr:NAME``, ``asr_low:NAME``, ``asr_high:NAME``
        and ``advantage:NAME``, for every level of knowledge ``knowledge:LEVEL``, and the bounds
        ``certificate:label`` and ``certificate:batch``. Shares are in [0, 1].

        Guarantees:

        - NaN stands only where there is no number: no interval from one seed, no differential
          privacy, or an attack that was not run, whose reason is in ``skipped:NAME``; an infinite
          epsilon is infinite;
        - a row that failed is no row of the table, so that no mean counts it; failures are in
          ``frame.attrs["failures"]`` as dicts, and ``frame.attrs["complete"]`` says whether the
          study came to its end. pandas keeps ``attrs`` through some operations only.

        Raises:
            UnusableInputError: pandas is not installed.

        >>> Report({}, ()).to_frame().shape[0]
        0
        """
        from gradguard.evaluation.views.frame import to_frame

        return to_frame(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what :meth:`to_json` wrote.

        Raises:
            UnusableInputError: It is not a report, or one of another schema.
        """
        try:
            table = json.loads(text)
            if table["schema"] != SCHEMA:
                raise UnusableInputError(
                    f"expected a report of schema {SCHEMA}, got {table['schema']!r}; "
                    "read it with the gradguard that wrote it"
                )
            rows = tuple(Row.from_dict(row) for row in table["rows"])
            failures = tuple(Failure(**failure) for failure in table.get("failures", []))
            return cls(table["study"], rows, table["provenance"], table["complete"], failures)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UnusableInputError(f"not a gradguard report: {one_line(error)}") from error


def _plain(row: Row) -> dict[str, Any]:
    # Only here: an infinity anywhere else is a mistake, which is not to become a report.
    plain = asdict(row) | {"epsilon": _finite(row.epsilon)}
    if row.certificate is not None:
        spent = {k: _finite(v) for k, v in row.certificate.items() if k.startswith("epsilon_")}
        plain["certificate"] = row.certificate | spent
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return "inf" if value == math.inf else value


def read_report(path: Path) -> Report:
    """The report in a ``report.json``."""
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInputError(f"{path}: cannot be read: {one_line(error)}") from error
