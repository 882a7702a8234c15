"""Ghost clipping that can tell whether it was used.

Opacus clips in ghost mode inside the ``backward`` of its own loss object. A plain loss runs the
same backward pass and clips nothing, without a word, while the accountant goes on counting.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor

from gradguard.dp.errors import UnclippedGradientError
from gradguard.finite import NonFiniteExampleError


class CountingGhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]
    """Opacus' module for ghost clipping, counting the examples whose gradients it clipped."""

    clipped_batches: int = 0
    clipped_examples: int = 0
    clipped_to: float = 0.0
    longest_sum: float = 0.0
    rows: int | None = None

    def get_clipping_coef(self) -> Tensor:
        """One factor per example; called by the backward pass of Opacus' loss, and only there."""
        norms = [getattr(p, "_norm_sample", None) for p in self.trainable_parameters]
        if any(norm is None for norm in norms):
            raise RuntimeError(
                "no per-example gradient norm of "
                f"{sum(n is None for n in norms)} parameters: each must take part in the forward "
                "pass, and the model must be in training mode (model.train())"
            )
        check_rows(self, len(self.trainable_parameters[0]._norm_sample))
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
        self.clipped_to = self.max_grad_norm
        self.longest_sum = float((factors * self.per_sample_gradient_norms).sum())
        return factors

    def take_count(self) -> tuple[int, int]:
        """Batches and examples clipped since the last call."""
        counts = self.clipped_batches, self.clipped_examples
        self.clipped_batches = self.clipped_examples = 0
        return counts

    def saw_another_backward(self) -> bool:
        """Whether a backward pass followed that was not clipped: clipping takes the norms away."""
        return any(getattr(p, "_norm_sample", None) is not None for p in self.trainable_parameters)


def check_rows(module: Any, clipped: int) -> None:
    """Raise if more rows were clipped than the batch given to the model has examples."""
    rows = getattr(module, "rows", None)
    if rows is not None and clipped > rows:
        raise UnclippedGradientError(
            f"the layers saw {clipped} rows of a batch of {rows} examples: clipping would bound "
            "each row and not each example. Keep examples in the first dimension throughout the "
            "model: inputs.view(len(inputs), -1, ...)"
        )


class PerExampleLoss(DPLossFastGradientClipping):  # type: ignore[misc]
    """Opacus' loss for ghost clipping, refusing a criterion whose losses are not per example."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().__call__(*args, **kwargs)
        each = loss.loss_per_sample
        # Opacus would weigh a mean by the sum of all factors, which clips no one.
        rows = self.module.rows if each.requires_grad else None
        if each.dim() != 1 or (rows is not None and len(each) != rows):
            raise ValueError(
                "ghost clipping needs one loss for each example from a criterion whose reduction "
                f"is 'none', got losses of shape {tuple(each.shape)}; follow the attribute "
                "reduction, as torch's own criteria do"
            )
        return loss
