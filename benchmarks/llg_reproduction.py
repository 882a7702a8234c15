"""Label Leakage from Gradients, reproduced: MNIST, the paper's network, untrained, skewed batches.

Thirty fresh models, a hundred batches over them, as in the paper's setting. The expected values
come from an independent implementation of the same formulas; each holds within three standard
errors of both measurements.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.mnist import mnist_path
from benchmarks.table import print_table
from gradguard import Defense
from gradguard.attacks import LLG, LLGPlus, LLGStar, Observation, RandomGuess
from gradguard.attacks.simulation import Pool, rehearse
from gradguard.attacks.threat import Attack, Knowledge
from gradguard.evaluation import load_npz
from gradguard.evaluation.models import MODELS, build_model

SEEDS, TRIALS = 30, 100
EXPECTED: dict[str, tuple[float, dict[int, float]]] = {
    "LLG": (0.02, {8: 0.88, 32: 0.85, 128: 0.84}),
    "LLG* zeros": (0.005, {8: 0.98, 32: 0.96, 128: 0.95}),
    "LLG+": (0.005, {8: 0.99, 32: 0.98, 128: 0.98}),
    "random guess": (0.005, {8: 0.30, 32: 0.37, 128: 0.40}),
}
ATTACKS: dict[str, Attack] = {
    "LLG": LLG(),
    "LLG* zeros": LLGStar("zeros"),
    "LLG+": LLGPlus(),
    "random guess": RandomGuess(),
}


def measure(batch_size: int, seeds: int = SEEDS, trials: int = TRIALS) -> dict[str, np.ndarray]:
    """Success rates by attack, one mean per model seed."""
    data = load_npz(mnist_path())
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(data.labels)))
    auxiliary, victims = rows[:5000], rows[5000:]
    known = data.images[auxiliary], data.labels[auxiliary]
    pool = Pool.of(data.images[victims], data.labels[victims], data.num_classes)
    per_seed = -(-trials // seeds)
    found: dict[str, list[float]] = {name: [] for name in ATTACKS}
    for seed in range(seeds):
        model = build_model(
            MODELS["llg-cnn"], input_shape=data.input_shape, num_classes=10, seed=seed
        )
        client = Defense("none", transform=[]).client(model, seed=seed)
        rng = np.random.default_rng([seed, batch_size])
        seen = list(rehearse(client, pool, "skewed", batch_size, per_seed, rng))
        observations = [Observation(message, batch_size, 10) for message, _ in seen]
        truth = np.stack([counts for _, counts in seen])
        knowledge = Knowledge(
            model=model, auxiliary=known, num_classes=10, batch_size=batch_size, seed=seed
        )
        for name, attack in ATTACKS.items():
            counts = attack.fit(knowledge).infer(observations).numpy()
            found[name].append(float(np.minimum(counts, truth).sum() / truth.sum()))
    return {name: np.array(values) for name, values in found.items()}


def main() -> bool:
    """Print the table; true if every cell is within three standard errors of both."""
    rows, agree = [], True
    for batch_size in (8, 32, 128):
        for name, found in measure(batch_size).items():
            error, expected = EXPECTED[name]
            own = float(found.std(ddof=1) / np.sqrt(len(found)))
            # Both are measurements, and the expected one is printed to two decimals.
            allowed = 3 * float(np.hypot(own, error)) + 0.005
            within = abs(found.mean() - expected[batch_size]) <= allowed
            agree &= within
            rows.append(
                [
                    name,
                    str(batch_size),
                    f"{found.mean():.3f} ± {own:.3f}",
                    f"{expected[batch_size]:.2f} ± {error:.3f}",
                    "yes" if within else "NO",
                ]
            )
    print_table(
        f"LLG on MNIST: {SEEDS} models, {TRIALS} batches (mean ± standard error)",
        ["attack", "B", "here", "expected", "agree"],
        rows,
    )
    return agree
