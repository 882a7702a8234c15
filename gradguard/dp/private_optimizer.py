"""Opacus' optimizers, with the accounting inside: no release without an entry in the ledger.

Opacus books a release in a step hook, of which there is one: attaching another loses the
accounting without a word. Here the entry is made in ``add_noise``, before the noise is drawn, so
that whoever makes a release, in whatever way, has paid for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from opacus.grad_sample import AbstractGradSampleModule
from opacus.optimizers import (
    DPOptimizer,
)
from torch import Tensor

from gradguard.dp.errors import LostAccountingError, UnclippedGradientError
from gradguard.dp.ghost_module import check_rows
from gradguard.dp.ledger import PrivacyLedger
from gradguard.dp.noised_guard import NoisedGuard
from gradguard.dp.refusals import check_parameters
from gradguard.finite import is_finite

# Sums in float32 exceed the bound by rounding; wrong clipping exceeds it many times over.
SLACK = 1e-3

NORM_CHANGED = (
    "max_grad_norm was changed after gradients were clipped to the old one, and the noise would "
    "be for the new; change it between steps only, and per-parameter norms not at all"
)


class Accounted:
    """Mixed into an Opacus optimizer: books, checks and counts every release.

    Guarantees:

    - a release is in the ledger before its noise is drawn, whoever attaches step hooks;
    - ledger and releases are compared after every release;
    - the sum of clipped gradients is no longer than clipping allows, or nothing is released;
    - a raw batch gradient is gone from ``p.grad`` when ``pre_step`` returns or raises.
    """

    params: list[Tensor]
    max_grad_norm: Any  # a float; in ghost mode a property
    noise_multiplier: float
    original_optimizer: Any
    prefetching = False  # with workers, batches are drawn ahead of the steps

    def __init__(
        self,
        *args: Any,
        ledger: PrivacyLedger,
        sample_rate: float,
        module: AbstractGradSampleModule,
        **kwargs: Any,
    ) -> None:
        self.module = module
        super().__init__(*args, **kwargs)
        self._public = kwargs["expected_batch_size"]
        self._process = os.getpid()
        self._summed_at: Any = None
        self._out_of_step = False
        self.ledger, self.sample_rate = ledger, sample_rate
        self.releases = 0
        self.nonfinite_examples = 0
        self._unbooked = ledger.releases  # what the ledger held before this optimizer's releases

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Clip, sum, book, add noise; true if ``p.grad`` now holds a release."""
        try:
            self._check_parameters()
            released = bool(super().pre_step(closure))  # type: ignore[misc]
        except BaseException:
            self._drop_gradients()
            self._give_up_sum()
            raise
        if not released:  # a physical batch of a larger one: p.grad is raw
            self._drop_gradients()
            return False
        self.check_accounting()
        if isinstance(self.original_optimizer, NoisedGuard):
            self.original_optimizer.allow()
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
        if os.getpid() != self._process:
            raise RuntimeError(
                "this training was made in another process: both would add the same noise, and "
                "neither ledger would know the other's releases. Call make_private where you train"
            )
        if self.expected_batch_size != self._public:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"expected_batch_size was {self._public}, a public constant, and was changed: the "
                "size of a batch tells how many took part. Call make_private with another loader"
            )
        if self._out_of_step:
            raise RuntimeError(
                "a step failed while workers had drawn batches ahead, and which of them belong to "
                "one release is no longer known; begin a new iteration over the loader"
            )
        check_parameters(self.module, self)  # type: ignore[arg-type]

    def _drop_gradients(self) -> None:
        for p in self.params:
            p.grad = None

    def _check_same_norm(self, norm: object) -> None:
        # Noise is for the norm of the last batch; those before must not be clipped to a larger one.
        if self.params[0].summed_grad is not None and norm != self._summed_at:  # type: ignore[attr-defined]
            raise RuntimeError(NORM_CHANGED)
        self._summed_at = norm

    def signal_skip_step(self, do_skip: bool = True) -> None:
        """Announce a physical batch: part of a larger one, or the last of it."""
        if self._step_skip_queue and not self.prefetching:
            self.start_anew()
            raise RuntimeError(
                "a physical batch was drawn for which no step was taken: from here on two large "
                "batches would be mixed in one release. Call step() for every batch"
            )
        super().signal_skip_step(do_skip)  # type: ignore[misc]

    def start_anew(self) -> None:
        """Forget a large batch that was broken off, which the next release would contain."""
        self._step_skip_queue: list[bool] = []
        self._give_up_sum()
        self._out_of_step = False

    def _give_up_sum(self) -> None:
        # Flags of batches drawn ahead cannot be told from those of the batch that failed.
        self._out_of_step = self.prefetching and bool(self._step_skip_queue)
        self._is_last_step_skipped = False
        for p in self.params:
            p.summed_grad = None  # type: ignore[attr-defined]

    def _check_sum(self, sums: list[Tensor], examples: int, *, most: float = math.inf) -> None:
        norm = torch.stack([s.detach().float().norm().cpu() for s in sums]).norm().item()
        bound = examples * self.max_grad_norm
        # What was really clipped is shorter, up to rounding in the norms of tiny gradients.
        most = min(bound, most + SLACK * bound)
        # Written so that NaN fails.
        if not norm <= most * (1 + SLACK + 8 * torch.finfo(sums[0].dtype).eps):
            raise UnclippedGradientError(
                f"the sum of these {examples} gradients, clipped to {self.max_grad_norm:g}, is at "
                f"most {most:g} long, but it is {norm:.4g}: it was not clipped, and nothing was "
                "released. In ghost mode compute the loss with training.criterion, not with a "
                "loss function of your own, and use parameters in their layers only"
            )


class HooksAccounted(Accounted):
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
                "before each step; evaluate under torch.no_grad(), for a forward pass without "
                "backward() spoils those after it; freeze parameters that take no part "
                "(requires_grad_(False))"
            )
        self._drop_gradients()  # the raw gradient of the batch: nothing below needs it
        return super().pre_step(closure)

    def clip_and_accumulate(self) -> None:
        """Add this batch's clipped gradients to the sum; examples with NaN or infinity as zeros."""
        # Apart from what earlier physical batches have summed, so that it can be done again.
        self._check_same_norm(self.max_grad_norm)
        before = [p.summed_grad for p in self.params]  # type: ignore[attr-defined]
        sums = self._clipped_sum()
        if not all(is_finite(s) for s in sums):
            self._zero_nonfinite_examples()
            sums = self._clipped_sum()
        examples = len(self.params[0].grad_sample)  # type: ignore[attr-defined]
        check_rows(self.module, examples)
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


class PrivateOptimizer(HooksAccounted, DPOptimizer):  # type: ignore[misc]
    """Opacus' ``DPOptimizer``: one norm over all parameters."""


def check_same_parameters(now: list[Tensor], clipped: list[Tensor]) -> None:
    """Raise unless the parameters that clipping counted are those that are trained."""
    if len(now) != len(clipped) or any({id(p) for p in now} ^ {id(p) for p in clipped}):
        raise RuntimeError(
            "the trainable parameters changed since make_private, and clipping would miss some; "
            "freeze and unfreeze before it, or use mode='hooks' with one norm for all"
        )
