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
    """A row of which nothing is read: all is well up to an advantage of 0.1."""
    scores = {
        "BestConstant": AttackScore(BLIND, (0.35, 0.45), 0.0),
        "LLG": scored(0.42, (0.40, 0.44)),
    }
    values: dict[str, Any] = {
        "attacks": scores,
        "worst_attack": "LLG",
        "worst_asr": 0.42,
        "worst_ci": (0.40, 0.44),
        "blind_asr": BLIND,
        "advantage": advantage(0.42, BLIND),
        "advantage_ci": (0.0, 0.08),
    }
    return row(**(values | changes))


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
    sound = replace(made, provenance=made.provenance | {"batches_per_row": counts})
    return replace(sound, **changes)
