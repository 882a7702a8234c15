"""The best attacker there is, against noise that the real Opacus adds, and the bounds on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from gradguard.evaluation.certificates.record import multiset_bound, per_record_bound

DRAWS, BATCH, NORM = 20_000, 4, 0.5


def releases(gradients: Tensor, labels: Tensor, noise: float) -> Tensor:
    """What ``pre_step`` releases when a batch's first record has each of ``labels`` in turn.

    Args:
        gradients: Per class, unclipped, shape ``(classes, size)``; the other records have
            fixed gradients.
    """
    parameter = torch.nn.Parameter(torch.zeros(gradients.shape[1]))
    optimizer = DPOptimizer(
        torch.optim.SGD([parameter], lr=0.1),
        noise_multiplier=noise,
        max_grad_norm=NORM,
        expected_batch_size=BATCH,
        generator=torch.Generator().manual_seed(5),
    )
    found = torch.empty(len(labels), gradients.shape[1])
    for i, label in enumerate(labels.tolist()):
        parameter.grad_sample = torch.cat([gradients[label][None], others(gradients)])  # type: ignore[attr-defined]
        assert optimizer.pre_step()
        assert parameter.grad is not None
        found[i] = parameter.grad
        optimizer.zero_grad()
    return found


def others(gradients: Tensor) -> Tensor:
    """The gradients of the records that the attacker knows, longer than the clipping norm."""
    return 3 * torch.roll(gradients[:1], 1, dims=1).repeat(BATCH - 1, 1)


def clipped(gradients: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return gradients * (NORM / (norms + 1e-6)).clamp(max=1.0)


def classes_apart(classes: int) -> Tensor:
    """Gradients in a regular simplex, as of a softmax layer that knows nothing yet."""
    return 7.0 * (torch.eye(classes) - 1 / classes)


def likeliest(seen: Tensor, gradients: Tensor) -> Tensor:
    """The maximum-likelihood label: all clipped gradients are equally long."""
    target = BATCH * seen - clipped(others(gradients)).sum(dim=0)
    return (target @ clipped(gradients).T).argmax(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "noise", "best"),
    # The exact success of this attacker on a simplex; for two classes it is the bound.
    [(2, 1.0, 0.841345), (2, 2.0, 0.691462), (10, 1.0, 0.358274), (10, 0.5, 0.706171)],
)
def test_the_best_attacker_reaches_the_binary_bound_and_exceeds_none(
    classes: int, noise: float, best: float
) -> None:
    gradients = classes_apart(classes)
    labels = torch.randint(classes, (DRAWS,), generator=torch.Generator().manual_seed(1))
    guesses = likeliest(releases(gradients, labels, noise), gradients)
    right = float((guesses == labels).double().mean())
    slack = 3.3 * math.sqrt(right * (1 - right) / DRAWS)
    bound = per_record_bound(1 / classes, noise)
    assert abs(right - best) <= slack
    assert right - slack <= bound
    if classes == 2:
        assert right + slack >= bound
    # Power: half as much noise again would be noticed, so would a bound for that much noise.
    assert right - slack > per_record_bound(1 / classes, 1.5 * noise)


@pytest.mark.slow
def test_a_whole_batch_is_not_read_beyond_the_multiset_bound() -> None:
    classes, noise, draws = 10, 4.0, 5000
    gradients = classes_apart(classes)
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(classes, size=(draws, BATCH)))
    parameter = torch.nn.Parameter(torch.zeros(classes))
    optimizer = DPOptimizer(
        torch.optim.SGD([parameter], lr=0.1),
        noise_multiplier=noise,
        max_grad_norm=NORM,
        expected_batch_size=BATCH,
        generator=torch.Generator().manual_seed(6),
    )
    scores = np.empty(draws)
    # Every multiset of four labels, weighted by its prior and the likelihood of the release.
    counts = np.array(_multisets(classes, BATCH))
    log_prior = np.array([-sum(math.lgamma(n + 1) for n in row) for row in counts])
    sums = counts @ clipped(gradients).numpy()
    for i in range(draws):
        parameter.grad_sample = gradients[labels[i]]  # type: ignore[attr-defined]
        assert optimizer.pre_step()
        assert parameter.grad is not None
        seen = BATCH * parameter.grad.numpy()
        optimizer.zero_grad()
        log_weights = log_prior - ((seen - sums) ** 2).sum(axis=1) / (2 * (noise * NORM) ** 2)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        tails = np.stack([weights @ (counts >= m) for m in range(1, BATCH + 1)], axis=1)
        taken = np.argsort(-tails.T.reshape(-1), kind="stable")[:BATCH] % classes
        guess = np.bincount(taken, minlength=classes)
        true = np.bincount(labels[i].numpy(), minlength=classes)
        scores[i] = np.minimum(guess, true).sum() / BATCH
    half = 3.3 * float(scores.std()) / math.sqrt(draws)
    # 0.3439 is the best guess without looking: the attacker has learned something.
    assert scores.mean() - half > 0.3439
    assert scores.mean() - half <= multiset_bound(BATCH, [1 / classes] * classes, noise)


def _multisets(classes: int, size: int) -> list[tuple[int, ...]]:
    if classes == 1:
        return [(size,)]
    return [
        (first, *rest)
        for first in range(size + 1)
        for rest in _multisets(classes - 1, size - first)
    ]
