"""Average gradients of each class, from the attacker's own examples and copy of the model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradguard.attacks.coordinates import Coordinates
from gradguard.attacks.fingerprint import digest_of, fingerprint
from gradguard.attacks.forward import attacker_copy, labels_array
from gradguard.attacks.rounding import Floats, Ints

# Micro-batches over all classes, and the fewest and most for one class: a variance needs a few,
# and more than twenty no longer change the weights that it serves for.
MICRO_BATCHES = 400
FEWEST, MOST = 4, 20
EXAMPLES_PER_CLASS = 512


@dataclass(frozen=True, eq=False)
class ClassGradients:
    """What one example of each class adds to a gradient.

    Args:
        classes: The classes that have examples, sorted; shape ``(present,)``.
        mean: Mean per-example gradient of each, float32 of shape ``(present, coordinates)``.
        variance: Within-class variance of a per-example gradient, averaged over the classes;
            float64 of shape ``(coordinates,)``: squares of small gradients underflow in float32.
    """

    classes: Ints
    mean: np.ndarray
    variance: np.ndarray


def raw_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy by parameter name; zeros where a parameter has none."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    device = named[0][1].device
    with torch.enable_grad():
        loss = cross_entropy(model(inputs.to(device)), labels.to(device, torch.int64))
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for (name, p), grad in zip(named, grads, strict=True)
    }


def class_gradients(
    model: nn.Module,
    auxiliary: tuple[Tensor, Tensor],
    *,
    num_classes: int,
    coordinates: Coordinates,
    seed: int = 0,
) -> ClassGradients:
    """Class means and the within-class variance, from micro-batches of a single class.

    Micro-batches rather than per-example gradients: any model works, and only a few passes are
    needed. The variance of one example is the micro-batch's size times the variance between
    micro-batch means. At most 512 examples per class are read.

    BatchNorm sees batches of one class here and of several at the client; its templates are off
    by that much.

    Args:
        coordinates: Which coordinates to keep; memory grows with classes times these.
        seed: Of a model's own randomness, such as dropout.

    Raises:
        ValueError: There is no auxiliary example.
    """
    inputs, labels = auxiliary
    found = labels_array(labels, num_classes)
    if len(found) == 0 or len(found) != len(inputs):
        raise ValueError(
            f"expected auxiliary inputs with a label each, got {len(inputs)} and {len(found)}"
        )
    attacker = attacker_copy(model)
    present = np.unique(found)
    means, variances = [], []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        for label in present:
            members = np.flatnonzero(found == label)[:EXAMPLES_PER_CLASS]
            mean, variance = _one_class(
                attacker, inputs, labels, _micro_batches(members, len(present)), coordinates
            )
            means.append(mean)
            variances += [] if variance is None else [variance]
    # A class with one example has no variance to show; with only such classes all weights are 1.
    averaged = np.mean(variances, axis=0) if variances else np.ones(means[0].shape)
    return ClassGradients(present.astype(np.int64), np.stack(means), averaged)


def _micro_batches(members: np.ndarray, classes: int) -> list[np.ndarray]:
    wanted = int(np.clip(MICRO_BATCHES // classes, FEWEST, MOST))
    # Two examples at least: BatchNorm in training mode refuses a single one.
    return np.array_split(members, max(1, min(wanted, len(members) // 2)))


def _one_class(
    attacker: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    parts: list[np.ndarray],
    coordinates: Coordinates,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and per-example variance; sums are kept, not the micro-batches' gradients."""
    total: Floats = np.zeros(1)
    squares: Floats = np.zeros(1)
    for part in parts:
        rows = torch.from_numpy(part if len(part) > 1 else np.repeat(part, 2))
        gradient = coordinates.read(raw_gradient(attacker, inputs[rows], labels[rows]))
        gradient = gradient.astype(np.float64)
        total = total + len(part) * gradient
        squares = squares + len(part) * gradient**2
    examples = sum(len(part) for part in parts)
    mean = total / examples
    if len(parts) < 2:
        return mean.astype(np.float32), None
    spread = np.maximum(squares - examples * mean**2, 0.0) / (len(parts) - 1)
    return mean.astype(np.float32), spread


class Remembered:
    """The last few results of :func:`class_gradients`, by the content of everything they came from.

    A study attacks one model under many defences, with four template attacks each. Keys are
    digests and not object identities, because copies of a model are equal and models change in
    place. Beside the parameters a key has a gradient of the model, which tells apart models that
    differ in what they compute.

    Args:
        entries: How many results to hold; one takes ``4 * classes * coordinates`` bytes.
    """

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._held: OrderedDict[bytes, ClassGradients] = OrderedDict()

    def __call__(
        self,
        model: nn.Module,
        auxiliary: tuple[Tensor, Tensor],
        *,
        num_classes: int,
        coordinates: Coordinates,
        seed: int = 0,
    ) -> ClassGradients:
        """:func:`class_gradients`, computed where it is not remembered."""
        key = _key(model, auxiliary, num_classes, coordinates, seed)
        if key not in self._held:
            self._held[key] = class_gradients(
                model, auxiliary, num_classes=num_classes, coordinates=coordinates, seed=seed
            )
            while len(self._held) > self.entries:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]


def _key(
    model: nn.Module,
    auxiliary: tuple[Tensor, Tensor],
    num_classes: int,
    coordinates: Coordinates,
    seed: int,
) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        probe = raw_gradient(attacker_copy(model), auxiliary[0][:2], auxiliary[1][:2])
    data = {"inputs": auxiliary[0], "labels": auxiliary[1]}
    digests = digest_of(probe) + digest_of(data) + digest_of(coordinates.chosen)
    return fingerprint(model) + digests + f"{num_classes} {seed}".encode()
