"""DLG: invert a gradient by optimising dummy inputs and labels until theirs is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax

from gradguard.attacks.forward import attacker_copy
from gradguard.attacks.head import head_module
from gradguard.attacks.messages import as_counts, batch_sizes
from gradguard.attacks.rounding import Floats, round_to_batch
from gradguard.attacks.threat import Knowledge, Observation, require


@dataclass(frozen=True)
class DLG:
    """Deep leakage from gradients; the labels are those of the reconstructed batch.

    L-BFGS minimises the squared distance between the message and the gradient of dummy inputs with
    soft dummy labels, both from standard normal draws. The answer is the sum of the dummies'
    soft labels. It reads the whole message, is slow, and often does not converge; as a label attack
    it is far behind those that read the output layer. It is here for comparison.

    Guarantees:

    - the same knowledge and message give the same answer on the same machine;
    - torch's global random state and the model are left as they were.

    Not guaranteed: convergence. Networks with ReLU have no second derivatives to follow; the
    authors used sigmoid.

    Args:
        iterations: Of L-BFGS, each of up to 20 evaluations of the gradient's gradient.
        input_shape: Shape of one input, such as ``(1, 28, 28)``; ``None`` takes the auxiliary
            inputs' shape.
        head: Name of the output layer, checked against the number of classes.

    Raises:
        ValueError: The iterations are not positive.

    Source: Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv:1906.08935.
    """

    iterations: int = 10
    _: KW_ONLY
    input_shape: tuple[int, ...] | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if not self.iterations >= 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations!r}")

    @property
    def needs(self) -> frozenset[str]:
        known = {"model", "num_classes"}
        return frozenset(known if self.input_shape is not None else known | {"auxiliary"})

    def fit(self, knowledge: Knowledge) -> FittedDLG:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.num_classes is not None
        model = attacker_copy(knowledge.model)
        head_module(model, knowledge.num_classes, self.head)
        shape = self.input_shape
        if shape is None:
            assert knowledge.auxiliary is not None
            shape = tuple(knowledge.auxiliary[0].shape[1:])
        return FittedDLG(model, shape, knowledge.num_classes, self.iterations, knowledge.seed)


@dataclass(frozen=True, eq=False)
class FittedDLG:
    """Nothing is learned: every message is inverted from the same dummies."""

    model: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int
    iterations: int
    seed: int

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        if observations[0].num_classes != self.num_classes:
            raise ValueError(
                f"fitted for {self.num_classes} classes, got {observations[0].num_classes}"
            )
        counts = np.stack([self._counts(o) for o in observations])
        return as_counts(round_to_batch(counts, sizes))

    def _counts(self, observation: Observation) -> Floats:
        # A dropout layer draws from the global state, anew in every evaluation.
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed % 2**63)
            labels = self._inverted(observation)
        counts: Floats = labels.softmax(dim=1).sum(dim=0).double().cpu().numpy()
        return counts

    def _inverted(self, observation: Observation) -> Tensor:
        """Logits of the dummy labels that explain the message, the best that were met."""
        parameters = {n: p.detach() for n, p in self.model.named_parameters()}
        sent = _sent(observation, parameters)
        size = observation.batch_size
        like = next(iter(parameters.values()))
        rng = torch.Generator().manual_seed(self.seed % 2**63)
        inputs = torch.randn(size, *self.input_shape, generator=rng).to(like).requires_grad_()
        labels = torch.randn(size, self.num_classes, generator=rng).to(like).requires_grad_()
        best = labels.detach().clone()
        nearest = float("inf")
        optimizer = torch.optim.LBFGS([inputs, labels], lr=1.0)

        def closure() -> Tensor:
            nonlocal best, nearest
            optimizer.zero_grad()
            loss = self._distance(sent, inputs, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            reached = float(loss.detach())
            if reached < nearest and bool(labels.isfinite().all()):
                best, nearest = labels.detach().clone(), reached
            return loss

        for _ in range(self.iterations):
            # Without line search a step can land on NaN, from where L-BFGS does not return.
            loss = optimizer.step(closure)  # type: ignore[no-untyped-call]
            if not torch.isfinite(loss):
                break
        return best

    def _distance(self, sent: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        variables = {n: p.detach().requires_grad_() for n, p in self.model.named_parameters()}
        # Copies, since BatchNorm writes its averages even in a functional call.
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        logits = functional_call(self.model, {**variables, **buffers}, (inputs,))
        loss = -(labels.softmax(dim=1) * log_softmax(logits, dim=1)).sum(dim=1).mean()
        wanted = [variables[name] for name in sent]
        found = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        pairs = zip(found, sent.values(), strict=True)
        return torch.stack([((f - g) ** 2).sum() for f, g in pairs]).sum()


def _sent(observation: Observation, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The message as a mean gradient, in the parameters' order, number type and place."""
    missing = sorted(set(observation.update) - set(parameters))
    if missing or not observation.update:
        raise ValueError(f"expected tensors named as the model's parameters, got {missing}")
    sent = {
        name: observation.update[name].detach().to(parameter) / observation.steps_and_rate
        for name, parameter in parameters.items()
        if name in observation.update
    }
    if not all(bool(g.isfinite().all()) for g in sent.values()):
        raise ValueError(
            "expected finite gradients, got NaN or infinity; "
            "the client diverged, so there is no leakage to measure"
        )
    return sent
