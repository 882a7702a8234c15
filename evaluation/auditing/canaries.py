"""Canaries: examples whose presence, or whose label, moves a clipped sum as far as can be."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

Batch = tuple[Tensor, Tensor]
Canary = Literal["add-remove", "label-flip"]

_STEPS = 200


@dataclass(frozen=True, eq=False)
class CanaryBatches:
    """One batch with the canary first, and its two kinds of neighbours."""

    with_canary: Batch
    removed: Batch
    flipped: Batch

    def neighbour(self, canary: str) -> Batch:
        """The batch that an ``"add-remove"`` or ``"label-flip"`` audit compares with."""
        return self.removed if canary == "add-remove" else self.flipped


def canary_batches(model: nn.Module, images: Tensor, labels: Tensor) -> CanaryBatches:
    """Turn the first image into a canary that the model holds for one of two classes.

    The softmax gradient is ``p - e_y``. Where ``p`` is one half on two classes, their gradients
    are opposite, so that flipping the label moves the clipped sum by twice the clipping norm,
    and each is long enough to be clipped unless the norm is large.

    Not guaranteed: that such an input is found for every model. A weaker canary makes the lower
    bound smaller and never wrong.

    Args:
        model: Its outputs are ``(batch, classes)``; copied.
        images: Shape ``(batch, ...)``; all but the first stay as they are.
        labels: Shape ``(batch,)``.
    """
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        one, other = (int(c) for c in model(images)[0].topk(2).indices)
    inputs = images.clone()
    inputs[:1] = _undecided(model, images[:1], one, other)
    marked, flipped = labels.clone(), labels.clone()
    marked[0], flipped[0] = one, other
    return CanaryBatches((inputs, marked), (inputs[1:], marked[1:]), (inputs, flipped))


def _undecided(model: nn.Module, image: Tensor, one: int, other: int) -> Tensor:
    """An input that the model gives to two classes, half and half."""
    found = image.clone().requires_grad_()
    optimizer = torch.optim.Adam([found], lr=0.1)
    for _ in range(_STEPS):
        scores = log_softmax(model(found), dim=1)
        loss = -(scores[0, one] + scores[0, other])
        (found.grad,) = torch.autograd.grad(loss, [found])
        optimizer.step()
    # A model that overflows on the way is audited with the image as it was.
    return found.detach() if bool(torch.isfinite(found).all()) else image


def check_neighbours(with_canary: Batch, without_canary: Batch, canary: Canary) -> None:
    """Raise unless both batches differ by exactly what ``canary`` says.

    Comparing a label flip with the claim for adding and removing would call a correct mechanism
    broken, and the other way round would pass a broken one.
    """
    if canary not in get_args(Canary):
        raise ValueError(f"canary must be 'add-remove' or 'label-flip', got {canary!r}")
    (inputs, labels), (others, other_labels) = with_canary, without_canary
    if canary == "label-flip":
        same = len(labels) == len(other_labels) and torch.equal(inputs, others)
        if not same or int((labels != other_labels).sum()) != 1:
            raise ValueError(
                "a label-flip audit needs the same inputs and labels that differ in one place"
            )
        return
    rest = len(other_labels)
    if len(labels) == rest + 1:
        for out in range(rest + 1):
            kept = torch.arange(rest + 1) != out
            if torch.equal(inputs[kept], others) and torch.equal(labels[kept], other_labels):
                return
    raise ValueError(
        "an add-remove audit needs a batch and the same batch, in order, without one example; "
        f"got {len(labels)} and {rest} examples"
    )
