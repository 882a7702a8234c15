"""GDBR: label counts from the layer before the output layer, where that one is withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks.forward import attacker_copy, head_pass
from gradguard.attacks.head import head_module
from gradguard.attacks.messages import as_counts, batch_sizes, finite
from gradguard.attacks.rounding import Floats, round_to_batch
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation, require

# Images times classes behind the mean Jacobian: one backward pass per class, on as many images.
PASSES = 6400
INPUTS = 256
# Coordinates of a convolution's weight that are read: more of them would fill the memory.
COORDINATES = 16_384
# Relative to the largest: singular values below it are directions that the layer hardly sees.
CUTOFF = 1e-6


@dataclass(frozen=True)
class GDBR:
    """Trace the gradient of the layer before the head back to the logits.

    For parameters ``w`` of that layer, ``dw = (1/B) sum_i M_i^T (p_i - y_i)`` where ``M_i`` is the
    Jacobian of the logits with respect to ``w``. With its mean ``M`` over auxiliary data,
    ``r = (M^T)^+ dw`` estimates ``p - n / B``, and ``n = B (p - r)``. The head's gradient is not
    read.

    Of a dense layer the bias is read: there ``M = W diag(phi')`` with the head's weights ``W`` and
    the activation ``phi``. Of a convolution the weight is read, or 16,384 coordinates of it: its
    bias sums over positions, where activations differ, and tells far less. So it is with a dense
    layer without bias.

    Guarantees:

    - exact on an undefended gradient, given the batch's own mean confidence, where the Jacobian is
      the same for all examples and has rank ``classes - 1``;
    - a message whose head is zeros is read like one whose head is not.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The model has no trainable dense or convolutional layer before the
            head, or the last of them does not move all logits independently.

    Source: after Zhang, Chow and Li, "GDBR", 2024, arXiv:2412.12640, "gradient bridge". Derived
    here from the paper's abstract; details may differ from the authors'.
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedGDBR:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.auxiliary is not None
        assert knowledge.num_classes is not None
        inputs, classes, seed = knowledge.auxiliary[0], knowledge.num_classes, knowledge.seed
        passed = head_pass(
            knowledge.model, inputs, num_classes=classes, head=self.head, seed=seed
        ).probabilities
        model = attacker_copy(knowledge.model)
        rng = np.random.default_rng(seed % 2**63)
        rows = rng.permutation(len(inputs))[: max(2, min(INPUTS, PASSES // classes))]
        few = inputs[torch.from_numpy(rows)]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed % 2**63)
            name = parameter_before_head(model, few[:2], head_module(model, classes, self.head))
            size = model.get_parameter(name).numel()
            read = np.sort(rng.permutation(size)[:COORDINATES])
            jacobian = mean_jacobian(model, few, name, read)
        return FittedGDBR(name, read, passed.mean(axis=0), bridge(jacobian, name))


def parameter_before_head(model: nn.Module, inputs: Tensor, head: nn.Linear) -> str:
    """The name of the parameter that GDBR reads.

    Found by running ``inputs`` and noting the order in which modules run: the order in which they
    were registered need not be that of the data.

    Raises:
        NotApplicableError: There is none.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if module is head or _is_dense_or_convolution(module)
    }
    ran: list[nn.Module] = []
    handles = [module.register_forward_pre_hook(lambda m, _: ran.append(m)) for module in names]
    with torch.no_grad():
        model(inputs.to(head.weight.device))
    for handle in handles:
        handle.remove()
    before = [module for module in ran[: ran.index(head)] if module is not head]
    if not before:
        raise NotApplicableError(
            "expected a trainable dense or convolutional layer before the head, got none"
        )
    layer = before[-1]
    bias = layer.bias
    dense = isinstance(layer, nn.Linear) and isinstance(bias, nn.Parameter) and bias.requires_grad
    return f"{names[layer]}.{'bias' if dense else 'weight'}".lstrip(".")


def _is_dense_or_convolution(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    # Of two axes or more, which leaves out normalisation layers.
    trainable = isinstance(weight, nn.Parameter) and weight.requires_grad and weight.ndim > 1
    return trainable and not isinstance(module, nn.Embedding)


def mean_jacobian(model: nn.Module, inputs: Tensor, name: str, read: np.ndarray) -> Floats:
    """Mean over ``inputs`` of the logits' derivative with respect to a parameter.

    Args:
        name: Of the parameter.
        read: Which of its coordinates.

    Returns:
        Shape ``(classes, coordinates)``.
    """
    parameter = model.get_parameter(name)
    for other in model.parameters():
        other.requires_grad_(other is parameter)  # nothing before the layer is kept in memory
    kept = torch.from_numpy(read).to(parameter.device)
    with torch.enable_grad():
        # The zeros are for a layer that does not reach the logits: autograd would not even look.
        mean = model(inputs.to(parameter.device)).mean(dim=0) + 0 * parameter.sum()
        rows = [
            torch.autograd.grad(logit, [parameter], retain_graph=True, materialize_grads=True)[0]
            .flatten()[kept]
            .double()
            for logit in mean
        ]
    return finite(torch.stack(rows))


def bridge(jacobian: Floats, name: str) -> Floats:
    """The pseudo-inverse that takes a parameter's gradient to the logits'.

    Returns:
        Shape ``(classes, coordinates)``.

    Raises:
        NotApplicableError: The Jacobian's rank is below ``classes - 1``.
    """
    # The logits' gradients sum to zero, so that a common shift of the logits is no unknown.
    centred = jacobian - jacobian.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    rank = int((values > CUTOFF * values[0]).sum())
    if rank < len(jacobian) - 1:
        raise NotApplicableError(
            f"expected {name!r} to move {len(jacobian) - 1} logits independently, it moves {rank}: "
            "labels of some classes cannot be told apart by it"
        )
    inverse: Floats = np.linalg.pinv(centred.T, rcond=CUTOFF)
    return inverse


@dataclass(frozen=True, eq=False)
class FittedGDBR:
    """A linear map from one parameter's gradient to the counts.

    Args:
        name: The parameter to read.
        read: Which of its coordinates.
        confidence: Mean softmax output per class.
        bridge: See :func:`bridge`.
    """

    name: str
    read: np.ndarray
    confidence: Floats
    bridge: Floats

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        if observations[0].num_classes != len(self.confidence):
            raise ValueError(
                f"fitted for {len(self.confidence)} classes, got {observations[0].num_classes}"
            )
        shares = np.stack([self.confidence - self._residual(o) for o in observations])
        return as_counts(round_to_batch(sizes[:, None] * shares, sizes))

    def _residual(self, observation: Observation) -> Floats:
        """The mean gradient at the logits, ``p - n / B``."""
        sent = observation.update.get(self.name)
        if sent is None:
            raise ValueError(
                f"expected {self.name!r} in every message, got {sorted(observation.update)}; "
                "a layer that is withheld is sent as zeros"
            )
        kept = sent.detach().flatten()[torch.from_numpy(self.read).to(sent.device)]
        residual: Floats = self.bridge @ (finite(kept.double()) / observation.steps_and_rate)
        return residual
