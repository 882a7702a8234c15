"""FedAvg: a client that trains locally and sends how far the model has moved.

H. Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson and Blaise Agüera y Arcas,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", 2016,
arXiv:1602.05629.
"""

from __future__ import annotations

import copy
import math
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from gradguard.client import Client, Loss
from gradguard.core import Grads, GradTransform

OPTIMIZERS = ("sgd", "adam")


MOST = 100_000
"""The most epochs and the largest batch: every step is taken, so more would not end."""


@dataclass(frozen=True)
class LocalTraining:
    """What a FedAvg client does with its examples before it sends anything.

    Args:
        epochs: Passes over the client's examples.
        learning_rate: Of the first epoch.
        batch_size: Examples in a local step, drawn in a new order in every epoch, the last batch
            of which may be smaller; ``None`` takes all examples in one step.
        optimizer: ``"sgd"`` or ``"adam"``, fresh in every round.
        momentum: Of SGD, in [0, 1).
        decay: Factor on the learning rate after every epoch, in (0, 1].

    >>> training = LocalTraining(epochs=2, learning_rate=0.5, batch_size=3)
    >>> training.steps(8), training.effective_rate(8)
    (6, 0.5)
    """

    _: KW_ONLY
    epochs: int
    learning_rate: float
    batch_size: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            fits = whole and 1 <= value <= MOST
            if not fits and not (name == "batch_size" and value is None):
                raise ValueError(f"{name} must be a whole number from 1 to {MOST:,}, got {value!r}")
        if not (_is_number(self.learning_rate) and 0 < self.learning_rate < math.inf):
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum!r}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is of sgd and not of {self.optimizer}; leave it out")
        if not (_is_number(self.decay) and 0 < self.decay <= 1):
            raise ValueError(f"decay must be above 0 and at most 1, got {self.decay!r}")

    def steps(self, examples: int) -> int:
        """Local optimizer steps on this many examples."""
        return self.epochs * self._steps_per_epoch(examples)

    def effective_rate(self, examples: int) -> float | None:
        """The rate at which ``steps * rate * mean gradient`` is the change, were gradients equal.

        Of plain SGD the learning rate. Decay and momentum are averaged over the steps: how much
        each gradient moves the model until the round ends. ``None`` for Adam, whose change is no
        sum of gradients.
        """
        if self.optimizer != "sgd":
            return None
        per_epoch = self._steps_per_epoch(examples)
        moved = velocity = 0.0
        for step in range(self.steps(examples)):
            velocity = self.momentum * velocity + 1.0
            moved += self.learning_rate * self.decay ** (step // per_epoch) * velocity
        return moved / self.steps(examples)

    def _steps_per_epoch(self, examples: int) -> int:
        if examples < 1:
            raise ValueError(f"expected at least one example to train on, got {examples!r}")
        return 1 if self.batch_size is None else -(-examples // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """As in a study's ``[client]`` table."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class FedAvgClient:
    """One client that trains locally, to be queried by an attacker who knows the defence.

    As :class:`gradguard.client.Client`, but what is transformed and sent is the change of the
    model, *before minus after*, so that it points where a gradient points. A transform with an
    absolute scale (noise, clipping) acts on that change, which is about ``steps * rate`` times a
    gradient.

    Guarantees:

    - the local training is torch's own optimizer on a copy of the model;
    - one step of plain SGD at rate 1 sends the gradient, up to rounding;
    - messages come out of a real :class:`GuardedOptimizer`, with fresh noise in each;
    - the model given is copied and never changed.

    Buffers are not sent: running statistics of BatchNorm stay with the client. The order of the
    examples comes from torch's global generator, as dropout does.

    Args:
        model: Copied, and put into training mode.
        transform: The defence, on the change.
        training: What happens locally.
        loss: Predictions and labels to a scalar.
        seed: Makes the noise of the sequence of messages reproducible; for evaluation only.

    >>> from gradguard.core import Identity
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> client = FedAvgClient(
    ...     layer,
    ...     Identity(),
    ...     LocalTraining(epochs=3, learning_rate=0.5),
    ...     loss=lambda predictions, labels: predictions.mean(),
    ... )
    >>> client(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    {'weight': tensor([[1.5000, 3.0000]])}
    """

    def __init__(
        self,
        model: nn.Module,
        transform: GradTransform,
        training: LocalTraining,
        *,
        loss: Loss = cross_entropy,
        seed: int | None = None,
    ) -> None:
        self._client = Client(model, transform, loss=loss, seed=seed)
        self.training, self.loss, self.seed = training, loss, seed
        self.model, self.guard = self._client.model, self._client.guard
        self.names, self.params = self._client.names, self._client.params

    @property
    def kind(self) -> str:
        """Tells apart clients whose :meth:`gradients` of the same batch differ."""
        return f"change by {self.training!r}"

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.release(self.gradients(inputs, labels))

    def gradients(self, inputs: Tensor, labels: Tensor) -> Grads:
        """The model before minus after local training, in model order: never sent as it is."""
        moved = copy.deepcopy(self.model)
        named = dict(moved.named_parameters())
        params = [named[name] for name in self.names]
        for p in params:
            p.grad = None
        self._train(moved, params, inputs, labels)
        return [
            before.detach() - after.detach()
            for before, after in zip(self.params, params, strict=True)
        ]

    def release(
        self, grads: Grads, *, batch_size: int | None = None, first: bool = True
    ) -> dict[str, Tensor]:
        """The defended change; see :meth:`Client.release`."""
        return self._client.release(grads, batch_size=batch_size, first=first)

    def _train(
        self, model: nn.Module, params: list[nn.Parameter], inputs: Tensor, labels: Tensor
    ) -> None:
        how = self.training
        optimizer: Optimizer = (
            torch.optim.Adam(params, lr=how.learning_rate)
            if how.optimizer == "adam"
            else torch.optim.SGD(params, lr=how.learning_rate, momentum=how.momentum)
        )
        for _ in range(how.epochs):
            for rows in self._batches(len(labels)):
                optimizer.zero_grad()
                with torch.enable_grad():
                    self.loss(model(inputs[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] *= how.decay

    def _batches(self, examples: int) -> tuple[Tensor, ...]:
        size = self.training.batch_size
        if size is None or size >= examples:
            return (torch.arange(examples),)  # all at once: there is no order to draw
        return torch.split(torch.randperm(examples), size)
