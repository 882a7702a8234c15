"""A DP-SGD client as the server sees it: a batch in, a noised and transformed message out."""

from __future__ import annotations

import copy
import os
from typing import Any, cast

import torch
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradguard.client import Loss, message_seed
from gradguard.core import Grads, GradTransform
from gradguard.dp import noise_stream
from gradguard.dp.ledger import PrivacyLedger
from gradguard.dp.wrapping import wrapped
from gradguard.dpsgd import DPSGD
from gradguard.hook_warning import without_hook_warning
from gradguard.optimizer import GuardedOptimizer


class PrivateClient:
    """One DP-SGD client, to be queried by an attacker who knows the defence.

    As :class:`gradguard.client.Client`: messages are by parameter name, and those of a first
    round unless :meth:`release` is told otherwise.
    The batch is given, not sampled: what is attacked is a batch that took part, so no sampling
    hides it.

    Guarantees:

    - messages come out of the optimizer and guard that :func:`make_private` deploys;
    - no two calls share noise; with ``seed=None`` it comes from the operating system;
    - the model given is copied and never changed.

    Args:
        model: Copied, and put into training mode; no BatchNorm.
        dp: How each example is clipped and how much noise is added.
        transform: Runs after the noise.
        loss: Predictions and labels to the mean over the batch.
        batch_size: The expected batch size, a public constant that sums are divided by. Without
            it every batch is divided by its own size, which is then no secret, as for a client
            that takes all its data.
        seed: Makes the messages reproducible; for evaluation only.

    >>> from gradguard.core import Identity
    >>> dp = DPSGD(noise_multiplier=1e-9, max_grad_norm=1e-3)
    >>> client = PrivateClient(nn.Linear(3, 2), dp, Identity())
    >>> sent = client(torch.ones(1, 3), torch.tensor([0]))
    >>> round(float(torch.cat([g.flatten() for g in sent.values()]).norm()), 5)
    0.001
    """

    def __init__(
        self,
        model: nn.Module,
        dp: DPSGD,
        transform: GradTransform,
        *,
        loss: Loss = cross_entropy,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
        self.dp, self.loss, self.batch_size, self.seed = dp, loss, batch_size, seed
        plain = copy.deepcopy(model).train()
        named = [(name, p) for name, p in plain.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameter, so there is nothing to send")
        self.names = tuple(name for name, _ in named)
        self.params = [p for _, p in named]
        self._noise = noise_stream.fresh_generator(self.params[0].device)
        # Never stepped, so its kind and learning rate say nothing.
        optimizer = torch.optim.SGD(self.params, lr=0.0)
        self.guard = GuardedOptimizer(optimizer, transform, model=plain)
        self.model, self._private = wrapped(
            plain,
            dp.max_grad_norm,
            dp.mode,
            optimizer=self.guard,
            noise_multiplier=dp.noise_multiplier,
            expected_batch_size=1,
            generator=self._noise,
            ledger=PrivacyLedger(),  # a rehearsal: no data of a person is behind it
            sample_rate=1.0,
        )
        self._stateful = bool(_leaves(self.guard.guard_state))
        self._sent = 0
        self._process = os.getpid()

    @property
    def kind(self) -> str:
        """Tells apart clients whose :meth:`gradients` of the same batch differ."""
        return f"sum clipped to {self.dp.max_grad_norm!r} in mode {self.dp.mode}"

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.release(self.gradients(inputs, labels), batch_size=len(labels))

    def gradients(self, inputs: Tensor, labels: Tensor) -> Grads:
        """The sum of the clipped gradients of all examples: before the noise, never sent."""
        private: Any = self._private
        private.zero_grad(set_to_none=True)
        with torch.enable_grad(), without_hook_warning():
            if self.dp.mode == "ghost":
                losses = self._each_loss(self.model(inputs), labels)
                DPTensorFastGradientClipping(self.model, private, losses).backward()
                private.accumulate()
            else:
                self.loss(self.model(inputs), labels).backward()  # type: ignore[no-untyped-call]
                private.clip_and_accumulate()
        sums: Grads = [p.summed_grad.detach() for p in self.params]  # type: ignore[attr-defined]
        private.zero_grad(set_to_none=True)
        return sums

    def release(
        self, grads: Grads, *, batch_size: int | None = None, first: bool = True
    ) -> dict[str, Tensor]:
        """Noise, division by the batch size, and the transform, on a clipped sum.

        Args:
            grads: As :meth:`gradients` returns them; not modified.
            batch_size: Used where the client has no fixed one.
            first: If not, this is the next round of the client that sent last: fresh noise, and
                the transform goes on with its state.
        """
        size = self.batch_size or batch_size
        if size is None:
            raise ValueError("what are sums divided by? Give batch_size here or to the client")
        private: Any = self._private
        private.expected_batch_size = size
        self._start_stream(first)
        for p, total in zip(self.params, grads, strict=True):
            assert total is not None
            # A new tensor object: Opacus marks the one that it has noised.
            p.summed_grad = total.detach()  # type: ignore[attr-defined]
            p.grad_sample = total.new_zeros(0)  # type: ignore[attr-defined]
        private.add_noise()
        private.scale_grad()
        sent = cast(dict[str, Tensor], self.guard.release())
        private.zero_grad(set_to_none=True)
        for p in self.params:
            # Ghost clipping leaves it out of zero_grad, and a convolution would add to it.
            p.grad_sample = None  # type: ignore[attr-defined]
        return sent

    def _each_loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(torch.split(predictions, 1), torch.split(labels, 1), strict=True)
        return torch.stack([self.loss(one, label) for one, label in pairs])

    def _start_stream(self, first: bool) -> None:
        first = first or self._sent == 0
        self._sent += first
        seed = message_seed(self.seed, self._sent) if first else None
        if seed is not None or os.getpid() != self._process:  # a fork would share the noise
            self._process = os.getpid()
            noise_stream.reseed(self._noise, seed, path="noise")
        if self._stateful and first:
            self.guard.reset(seed)


def _leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in _leaves(value)]
    return [state]
