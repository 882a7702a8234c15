"""Reports that can be judged, of plausible rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradguard.evaluation import AttackScore, Report, Row
from gradguard.evaluation.decisions.judgeable import conditions
from gradguard.evaluation.metrics import Interval, advantage
from tests.evaluation.examples import report, row

BLIND = 0.4


def quiet(**changes: Any) -> Row:
    """A row of which nothing is read: all is well up to an advantage of 0.1.

    What follows from the changes is changed with them, as in a real row.
    """
    given = dict(changes)
    if "advantage" in given:
        given.setdefault("worst_asr", BLIND + (1 - BLIND) * given["advantage"])
    name = given.setdefault("worst_attack", "LLG")
    score = given.get("attacks", {}).get(name, scored(0.42, (0.40, 0.44)))
    rate = given.setdefault("worst_asr", score.asr)
    given.setdefault("worst_ci", score.ci if rate == score.asr else _around(rate))
    blind = AttackScore(BLIND, (0.35, 0.45), 0.0)
    values: dict[str, Any] = {
        "attacks": {"BestConstant": blind, name: scored(rate, given["worst_ci"])},
        "blind_asr": BLIND,
        "advantage": advantage(rate, BLIND),
    } | given
    above = values["advantage"]
    values.setdefault("advantage_ci", (min(0.0, above), max(0.08, above)))
    if "accuracy" in given:
        values.setdefault("accuracy_ci", _around(given["accuracy"]))
    return row(**values)


def _around(share: float) -> Interval:
    return max(share - 0.02, 0.0), min(share + 0.02, 1.0)


def scored(rate: float, interval: Interval) -> AttackScore:
    """An attack's score over the blind guess of :func:`quiet`."""
    return AttackScore(rate, interval, advantage(rate, BLIND))


def judgeable(*rows: Row, **changes: Any) -> Report:
    """A whole report of the rows, whose study asked for no more than their conditions."""
    where = [conditions(one) for one in rows]
    study = {
        "seed": 0,
        "training": {"seeds": 2},
        "attack": {
            "stages": list(dict.fromkeys(c.stage for c in where)) or ["init"],
            "compositions": list(dict.fromkeys(c.composition for c in where)) or ["iid"],
            "batch_sizes": list(dict.fromkeys(c.batch_size for c in where)) or [8],
            "rounds": list(dict.fromkeys(c.rounds for c in where)) or [1],
        },
        "defense": [
            {"name": name, "transform": []} for name in dict.fromkeys(one.defense for one in rows)
        ],
    }
    made = report(*rows, study=study)
    counts = {"scored": 100, "calibration": 50, "simulated_per_seed": 0}
    data = {"name": "digits", "client": 50}
    described = made.provenance | {"batches_per_row": counts, "data": data}
    sound = replace(made, provenance=described)
    return replace(sound, **changes)
