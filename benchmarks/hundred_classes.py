"""A hundred classes: the attackers keep their order, and no post-processing leaks more.

There is no set of images with a hundred classes at hand. Each digit of MNIST is divided into ten
clusters by k-means (scikit-learn) on its pixels, and a model is trained to tell the hundred apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

from benchmarks.mnist import mnist_path
from benchmarks.rows import attacked_row, best_published, is_worst, one_thread
from benchmarks.table import print_table
from gradguard.evaluation import Study, load_npz
from gradguard.evaluation.data import Data
from gradguard.evaluation.nesting import weak_attacks
from gradguard.evaluation.report import Row
from gradguard.evaluation.running.bench import Cell, prepare
from gradguard.evaluation.running.units import cells

CLUSTERS = 10
DEFENCES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "top-k 1 %": [{"KeepTopK": {"ratio": 0.01, "scope": "global"}}],
    "sign": [{"Sign": {}}],
}
HEADER = ["B", "defence", "blind", "LLG", "LLG+", "best published", "worst case", "who", "met"]


def main(
    *,
    seeds: int = 2,
    simulated: int = 300,
    scored: int = 200,
    steps: int = 1000,
    sizes: Sequence[int] = (64, 8),
) -> bool:
    """Print a table per stage and composition; true if every law holds in every row.

    Args:
        seeds: Models per row.
        simulated: Batches that learned attacks fit on; 30 % more judge.
        scored: Scored batches per row, over all seeds; half as many calibrate.
        steps: Of training, for the rows of trained models.
        sizes: Batch sizes, the slower ones first.
    """
    data = clustered(load_npz(mnist_path()))
    study = _study(seeds, simulated, scored, steps, sizes)
    conditions = sorted(cells(study), key=lambda cell: -cell.batch_size)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(partial(_attacked, study, data), conditions))
    rows = sorted(
        (row for part in parts for row in part),
        key=lambda row: (row.stage, row.composition, row.batch_size),
    )
    for stage, mix in dict.fromkeys((row.stage, row.composition) for row in rows):
        print_table(
            f"{stage}, {mix}: MNIST in {data.num_classes} clusters, cnn-relu, {seeds} models, "
            f"{simulated} simulated and {scored} scored batches",
            HEADER,
            [_line(row) for row in rows if (row.stage, row.composition) == (stage, mix)],
        )
    trained = [row.accuracy for row in rows if row.stage == "trained"]
    print(f"   test accuracy after {steps:,} steps: {np.mean(trained):.2f}")
    weak = weak_attacks(study.defenses, rows)
    for sentence in weak:
        print(f"   too weak: {sentence}")
    return not weak and all(is_worst(row) for row in rows)


def clustered(data: Data) -> Data:
    """Every class divided into ``CLUSTERS`` classes by k-means on its pixels."""
    labels = np.zeros(len(data), dtype=np.int64)
    for digit in range(data.num_classes):
        members = np.flatnonzero(data.labels.numpy() == digit)
        pixels = data.images[torch.from_numpy(members)].flatten(1).numpy()
        found = KMeans(CLUSTERS, n_init=1, random_state=0).fit_predict(pixels)
        labels[members] = CLUSTERS * digit + found
    return Data(
        f"{data.name} in clusters",
        data.images,
        torch.from_numpy(labels),
        CLUSTERS * data.num_classes,
    )


def _study(seeds: int, simulated: int, scored: int, steps: int, sizes: Sequence[int]) -> Study:
    return Study.from_dict(
        {
            "data": {"test_fraction": 0.1, "client_fraction": 0.6},
            "model": {"name": "cnn-relu"},
            "training": {"steps": steps, "learning_rate": 0.1, "momentum": 0.0, "seeds": seeds},
            "attack": {
                "batch_sizes": list(sizes),
                "compositions": ["skewed", "iid"],
                "stages": ["init", "trained"],
                "trials": scored,
                "calibration": max(1, scored // 2),
                "simulated": simulated,
            },
            "defense": [{"name": name, "transform": spec} for name, spec in DEFENCES.items()],
        }
    )


def _attacked(study: Study, data: Data, cell: Cell) -> list[Row]:
    """All defences in one process: the raw gradients of the cell are shared."""
    one_thread()
    bench = prepare(study, data=data)
    return [attacked_row(bench, cell, defense) for defense in study.defenses]


def _line(row: Row) -> list[str]:
    best, rate = best_published(row)
    low, high = row.worst_ci
    return [
        *(str(row.batch_size), row.defense, f"{row.blind_asr:.2f}"),
        *(f"{row.attacks[name].asr:.2f}" for name in ("LLG", "LLGPlus")),
        f"{rate:.2f} {best}",
        f"{row.worst_asr:.2f} ({low:.2f}-{high:.2f})",
        row.worst_attack,
        "yes" if is_worst(row) else "NO",
    ]
