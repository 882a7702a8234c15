"""Reading the output layer out of a set of messages, and refusing what cannot be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.head import find_head
from gradguard.attacks.rounding import Floats, Ints
from gradguard.attacks.threat import NotApplicableError, Observation


def batch_sizes(observations: Sequence[Observation]) -> Ints:
    """Examples behind each message, shape ``(observations,)``.

    Raises:
        ValueError: There is no observation, they differ in classes, a batch is empty, or the
            local steps or the learning rate are not positive.
    """
    if not observations:
        raise ValueError("expected at least one observation, got none")
    classes = {o.num_classes for o in observations}
    if len(classes) > 1:
        raise ValueError(f"observations must agree on num_classes, got {sorted(classes)}")
    sizes = np.array([o.batch_size for o in observations], dtype=np.int64)
    if not (sizes >= 1).all():
        raise ValueError(f"batch_size must be at least 1, got {int(sizes.min())}")
    if any(o.local_steps < 1 or not 0 < o.steps_and_rate < math.inf for o in observations):
        raise ValueError("local_steps must be at least 1 and learning_rate positive and finite")
    return sizes


def require_fitted(observations: Sequence[Observation], batch_size: int, num_classes: int) -> None:
    """Raise ``ValueError`` where an attack was fitted for another batch size or other classes."""
    if not observations:
        raise ValueError("expected at least one observation, got none")
    for seen in observations:
        if (seen.batch_size, seen.num_classes) != (batch_size, num_classes):
            raise ValueError(
                f"fitted for batches of {batch_size} and {num_classes} classes, got "
                f"{seen.batch_size} and {seen.num_classes}; fit again with that Knowledge"
            )


def row_sums(observations: Sequence[Observation], head: str | None = None) -> Floats:
    """Sum of each class row of the head's weight gradient, shape ``(observations, classes)``."""
    rows = [weight.sum(dim=1, dtype=torch.float64) for weight in head_weights(observations, head)]
    return finite(torch.stack(rows))


def head_biases(observations: Sequence[Observation], head: str | None = None) -> Floats:
    """The head's bias gradient in a local step, shape ``(observations, classes)``.

    Raises:
        NotApplicableError: The output layer has no bias.
    """
    biases = []
    for o in observations:
        found = find_head(o.update, o.num_classes, head)
        if found.bias is None:
            raise NotApplicableError(f"the output layer {found.layer!r} has no bias to read")
        biases.append(o.update[found.bias].detach().double() / o.steps_and_rate)
    return finite(torch.stack(biases))


def head_weights(observations: Sequence[Observation], head: str | None = None) -> Iterator[Tensor]:
    """The head's weight gradients ``(classes, features)`` in a local step, one at a time.

    A generator, since stacked they may not fit into memory. Several local steps of plain SGD are
    read as their mean gradient: the model's drift between them is left to attacks that rehearse.
    """
    for o in observations:
        weight = o.update[find_head(o.update, o.num_classes, head).weight].detach()
        yield weight if o.steps_and_rate == 1 else weight / o.steps_and_rate


def finite(values: Tensor) -> Floats:
    """As a float64 array; a message with NaN or infinity is refused."""
    array: Floats = values.cpu().numpy()
    if not np.isfinite(array).all():
        raise ValueError(
            "expected finite gradients, got NaN or infinity in the output layer; "
            "the client diverged, so there is no leakage to measure"
        )
    return array


def as_counts(counts: Ints) -> Tensor:
    """The answer of an attack: an int64 tensor of its own memory."""
    return torch.from_numpy(np.ascontiguousarray(counts, dtype=np.int64).copy())
