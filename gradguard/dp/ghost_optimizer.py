"""The private optimizer for ghost clipping, which is handed gradients that were clipped before."""

from __future__ import annotations

from opacus.optimizers import DPOptimizerFastGradientClipping

from gradguard.dp.errors import UnclippedGradientError
from gradguard.dp.ghost_module import CountingGhostModule
from gradguard.dp.private_optimizer import NORM_CHANGED, Accounted, check_same_parameters


class PrivateGhostOptimizer(Accounted, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimizer for ghost clipping: the loss object has clipped ``p.grad`` before."""

    module: CountingGhostModule

    # One number, kept by the module that clips: a schedule of it would else change the noise only.
    @property
    def max_grad_norm(self) -> float:
        """The norm that the module clips to and that the noise is for."""
        return float(self.module.max_grad_norm)

    @max_grad_norm.setter
    def max_grad_norm(self, norm: float) -> None:
        self.module.max_grad_norm = norm

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients, and forget a backward pass that no step followed."""
        self.module.take_count()
        super().zero_grad(set_to_none)

    def accumulate(self) -> None:
        """Add ``p.grad`` to the sum, if its clipping was seen and its length agrees."""
        batches, examples = self.module.take_count()
        check_same_parameters(self.params, self.module.trainable_parameters)
        missing = sum(p.grad is None for p in self.params)
        if missing:
            raise RuntimeError(
                f"{missing} of {len(self.params)} parameters have no gradient: run "
                "training.criterion(...).backward() before each step"
            )
        if batches > 1:
            raise RuntimeError(
                f"{batches} backward passes were made for one step; take a step after each, and "
                "use Opacus' BatchMemoryManager for batches larger than memory"
            )
        if batches and self.module.clipped_to != self.max_grad_norm:
            raise RuntimeError(NORM_CHANGED)
        self._check_same_norm(self.max_grad_norm)
        if batches and self.module.saw_another_backward():
            raise UnclippedGradientError(
                "a backward pass of another loss followed that of training.criterion, and its "
                "gradients were not clipped; add the losses of both and call backward() once"
            )
        sums = [p.grad for p in self.params if p.grad is not None]
        self._check_sum(sums, examples, most=self.module.longest_sum)
        super().accumulate()
