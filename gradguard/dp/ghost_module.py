"""Ghost clipping that can tell whether it was used.

Opacus clips in ghost mode inside the ``backward`` of its own loss object. A plain loss runs the
same backward pass and clips nothing, without a word, while the accountant goes on counting.
"""

from __future__ import annotations

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor

from gradguard.finite import NonFiniteExampleError


class CountingGhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]
    """Opacus' module for ghost clipping, counting the examples whose gradients it clipped."""

    clipped_batches: int = 0
    clipped_examples: int = 0

    def get_clipping_coef(self) -> Tensor:
        """One factor per example; called by the backward pass of Opacus' loss, and only there."""
        norms = [getattr(p, "_norm_sample", None) for p in self.trainable_parameters]
        if any(norm is None for norm in norms):
            raise RuntimeError(
                "no per-example gradient norm of "
                f"{sum(n is None for n in norms)} parameters: each must take part in the forward "
                "pass, and the model must be in training mode (model.train())"
            )
        factors: Tensor = super().get_clipping_coef()
        for p in self.trainable_parameters:
            p._norm_sample = None  # a later backward must not clip by the norms of this batch
        if not bool(torch.isfinite(self.per_sample_gradient_norms).all()):
            raise NonFiniteExampleError(
                "an example has a gradient that is not finite. Ghost clipping cannot leave it "
                "out, and nothing was released; use mode='hooks', which zeroes such examples"
            )
        self.clipped_batches += 1
        self.clipped_examples += len(factors)
        return factors

    def take_count(self) -> tuple[int, int]:
        """Batches and examples clipped since the last call."""
        counts = self.clipped_batches, self.clipped_examples
        self.clipped_batches = self.clipped_examples = 0
        return counts
