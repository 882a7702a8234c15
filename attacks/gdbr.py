"""GDBR: label counts where the output layer is withheld, from the layer before it."""

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

# The mean over images of a bounded quantity: more of them cost time and memory and change little.
INPUTS = 256
# Relative to the largest: singular values below it are directions that the layer hardly sees.
CUTOFF = 1e-6


@dataclass(frozen=True)
class GDBR:
    """Trace the bias gradient of the layer before the head back to the logits.

    For a layer with bias ``b1``, ``db1 = (1/B) sum_i M_i^T (p_i - y_i)`` where ``M_i`` is the
    Jacobian of the logits with respect to ``b1``. For a dense layer and an activation ``phi`` it is
    ``W diag(phi'(z_i))`` with the head's weights ``W``. With the mean ``M`` over auxiliary data,
    ``r = (M^T)^+ db1`` estimates ``p - n / B``, and ``n = B (p - r)``. A convolution's bias is
    read in the same way: its Jacobian sums over positions. The head's gradient is not read.

    The layer is the last one to run before the head that has a trainable bias of at least as many
    units as there are classes.

    Guarantees:

    - exact on an undefended gradient, given the batch's own mean confidence, where the Jacobian is
      the same for all examples and has rank ``classes - 1``;
    - a message whose head is zeros is read like one whose head is not.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: No layer before the head has such a bias, or it does not reach all
            logits.

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
        some = np.random.default_rng(seed % 2**63).permutation(len(inputs))[:INPUTS]
        few = inputs[torch.from_numpy(some)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            name = layer_before_head(model, few[:2], head_module(model, classes, self.head))
            jacobian = mean_jacobian(model, few, name)
        return FittedGDBR(name, passed.mean(axis=0), bridge(jacobian, name))


def layer_before_head(model: nn.Module, inputs: Tensor, head: nn.Linear) -> str:
    """The parameter name of the bias that GDBR reads.

    Found by running ``inputs`` and noting the order in which modules run: the order in which they
    were registered need not be that of the data.

    Raises:
        NotApplicableError: There is none.
    """
    ran: list[str] = []
    names = {
        module: f"{name}.bias".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
    }
    handles = [
        module.register_forward_pre_hook(lambda m, _: ran.append(names[m])) for module in names
    ]
    with torch.no_grad():
        model(inputs.to(head.weight.device))
    for handle in handles:
        handle.remove()
    parameters = dict(model.named_parameters())
    before = ran[: len(ran) - ran[::-1].index(names[head]) - 1] if head in names else ran
    wide = [
        name
        for name in before
        if parameters[name].requires_grad and parameters[name].numel() >= head.out_features
    ]
    if not wide:
        sizes = {name: parameters[name].numel() for name in before}
        raise NotApplicableError(
            f"expected a layer before the head with a trainable bias of at least "
            f"{head.out_features} units, got {sizes}"
        )
    return wide[-1]


def mean_jacobian(model: nn.Module, inputs: Tensor, bias: str) -> Floats:
    """Mean over ``inputs`` of the logits' derivative with respect to a bias.

    Returns:
        Shape ``(classes, units)``.
    """
    parameter = dict(model.named_parameters())[bias]
    for other in model.parameters():
        other.requires_grad_(other is parameter)  # nothing before the layer is kept in memory
    with torch.enable_grad():
        mean = model(inputs.to(parameter.device)).mean(dim=0)
        rows = [
            torch.autograd.grad(logit, parameter, retain_graph=True, allow_unused=True)[0]
            for logit in mean
        ]
    unused = torch.zeros_like(parameter)
    return finite(torch.stack([unused if r is None else r for r in rows]).double())


def bridge(jacobian: Floats, name: str = "bias") -> Floats:
    """The pseudo-inverse that takes a bias gradient to the logits', shape ``(classes, units)``.

    Raises:
        NotApplicableError: The layer's rank is below ``classes - 1``.
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
    """A linear map from one bias gradient to the counts.

    Args:
        name: The parameter to read.
        confidence: Mean softmax output per class.
        bridge: See :func:`bridge`.
    """

    name: str
    confidence: Floats
    bridge: Floats

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        if observations[0].num_classes != len(self.confidence):
            raise ValueError(
                f"fitted for {len(self.confidence)} classes, got {observations[0].num_classes}"
            )
        shares = self.confidence - self._biases(observations) @ self.bridge.T
        return as_counts(round_to_batch(sizes[:, None] * shares, sizes))

    def _biases(self, observations: Sequence[Observation]) -> Floats:
        missing = [o for o in observations if self.name not in o.update]
        if missing:
            raise ValueError(
                f"expected {self.name!r} in every message, got {sorted(missing[0].update)}; "
                "a layer that is withheld is sent as zeros"
            )
        read = [o.update[self.name].detach().double() / o.steps_and_rate for o in observations]
        return finite(torch.stack(read))
