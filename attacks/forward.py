"""One forward pass of the attacker's copy of the model: confidences, and what the head is fed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks.fingerprint import digest_of, fingerprint
from gradguard.attacks.head import head_module
from gradguard.attacks.messages import finite
from gradguard.attacks.rounding import Floats
from gradguard.attacks.threat import NotApplicableError

# Larger ones take longer: their activations no longer fit into the cache.
CHUNK = 128
# Passes held, and the most memory for one. Ten attacks on one model ask for the same.
HELD, HELD_BYTES = 4, 32 * 2**20


@dataclass(frozen=True, eq=False)
class HeadPass:
    """What a forward pass says about the gradient of the output layer.

    Args:
        probabilities: Softmax outputs, shape ``(examples, classes)``.
        feature_sums: Sum of each example's features at the head's input, shape ``(examples,)``.
    """

    probabilities: Floats
    feature_sums: Floats


def attacker_copy(model: nn.Module) -> nn.Module:
    """A copy to run in training mode, where clients compute their gradients.

    The original is not touched: in training mode a forward pass alone moves BatchNorm's averages.
    """
    return copy.deepcopy(model).train()


def head_pass(
    model: nn.Module, inputs: Tensor, *, num_classes: int, head: str | None = None, seed: int = 0
) -> HeadPass:
    """Forward ``inputs`` through a copy of ``model``, reading the output layer's input.

    Args:
        inputs: Shape ``(examples, ...)``, at least one.
        seed: Of a model's own randomness, such as dropout; torch's global state is kept.

    Raises:
        NotApplicableError: The head sees more than one row per example, or the model's output is
            not that of its head.
    """
    if len(inputs) == 0:
        raise ValueError("expected at least one input to forward, got none")
    key = _key(model, inputs, f"{num_classes} {head} {seed}")
    if key in _held:
        _held.move_to_end(key)
        return _held[key]
    passed = _forward(model, inputs, num_classes=num_classes, head=head, seed=seed)
    for array in (passed.probabilities, passed.feature_sums):
        array.flags.writeable = False  # whoever asks next gets the same arrays
    if passed.probabilities.nbytes <= HELD_BYTES:
        _held[key] = passed
        while len(_held) > HELD:
            _held.popitem(last=False)
    return passed


_held: OrderedDict[bytes, HeadPass] = OrderedDict()


def _key(model: nn.Module, inputs: Tensor, settings: str) -> bytes:
    """A digest of everything a pass comes from.

    Not the model's identity: copies are equal, and models change in place. The outputs for two
    inputs are part of it, because models of equal parameters may differ in what they compute.
    """
    attacker = attacker_copy(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        probe = attacker(inputs[:2].to(next(attacker.parameters()).device))
    data = {"inputs": inputs, "probe": probe}
    return fingerprint(model) + digest_of(data) + settings.encode()


def _forward(
    model: nn.Module, inputs: Tensor, *, num_classes: int, head: str | None, seed: int
) -> HeadPass:
    attacker = attacker_copy(model)
    layer = head_module(attacker, num_classes, head)
    seen: list[Tensor] = []
    output: list[Tensor] = []

    def read(module: nn.Module, arguments: tuple[Any, ...], result: Tensor) -> None:
        seen.append(arguments[0].detach())
        output.append(result)

    device = layer.weight.device
    probabilities, sums = [], []
    handle = layer.register_forward_hook(read)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        for chunk in torch.split(inputs, CHUNK):
            seen.clear()
            output.clear()
            logits = attacker(chunk.to(device))
            _check(logits, seen, len(chunk), num_classes)
            # In double precision: 1 - p of a confident model is lost in single.
            probabilities.append(logits.double().softmax(dim=1))
            _check_output(probabilities[-1], output[0])
            sums.append(seen[0].double().sum(dim=1))
    handle.remove()
    return HeadPass(finite(torch.cat(probabilities)), finite(torch.cat(sums)))


def _check(logits: Tensor, seen: list[Tensor], examples: int, num_classes: int) -> None:
    if len(seen) != 1 or seen[0].ndim != 2 or logits.shape != (examples, num_classes):
        shapes = [tuple(s.shape) for s in seen]
        raise NotApplicableError(
            f"expected one row of features and {num_classes} logits per example; for {examples} "
            f"examples the head saw {shapes} and the model returned {tuple(logits.shape)}"
        )


def _check_output(probabilities: Tensor, output: Tensor) -> None:
    # Confidences and not logits, since a shift or a log-softmax changes no gradient.
    own = output.double().softmax(dim=1)
    if not torch.allclose(probabilities, own, rtol=0, atol=1e-3, equal_nan=True):
        raise NotApplicableError(
            "expected the model's output to be that of its output layer, got other confidences; "
            "if another layer is the output layer, name it with head=..."
        )


def labels_array(labels: Tensor, num_classes: int) -> np.ndarray:
    """Auxiliary labels as an int64 array, checked to lie in ``[0, num_classes)``."""
    found: np.ndarray = labels.detach().cpu().to(torch.int64).numpy()
    if found.size and not (found.min() >= 0 and found.max() < num_classes):
        raise ValueError(
            f"auxiliary labels must lie in 0..{num_classes - 1}, "
            f"got {int(found.min())}..{int(found.max())}"
        )
    return found
