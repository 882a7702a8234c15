"""Opacus' optimizers, with the accounting inside: no release without an entry in the ledger.

Opacus books a release in a step hook, of which there is one: attaching another loses the
accounting without a word. Here the entry is made in ``add_noise``, before the noise is drawn, so
that whoever makes a release, in whatever way, has paid for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import (
    DPOptimizer,
    DPOptimizerFastGradientClipping,
    DPPerLayerOptimizer,
)
from torch import Tensor

from gradguard.dp.errors import LostAccountingError, UnclippedGradientError
from gradguard.dp.ghost_module import CountingGhostModule
from gradguard.dp.ledger import PrivacyLedger
from gradguard.dp.refusals import check_gradient_hooks, check_only_these_gradients
from gradguard.finite import is_finite

# Sums in float32 exceed the bound by rounding; wrong clipping exceeds it many times over.
SLACK = 1e-3


class Accounted:
    """Mixed into an Opacus optimizer: books, checks and counts every release.

    Guarantees:

    - a release is in the ledger before its noise is drawn, whoever attaches step hooks;
    - ledger and releases are compared after every release;
    - the sum of clipped gradients is no longer than clipping allows, or nothing is released;
    - a raw batch gradient is gone from ``p.grad`` when ``pre_step`` returns or raises.
    """

    params: list[Tensor]
    max_grad_norm: float
    noise_multiplier: float

    def __init__(
        self, *args: Any, ledger: PrivacyLedger, sample_rate: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.ledger, self.sample_rate = ledger, sample_rate
        self.releases = 0
        self.nonfinite_examples = 0
        self._unbooked = ledger.releases  # what the ledger held before this optimizer's releases

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Clip, sum, book, add noise; true if ``p.grad`` now holds a release."""
        self._check_parameters()
        try:
            released = bool(super().pre_step(closure))  # type: ignore[misc]
        except BaseException:
            self._drop_gradients()
            raise
        if not released:  # a physical batch of a larger one: p.grad is raw
            self._drop_gradients()
            return False
        self.check_accounting()
        return True

    def add_noise(self) -> None:
        """Book the release, then draw its noise."""
        self.ledger.charge(self.noise_multiplier, self.sample_rate)
        self.releases += 1
        super().add_noise()  # type: ignore[misc]

    def check_accounting(self) -> None:
        """Raise unless the ledger holds at least the releases that were made here."""
        booked = self.ledger.releases - self._unbooked
        if booked < self.releases:
            raise LostAccountingError(
                f"{self.releases} releases were made but the ledger holds {booked} of them: its "
                "history was changed from outside. No epsilon can be stated for this run; load "
                "the ledger's last state and start a new one from there"
            )

    def continue_from(self, releases: int) -> None:
        """After the ledger was loaded: ``releases`` of its entries were made by this training."""
        self.releases, self._unbooked = releases, self.ledger.releases - releases

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a private optimizer cannot be copied or pickled: two with one noise stream add the "
            "same noise, which cancels. Save the state_dict() of training, model and optimizer"
        )

    def _check_parameters(self) -> None:
        groups: list[dict[str, Any]] = self.param_groups  # type: ignore[attr-defined]
        check_only_these_gradients(groups)
        check_gradient_hooks(self.params)

    def _drop_gradients(self) -> None:
        for p in self.params:
            p.grad = None

    def _check_sum(self, sums: list[Tensor], examples: int) -> None:
        norm = torch.stack([s.detach().float().norm().cpu() for s in sums]).norm().item()
        most = examples * self.max_grad_norm
        # Written so that NaN fails.
        if not norm <= most * (1 + SLACK + 8 * torch.finfo(sums[0].dtype).eps):
            raise UnclippedGradientError(
                f"the sum of {examples} gradients clipped to {self.max_grad_norm:g} is at most "
                f"{most:g} long, but it is {norm:.4g}: it was not clipped, and nothing was "
                "released. In ghost mode compute the loss with training.criterion, not with a "
                "loss function of your own"
            )


