"""What attacks read of recorded traffic, as data, and ``observed.json``.

A file of its own and no ``report.json``: nothing here is known of accuracy or cost, messages are
few and share clients, and a gate judges studies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gradguard.evaluation.decisions.playing import BASELINE_NAMES
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.views.sentences import NOTICEABLE

SCHEMA = "observed 1"
VIEWS = ("all", "round", "client", "pooled", "cohort")
LEAKS, NOT_SHOWN, UNCLEAR, NOT_MEASURED = "leaks", "not shown", "unclear", "not measured"
FEW = 20
"""Independent observations below which an interval is called wide."""


@dataclass(frozen=True)
class ObservedScore:
    """One attack on one row, with 95 % intervals.

    Args:
        surely: The lower end of ``advantage_ci`` if the intervals of all attacks that look are to
            hold at once: of many attacks, one is above chance by chance.
    """

    asr: float
    ci: Interval
    advantage: float
    advantage_ci: Interval
    surely: float


@dataclass(frozen=True, kw_only=True)
class ObservedRow:
    """Some recorded messages, seen in one way.

    Args:
        view: ``"all"`` is every message by itself, ``"round"`` and ``"client"`` those of one
            round or client, ``"pooled"`` each client's messages over the rounds as one, and
            ``"cohort"`` all messages of a round as one.
        of: Which round or client; empty for the others.
        messages: Observations scored; of a cohort its rounds.
        independent: How many of them are independent; the rest are about the same labels again.
        batch_sizes: Examples behind the messages, least and most.
        cohort: Clients whose messages are in a mean, least and most.
        attacks: Scores by attack, blind baselines included.
        skipped: Why other attacks have none: no low score.
        worst_attack: The best on simulated messages of the attacks that look. A blind guess is
            above itself by nothing, with an interval of no width: chosen, it would hide a leak.
        blind_asr: Of the best guess without looking, on the same messages.
        unlike: Messages unlike all simulated ones; ``example`` says in what the first is.
        alarming: Whether these are more than tolerable, or than chance explains: a low rate is
            then none of theirs.
    """

    view: str
    of: str = ""
    messages: int
    independent: int
    batch_sizes: tuple[int, int]
    cohort: tuple[int, int] = (1, 1)
    attacks: dict[str, ObservedScore]
    skipped: dict[str, str]
    worst_attack: str
    blind_asr: float
    unlike: int = 0
    example: str = ""
    alarming: bool = False

    @property
    def worst(self) -> ObservedScore:
        """The worst attack's score."""
        return self.attacks[self.worst_attack]

    @property
    def looking(self) -> dict[str, ObservedScore]:
        """The scores of the attacks that look at messages: no blind baselines."""
        return {n: score for n, score in self.attacks.items() if n not in BASELINE_NAMES}

    @property
    def shown_attack(self) -> str:
        """The worst attack; where it does not leak and another surely does, that one."""
        surest = max(self.looking, key=lambda name: self.looking[name].surely, default="")
        if self.worst.advantage_ci[0] > NOTICEABLE or not surest:
            return self.worst_attack
        return surest if self.looking[surest].surely > NOTICEABLE else self.worst_attack

    @property
    def shown(self) -> ObservedScore:
        """The score of :attr:`shown_attack`."""
        return self.attacks[self.shown_attack]

    @property
    def verdict(self) -> str:
        """``"leaks"``, ``"not shown"``, ``"unclear"`` or ``"not measured"``.

        It leaks where the worst attack's whole interval is above ``NOTICEABLE``, or another's
        that is widened for the number of attacks (``surely``). It is not measured where no attack
        that looks could be mounted. It is not shown
        to where that of every attack ends at or below it, even if messages that are unlike all
        simulated ones can be read whole; where these are too many, a low rate says nothing, and
        it is not measured.
        """
        if not self.looking:
            return NOT_MEASURED
        if self.worst.advantage_ci[0] > NOTICEABLE or self.shown_attack != self.worst_attack:
            return LEAKS
        if self.alarming:
            return NOT_MEASURED
        highest = max(score.advantage_ci[1] for score in self.attacks.values())
        return NOT_SHOWN if highest + self.unlike / self.messages <= NOTICEABLE else UNCLEAR

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ObservedRow:
        """The row that :meth:`ObservedReport.to_json` wrote."""
        values = {f.name: table[f.name] for f in fields(cls)}
        values["attacks"] = {
            name: ObservedScore(
                *(s["asr"], tuple(s["ci"]), s["advantage"], tuple(s["advantage_ci"]), s["surely"])
            )
            for name, s in values["attacks"].items()
        }
        for name in ("batch_sizes", "cohort"):
            values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ObservedReport:
    """What was read of a recording.

    Args:
        study: The study as plain data, with the one defence that was deployed.
        rows: By view.
        left_out: Why a view has no row, or not of all messages, by view.
        rounds, clients, messages: Of the recording, whether scored or not.
        without_labels: Messages without a recorded truth, which are not scored.
        refused: Messages that the server could not read.
        notes: What else a reader has to know.
        complete: Whether every round was attacked.
        provenance: Versions, seed, command, time taken.
    """

    study: dict[str, Any]
    defense: str
    rows: tuple[ObservedRow, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    rounds: int
    clients: int
    messages: int
    without_labels: int
    refused: int
    notes: tuple[str, ...] = ()
    complete: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    def of_view(self, view: str) -> tuple[ObservedRow, ...]:
        """The rows of one view."""
        return tuple(row for row in self.rows if row.view == view)

    def to_json(self) -> str:
        """Strict JSON, with every row's verdict."""
        rows = [
            asdict(row) | {"shown_attack": row.shown_attack, "verdict": row.verdict}
            for row in self.rows
        ]
        table = {"schema": SCHEMA} | asdict(self) | {"rows": rows}
        return json.dumps(table, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ObservedReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            UnusableInputError: It is no such report.
        """
        try:
            table = json.loads(text)
            if table["schema"] != SCHEMA:
                raise UnusableInputError(
                    f"expected schema {SCHEMA!r}, got {table['schema']!r}; give an observed.json"
                )
            values = {f.name: table[f.name] for f in fields(cls)}
            values["rows"] = tuple(ObservedRow.from_dict(row) for row in table["rows"])
            return cls(**values | {"notes": tuple(values["notes"])})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UnusableInputError(f"not a report on traffic: {one_line(error)}") from error


def read_observed(path: Path) -> ObservedReport:
    """The report in an ``observed.json``."""
    try:
        return ObservedReport.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInputError(f"{path}: cannot be read: {one_line(error)}") from error
