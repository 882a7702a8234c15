"""LLG+ calibrated in closed form against the published procedure, written out plainly."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.mnist import mnist_path
from benchmarks.table import print_table
from gradguard import Defense
from gradguard.attacks import LLGPlus, Observation
from gradguard.attacks.llg import greedy_counts
from gradguard.attacks.simulation import Pool, rehearse
from gradguard.attacks.threat import Knowledge
from gradguard.evaluation import load_npz
from gradguard.evaluation.models import MODELS, build_model

BATCH, OBSERVATIONS, REPEATS = 8, 100, 10
AT_LEAST = 100.0


def published(
    model: nn.Module, pool: Pool, seen: Observation, rng: np.random.Generator
) -> np.ndarray:
    """One observation by the paper's procedure: ``REPEATS`` x classes backward passes, then LLG."""
    head = dict(model.named_parameters())["head.weight"]
    classes = seen.num_classes
    sums = np.zeros((classes, classes))
    for label in range(classes):
        for _ in range(REPEATS):
            inputs, labels = pool.draw(np.eye(classes, dtype=np.int64)[label] * BATCH, rng)
            loss = nn.functional.cross_entropy(model(inputs), labels)
            sums[label] += torch.autograd.grad(loss, head)[0].sum(1).double().numpy() / REPEATS
    impact = (1 + 1 / classes) * sums.diagonal().mean() / BATCH
    offset = (sums.sum(0) - sums.diagonal()) / (classes - 1)
    row = seen.update["head.weight"].sum(1).double().numpy()[None]
    sizes = np.array([BATCH])
    counts = greedy_counts(row, impact=np.array([impact]), offset=offset, sizes=sizes)
    return np.asarray(counts[0])


def main() -> bool:
    """Print both times and success rates; true if at least 100 times faster at the same rate."""
    data = load_npz(mnist_path())
    auxiliary = data.images[:5000], data.labels[:5000]
    model = build_model(MODELS["llg-cnn"], input_shape=data.input_shape, num_classes=10, seed=0)
    client = Defense("none", transform=[]).client(model, seed=0)
    victims = Pool.of(data.images[5000:], data.labels[5000:], 10)
    rng = np.random.default_rng(0)
    pairs = list(rehearse(client, victims, "skewed", BATCH, OBSERVATIONS, rng))
    observations = [Observation(message, BATCH, 10) for message, _ in pairs]
    truth = np.stack([counts for _, counts in pairs])

    start = time.perf_counter()
    plain = [published(model, Pool.of(*auxiliary, 10), one, rng) for one in observations]
    slow = time.perf_counter() - start
    known = Knowledge(model=model, auxiliary=auxiliary, num_classes=10)
    times = []
    for _ in range(5):  # the median: the first one also pays for torch's warm-up
        start = time.perf_counter()
        found = LLGPlus().fit(known).infer(observations)
        times.append(time.perf_counter() - start)
    fast = float(np.median(times))

    rates = [_rate(counts, truth) for counts in (np.stack(plain), found.numpy())]
    print_table(
        f"LLG+ over {OBSERVATIONS} observations of {BATCH} examples",
        ["", "seconds", "success rate"],
        [
            ["published procedure", f"{slow:.2f}", f"{rates[0]:.3f}"],
            ["closed form", f"{fast:.3f}", f"{rates[1]:.3f}"],
            ["ratio", f"{slow / fast:.0f} (at least {AT_LEAST:.0f})", ""],
        ],
    )
    return slow / fast >= AT_LEAST and abs(rates[0] - rates[1]) <= 0.02


def _rate(counts: np.ndarray | Tensor, truth: np.ndarray) -> float:
    return float(np.minimum(counts, truth).sum() / truth.sum())
