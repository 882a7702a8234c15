"""Auditing with a single release: many canaries, each of them in or out by its own coin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradguard import Defense
from gradguard.dp.gaussian import gaussian_dp_epsilon
from gradguard.evaluation.auditing.audit import one_run_epsilon


@dataclass(frozen=True)
class OneRunResult:
    """What one release gave away about its canaries; compared with add/remove's claim."""

    canaries: int
    guesses: int
    correct: int
    epsilon_lower: float
    claim_epsilon: float
    alpha: float
    delta: float
    flagged: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def audit_one_run(
    defense: Defense,
    *,
    canaries: int = 1000,
    guesses: int = 100,
    alpha: float = 0.05,
    delta: float = 1e-5,
    seed: int,
) -> OneRunResult:
    """Send one message through the defence's own client and guess which canaries were in it.

    Every canary has a coordinate of its own and a gradient beyond the clipping norm. The
    canaries with the largest and the smallest coordinates are guessed in and out, half of
    ``guesses`` each; all others are passed over.

    Guarantees:

    - a claim that holds is refuted with probability at most ``alpha``.

    Far from tight; its use is where thousands of releases cost too much.

    Args:
        defense: With DP-SGD and one clipping norm for all parameters.
        canaries: Memory grows with their square.
        seed: Decides which canaries are in, and the noise.

    Raises:
        ValueError: The defence claims nothing, or there are fewer canaries than guesses.
    """
    if defense.dp is None:
        raise ValueError(f"defence {defense.name!r} has no DP, so there is no claim to audit")
    if not 2 <= guesses <= canaries:
        raise ValueError(f"expected 2 to {canaries} guesses, got {guesses!r}")
    included = torch.rand(canaries, generator=torch.Generator().manual_seed(seed)) < 0.5
    message = _message(defense, included, seed)
    order = message.argsort()
    half = guesses // 2
    correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
    lower = one_run_epsilon(canaries, 2 * half, correct, delta, alpha)
    claim = gaussian_dp_epsilon(1 / defense.dp.noise_multiplier, delta)
    return OneRunResult(
        canaries, 2 * half, correct, lower, claim, alpha, delta, flagged=lower > claim
    )


def _message(defense: Defense, included: Tensor, seed: int) -> Tensor:
    """One coordinate per canary."""
    assert defense.dp is not None
    model = nn.Linear(len(included), 1, bias=False)
    client = defense.client(model, loss=_plain, batch_size=len(included), seed=seed)
    # Twice the radius: every example is clipped, so that each contributes exactly the norm.
    inputs = (2 * defense.dp.radius * torch.eye(len(included)))[included]
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    (sent,) = client.release(client.gradients(inputs, labels)).values()
    return sent.reshape(-1)


def _plain(predictions: Tensor, labels: Tensor) -> Tensor:
    # The gradient of an example is its input: the canary's own coordinate.
    return predictions.mean()
