"""Leakage against knowledge: from the gradient alone to the client's own code.

The attacker's images are a part of the 8,000 of MNIST that no client holds: 20 or 100 of each
class, or all, which is about 290 of each. A thousand of each class are not to be had of so few.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

from benchmarks.mnist import mnist_path
from benchmarks.rows import attacked_row, one_thread
from benchmarks.table import print_table
from gradguard.evaluation import Study
from gradguard.evaluation.knowledge import LEVELS
from gradguard.evaluation.report import KnowledgeScore, Row
from gradguard.evaluation.running.bench import prepare
from gradguard.evaluation.running.units import cells

DEFENCES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "top-k 0.1 %": [{"KeepTopK": {"ratio": 0.001, "scope": "global"}}],
    "noise 0.1": [{"AddGaussian": {"stddev": 0.1}}],
}
AUXILIARY: dict[str, dict[str, Any]] = {
    "20 per class": {"auxiliary_per_class": 20},
    "100 per class": {"auxiliary_per_class": 100},
    "all": {},
    "all, noised": {"auxiliary_shift": "noise"},
    "all, blurred": {"auxiliary_shift": "blur"},
    "all, inverted": {"auxiliary_shift": "invert"},
    "all, rotated": {"auxiliary_shift": "rotate"},
}
AMOUNTS = ("20 per class", "100 per class", "all")
"""Each has the images of the one before."""

Found = dict[str, list[Row]]


def main(*, seeds: int = 3, simulated: int = 400, scored: int = 300, steps: int = 1000) -> bool:
    """Print a table per stage; true if more knowledge and more images never read less.

    Compared where intervals do not overlap: what is chosen on calibration batches may be a little
    less good on others.

    Args:
        seeds: Models per row.
        simulated: Batches that learned attacks fit on; 30 % more judge.
        scored: Scored batches per row, over all seeds; half as many calibrate.
        steps: Of training, for the rows of trained models.
    """
    work = partial(_attacked, seeds, simulated, scored, steps)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(AUXILIARY, pool.map(work, AUXILIARY), strict=True))
    trained = {"init": "untrained", "trained": f"trained for {steps:,} steps"}
    stages = list(dict.fromkeys(row.stage for row in found["all"]))
    for stage in stages:
        here = [i for i, row in enumerate(found["all"]) if row.stage == stage]
        blind = found["all"][here[0]].blind_asr  # the same batches in every row
        print_table(
            f"MNIST, cnn-relu, skewed, B = 8, {seeds} models, {simulated} simulated and "
            f"{scored} scored batches; {trained[stage]}; blind {blind:.2f}",
            ["defence", "images", *LEVELS],
            [
                [rows[i].defense, name, *map(_text, _levels(rows[i]))]
                for i in here
                for name, rows in found.items()
            ],
        )
    worse = [*_worse_with_knowledge(found), *_worse_with_images(found)]
    for sentence in worse:
        print(f"   {sentence}")
    return not worse


def _attacked(seeds: int, simulated: int, scored: int, steps: int, auxiliary: str) -> list[Row]:
    one_thread()
    study = _study(seeds, simulated, scored, steps, AUXILIARY[auxiliary])
    bench = prepare(study)
    return [
        attacked_row(bench, cell, defense) for cell in cells(study) for defense in study.defenses
    ]


def _study(seeds: int, simulated: int, scored: int, steps: int, auxiliary: dict[str, Any]) -> Study:
    return Study.from_dict(
        {
            "data": {"path": str(mnist_path()), "test_fraction": 0.1, "client_fraction": 0.6},
            "model": {"name": "cnn-relu"},
            "training": {"steps": steps, "learning_rate": 0.1, "momentum": 0.0, "seeds": seeds},
            "attack": {
                "batch_sizes": [8],
                "compositions": ["skewed"],
                "stages": ["init", "trained"],
                "trials": scored,
                "calibration": max(1, scored // 2),
                "simulated": simulated,
                **auxiliary,
            },
            "defense": [{"name": name, "transform": spec} for name, spec in DEFENCES.items()],
        }
    )


def _levels(row: Row) -> list[KnowledgeScore]:
    return [row.knowledge[level] for level in LEVELS]


def _text(score: KnowledgeScore) -> str:
    return f"{score.asr:.2f} ({score.ci[0]:.2f}-{score.ci[1]:.2f})"


def _worse_with_knowledge(found: Found) -> list[str]:
    return [
        f"{row.defense}, {row.stage}, {name}: {more} reads less than {less}"
        for name, rows in found.items()
        for row in rows
        for less, more in pairwise(LEVELS)
        if row.knowledge[more].ci[1] < row.knowledge[less].ci[0]
    ]


def _worse_with_images(found: Found) -> list[str]:
    return [
        f"{few.defense}, {few.stage}: with {more} less is read than with {less}"
        for less, more in pairwise(AMOUNTS)
        for few, many in zip(found[less], found[more], strict=True)
        if many.worst_ci[1] < few.worst_ci[0]
    ]
