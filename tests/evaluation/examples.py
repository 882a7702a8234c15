"""Small studies, data and rows that the tests of the evaluation share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradguard import DPSGD, Defense
from gradguard.evaluation import AttackScore, Report, Row
from gradguard.evaluation.certificates.certify import certify
from gradguard.evaluation.cli import main
from gradguard.evaluation.knowledge import LEVELS
from gradguard.evaluation.report import KnowledgeScore

STUDY: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "mlp"},
    "training": {"steps": 4, "batch_size": 16, "seeds": 2},
    "attack": {
        "batch_sizes": [4],
        "compositions": ["skewed"],
        "stages": ["init"],
        "trials": 6,
        "calibration": 6,
        "attackers": ["LLG"],
    },
    "defense": [
        {"name": "none", "transform": []},
        {"name": "top-k", "transform": [{"KeepTopK": {"ratio": 0.01, "scope": "global"}}]},
    ],
}

NONE = Defense("none", transform=[])


def study_with(**sections: Any) -> dict[str, Any]:
    """:data:`STUDY` with some keys of some sections replaced."""
    table = dict(STUDY)
    for name, values in sections.items():
        old = table.get(name)
        table[name] = old | values if isinstance(old, dict) and values else values
    return table


def write_npz(path: Path, **changes: Any) -> Path:
    """Random 8 x 8 images of four classes; an array given as ``None`` is left out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "images": rng.integers(0, 256, (200, 8, 8), dtype=np.uint8),
        "labels": np.arange(200) % 4,
    }
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def row(**changes: Any) -> Row:
    """A plausible row."""
    values: dict[str, Any] = {
        "defense": "top-k 1 %",
        "composition": "skewed",
        "stage": "init",
        "batch_size": 8,
        "accuracy": 0.9,
        "accuracy_ci": (0.88, 0.92),
        "accuracy_seeds": (0.89, 0.91),
        "diverged": False,
        "bytes_per_update": 32.0,
        "dense_bytes": 400,
        "step_overhead": 1.2,
        "attacks": {
            "BestConstant": AttackScore(0.4, (0.35, 0.45), 0.0),
            "LLG": AttackScore(0.7, (0.65, 0.75), 0.5),
        },
        "skipped": {},
        "worst_attack": "LLG",
        "worst_asr": 0.7,
        "worst_ci": (0.65, 0.75),
        "blind_asr": 0.4,
        "advantage": 0.5,
        "advantage_ci": (0.4, 0.6),
    }
    return Row(**(values | changes))


def informed(*rates: float, **changes: Any) -> Row:
    """A plausible row with a success rate for every level of knowledge, read by ``"A0"``, ..."""
    knowledge = {
        level: KnowledgeScore(f"A{i}", rate, (rate - 0.02, rate + 0.02), (rate - 0.4) / 0.6)
        for i, (level, rate) in enumerate(zip(LEVELS, rates, strict=True))
    }
    return row(knowledge=knowledge, **changes)


def certified(noise: float = 4.0, *, rate: float = 0.1, **changes: Any) -> Row:
    """A plausible row of DP-SGD, with its certificate."""
    values: dict[str, Any] = {"composition": "iid", "defense": "DP-SGD"}
    values |= {"epsilon": 1.25, "delta": 1e-5} | changes
    certificate = certify(
        DPSGD(noise_multiplier=noise, max_grad_norm=1.0),
        composition=values["composition"],
        batch_size=8,
        label_prior=[0.1] * 10,
        training_releases=100,
        sample_rate=rate,
    )
    return row(**values, certificate=certificate)


def report(*rows: Row, **changes: Any) -> Report:
    """A report of ``rows`` with the provenance that the renderers read."""
    provenance = {
        "method": "As described.",
        "wall_seconds": 1.0,
        "data": {"name": "digits"},
        "models_attacked": 2,
        "batches_per_row": {"scored": 6, "calibration": 6, "simulated_per_seed": 0},
    }
    study = {"training": {"seeds": 2}, "defense": []}
    return Report(**({"study": study, "rows": rows, "provenance": provenance} | changes))


def run(*arguments: str | Path) -> int:
    """The exit code of the command, run in this process and no other."""
    if arguments[0] == "evaluate" and "--jobs" not in arguments:
        arguments = (*arguments, "--jobs", "1")
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return code
