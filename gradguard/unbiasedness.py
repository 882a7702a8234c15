"""A statistical law, for the transforms that claim it: the mean of the output is the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gradguard.core import GradTransform
from gradguard.laws.suite import LawBrokenError
from gradguard.randomness import reseeded


def check_unbiased(
    transform: GradTransform, *, grad: Tensor, draws: int = 4000, seed: int = 0
) -> None:
    """Test that the mean output over many draws is the gradient, coordinate by coordinate.

    The test is at six standard errors: a transform whose bias exceeds that at any coordinate
    fails. What it accepts is unbiased up to ``6 * spread / sqrt(draws)``, not beyond.

    A coordinate that does not vary in all draws must be right up to rounding: choose a gradient
    whose every coordinate is often sent.

    Raises:
        LawBrokenError: The mean is elsewhere, or is no number.
        ValueError: There are fewer than 100 draws, too few to tell.

    >>> from gradguard.transforms.ternary import Ternary
    >>> check_unbiased(Ternary(), grad=torch.tensor([1.0, -0.2]), draws=500)
    """
    if draws < 100:
        raise ValueError(f"draws must be at least 100, got {draws!r}")
    state = reseeded(transform.init([grad]), seed)
    outputs = []
    for _ in range(draws):
        (out,), state = transform.update([grad], state)
        assert out is not None
        outputs.append(out.double())
    stacked = torch.stack(outputs)
    error = (stacked.mean(0) - grad.double()).abs()
    # A coordinate that never varied must be right up to rounding.
    allowed = 6 * stacked.std(0) / draws**0.5 + 1e-6 * grad.abs().double()
    worst = (error - allowed).max().item() if grad.numel() else 0.0
    if not worst <= 0:  # written so that NaN fails too
        seen = f"off by {error.max().item():g}"
        raise LawBrokenError(f"check_unbiased does not hold for {transform!r}: {seen}")