class _HooksAccounted(Accounted):
    """For optimizers that hold every example's gradient in ``p.grad_sample``."""

    @property
    def accumulated_iterations(self) -> int:
        """Always 1; several batches in one release would have another sample rate."""
        if any(isinstance(p.grad_sample, list) for p in self.params):  # type: ignore[attr-defined]
            raise RuntimeError(
                "several batches were accumulated for one release, whose sample rate is not the "
                "one accounted for; use Opacus' BatchMemoryManager"
            )
        return 1

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        missing = sum(getattr(p, "grad_sample", None) is None for p in self.params)
        if missing:
            self._drop_gradients()
            raise RuntimeError(
                f"{missing} of {len(self.params)} parameters have no per-example gradients: run "
                "zero_grad(), a forward pass of training.model in training mode and backward() "
                "before each step; freeze parameters that take no part (requires_grad_(False))"
            )
        self._drop_gradients()  # the raw gradient of the batch: nothing below needs it
        return super().pre_step(closure)

    def clip_and_accumulate(self) -> None:
        """Add this batch's clipped gradients to the sum; examples with NaN or infinity as zeros."""
        # Apart from what earlier physical batches have summed, so that it can be done again.
        before = [p.summed_grad for p in self.params]  # type: ignore[attr-defined]
        sums = self._clipped_sum()
        if not all(is_finite(s) for s in sums):
            self._zero_nonfinite_examples()
            sums = self._clipped_sum()
        examples = len(self.params[0].grad_sample)  # type: ignore[attr-defined]
        self._check_sum(sums, examples)
        for p, old, new in zip(self.params, before, sums, strict=True):
            p.summed_grad = new if old is None else old + new  # type: ignore[attr-defined]

    def _clipped_sum(self) -> list[Tensor]:
        for p in self.params:
            p.summed_grad = None  # type: ignore[attr-defined]
        super().clip_and_accumulate()  # type: ignore[misc]
        return [p.summed_grad for p in self.params]  # type: ignore[attr-defined]

    def _zero_nonfinite_examples(self) -> None:
        # Each example is judged by its own gradient alone, so its influence stays bounded.
        samples = [p.grad_sample for p in self.params]  # type: ignore[attr-defined]
        finite = torch.stack([g.flatten(1).isfinite().all(1).cpu() for g in map(_rows, samples)])
        kept = finite.all(0)
        self.nonfinite_examples += int((~kept).sum())
        for p, g in zip(self.params, samples, strict=True):
            shape = (-1, *[1] * (g.dim() - 1))
            # A new tensor: Opacus has marked the old one as used.
            cleaned = torch.where(kept.to(g.device).view(shape), g, torch.zeros_like(g))
            p.grad_sample = cleaned  # type: ignore[attr-defined]


def _rows(grad_sample: Tensor) -> Tensor:
    return grad_sample.unsqueeze(1) if grad_sample.dim() == 1 else grad_sample


class PrivateOptimizer(_HooksAccounted, DPOptimizer):  # type: ignore[misc]
    """Opacus' ``DPOptimizer``: one norm over all parameters."""


class PrivatePerLayerOptimizer(_HooksAccounted, DPPerLayerOptimizer):  # type: ignore[misc]
    """Opacus' ``DPPerLayerOptimizer``: a norm for each parameter."""

    def clip_and_accumulate(self) -> None:
        if any(p.dim() == 0 for p in self.params):
            raise ValueError(
                "Opacus clips a parameter without dimensions by the norm over all examples; give "
                "it a shape of (1,) or clip all parameters to one norm"
            )
        super().clip_and_accumulate()


class PrivateGhostOptimizer(Accounted, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimizer for ghost clipping: the loss object has clipped ``p.grad`` before."""

    def __init__(self, *args: Any, module: CountingGhostModule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.module = module

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients, and forget a backward pass that no step followed."""
        self.module.take_count()
        super().zero_grad(set_to_none)

    def accumulate(self) -> None:
        """Add ``p.grad`` to the sum, if its clipping was seen and its length agrees."""
        batches, examples = self.module.take_count()
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
        self._check_sum([p.grad for p in self.params if p.grad is not None], examples)
        super().accumulate()
