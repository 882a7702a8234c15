"""Which sampler finds the better front: measured on a cheap problem shaped like the real one.

``python -m tests.evaluation.search.sampler_comparison``; not a test. Four kinds of defence trade
advantage, accuracy and bytes by closed forms: noise hides and costs accuracy, sparsity saves bytes,
hides little and costs accuracy late, and the two together do both. Printed is the share of the best
hypervolume known that a sampler's front reaches, as mean and range over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from gradguard.evaluation.search.front import nondominated
from gradguard.evaluation.search.proposals import (
    Tried,
    ask,
    ask_places,
    propose,
    quiet_optuna,
    spread,
    tpe,
)
from gradguard.evaluation.search.space import Point, Space

Z = {"low": 0.25, "high": 8.0, "log": True}
CLIP = {"low": 0.1, "high": 4.0, "log": True}
RATIO = {"low": 1e-4, "high": 0.5, "log": True}
SPACE = Space.from_list(
    [
        {"name": "dp", "dp": {"noise_multiplier": Z, "max_grad_norm": CLIP}},
        {"name": "top-k", "transform": [{"KeepTopK": {"ratio": RATIO}}]},
        {"name": "qsgd", "transform": [{"Quantize": {"bits": {"low": 2, "high": 8}}}]},
        {
            "name": "dp, top-k",
            "dp": {"noise_multiplier": Z, "max_grad_norm": CLIP},
            "transform": [{"KeepTopK": {"ratio": RATIO}}],
        },
    ]
)
BATCH = 8
WORST = np.array([1.0, 0.0, math.log(2e5)])  # advantage, -accuracy, log bytes


def measured(point: Point) -> tuple[float, float, float]:
    """Advantage, minus accuracy, log bytes of a candidate, in closed form."""
    noise, clip, kept, bits = 0.0, 1.0, 1.0, 32
    if point.kind in (0, 3):
        noise, clip = point.places[:2]
    if point.kind in (1, 3):
        kept = point.places[-1]
    if point.kind == 2:
        bits = int(point.places[0])
    spoilt = noise * (0.05 + 0.03 * math.log(clip / 0.7) ** 2) if noise else 0.0
    lost = 0.15 * kept**-0.2 - 0.15 + (0.3 * 2.0**-bits)
    reads = 0.97 / (1 + noise**2 * clip**0.2) * (0.85 + 0.15 * kept**0.3)
    size = 1e5 * min(1.0, 1.6 * kept) * bits / 32
    return reads, -max(0.1, 0.97 - spoilt - lost), math.log(size)


def proposed(sampler: Callable[[int], BaseSampler], trials: int, seed: int) -> np.ndarray:
    """What a sampler that is made anew for every candidate tries."""
    tried: list[Tried] = []
    while len(tried) < trials:
        points = propose(SPACE, tried, count=BATCH, seed=seed, sampler=sampler)
        tried += [Tried(point, measured(point)) for point in points]
    return np.array([t.values for t in tried])


def evolved(trials: int, seed: int, *, population: int, flat: bool) -> np.ndarray:
    """NSGA-II, which needs one sampler throughout and marks trials with their generation.

    Args:
        flat: Every candidate has the parameters of all kinds, of which its own kind's count.
            NSGA-II crosses only what all candidates have.
    """
    study = optuna.create_study(
        directions=["minimize"] * 3, sampler=NSGAIISampler(seed=seed, population_size=population)
    )
    while len(study.trials) < trials:
        batch = [study.ask() for _ in range(BATCH)]
        for trial in batch:
            point = ask(trial, SPACE)
            for kind in range(len(SPACE.kinds)) if flat else ():
                places = ask_places(trial, SPACE, kind)
                point = Point(kind, places) if kind == point.kind else point
            study.tell(trial, measured(point))
    return np.array([trial.values for trial in study.trials])


def volume(values: np.ndarray) -> float:
    """What the front of these values dominates."""
    front = values[nondominated(values)]
    return float(compute_hypervolume(np.minimum(front, WORST), WORST))


def scattered(trials: int, seed: int) -> np.ndarray:
    """Nothing but the spread."""
    return np.array([measured(p) for p in spread(SPACE, seed=seed, least=trials)[:trials]])


SAMPLERS: dict[str, Callable[[int, int], np.ndarray]] = {
    "random": lambda n, s: proposed(lambda seed: RandomSampler(seed=seed), n, s),
    "spread only": scattered,
    "NSGA-II": lambda n, s: evolved(n, s, population=16, flat=False),
    "NSGA-II, flat, 8": lambda n, s: evolved(n, s, population=8, flat=True),
    "NSGA-II, flat, 16": lambda n, s: evolved(n, s, population=16, flat=True),
    "TPE, one by one": lambda n, s: proposed(
        lambda seed: TPESampler(seed=seed, n_startup_trials=0, multivariate=False), n, s
    ),
    "TPE, multivariate": lambda n, s: proposed(
        lambda seed: TPESampler(seed=seed, n_startup_trials=0, multivariate=True), n, s
    ),
    "TPE, group": lambda n, s: proposed(tpe, n, s),
}


def main(seeds: int = 12) -> None:
    """Print the table."""
    best = volume(scattered(4000, 99))
    for trials in (40, 96):
        for name, run in SAMPLERS.items():
            with quiet_optuna():
                shares = [volume(run(trials, seed)) / best for seed in range(seeds)]
            print(
                f"{trials:3d} {name:18s} {np.mean(shares):.3f} {min(shares):.3f} {max(shares):.3f}"
            )


if __name__ == "__main__":
    main()
