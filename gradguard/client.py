"""The client as the server sees it: a batch in, a defended message out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradguard.core import Grads, GradTransform
from gradguard.optimizer import GuardedOptimizer

Loss = Callable[[Tensor, Tensor], Tensor]


class Client:
    """One defended client, to be queried by an attacker who knows the defence.

    Calling it with inputs ``(batch, ...)`` and labels ``(batch,)`` gives the message: defended
    gradients by parameter name in model order, detached. Only trainable parameters are sent.

    Every call gives the message of a client in its *first* round: residuals are empty and the
    noise is fresh. With error feedback this is the most a server can learn from one message; over
    several rounds it learns more, see ``first`` of :meth:`release`.

    Guarantees:

    - messages come out of a real :class:`GuardedOptimizer`, the code a deployed client runs;
    - no two calls share noise; with ``seed=None`` it comes from the operating system;
    - the model given is copied and never changed.

    Args:
        model: Copied, and put into training mode: that is where gradients are computed.
        transform: The defence.
        loss: Predictions and labels to a scalar.
        seed: An integer makes the sequence of messages reproducible. For evaluation only: all
            clients with this seed add the same noise. A model's own dropout draws from torch's
            global generator and is not covered.

    ``params`` are the copied model's trainable parameters, in the order of ``names``.

    >>> from gradguard.transforms.sign import Sign
    >>> client = Client(nn.Linear(3, 2), Sign())
    >>> {name: g.shape for name, g in client(torch.ones(4, 3), torch.tensor([0, 1, 1, 1])).items()}
    {'weight': torch.Size([2, 3]), 'bias': torch.Size([2])}
    """

    kind = "raw mean"  # tells apart clients whose gradients() of the same batch differ

    def __init__(
        self,
        model: nn.Module,
        transform: GradTransform,
        *,
        loss: Loss = cross_entropy,
        seed: int | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).train()
        self.loss, self.seed = loss, seed
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameter, so there is nothing to send")
        self.names = tuple(name for name, _ in named)
        self.params = [p for _, p in named]
        # Never stepped, so its kind and learning rate say nothing.
        optimizer = torch.optim.SGD(self.params, lr=0.0)
        self.guard = GuardedOptimizer(optimizer, transform, model=self.model)
        self._sent = 0

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.release(self.gradients(inputs, labels))

    def gradients(self, inputs: Tensor, labels: Tensor) -> Grads:
        """Raw gradients of the batch loss, in model order: what an undefended client sends."""
        with torch.enable_grad():
            loss = self.loss(self.model(inputs), labels)
            return list(torch.autograd.grad(loss, self.params, allow_unused=True))

    def release(
        self, grads: Grads, *, batch_size: int | None = None, first: bool = True
    ) -> dict[str, Tensor]:
        """The defended message for given raw gradients, which are not modified.

        A parameter without gradient is sent as zeros.

        Args:
            grads: In the order of ``names``, as :meth:`gradients` returns them.
            batch_size: Not needed here: these gradients are means. A DP-SGD client's are sums.
            first: Whether this is a client's first round. If not, it is the next round of the
                client that sent last: residuals stay, and random streams go on.
        """
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = None if grad is None else grad.detach().clone()
        if first or self._sent == 0:
            self._sent += 1
            self.guard.reset(message_seed(self.seed, self._sent))
        sent = cast(dict[str, Tensor], self.guard.release())
        for p in self.params:
            p.grad = None
        if len(sent) == len(self.names):
            return sent
        # Which parameters took part would itself tell something: zeros look like a zero gradient.
        named = zip(self.names, self.params, strict=True)
        return {name: sent.get(name, torch.zeros_like(p.detach())) for name, p in named}


def message_seed(seed: int | None, number: int) -> int | None:
    """The seed of a client's first message by its number; ``None`` stays ``None``."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest())
