"""A training step with a guard that does nothing, over the same step without it."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.resnet18 import resnet18
from benchmarks.turns import Work, in_turns
from gradguard import Identity, guard

BATCH, SIZE, REPEATS = 8, 32, 25


def identity_ratio() -> tuple[float, float]:
    """Forward, backward and SGD step of ResNet-18, with a guard and without.

    Returns:
        The median with over the median without, and the latter in milliseconds.
    """
    inputs, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))
    steps = {"bare": _step(False, inputs, labels), "guarded": _step(True, inputs, labels)}
    seconds = in_turns(steps, before=lambda: None, repeats=REPEATS, warm_up=3)
    return seconds["guarded"] / seconds["bare"], 1e3 * seconds["bare"]


def _step(guarded: bool, inputs: torch.Tensor, labels: torch.Tensor) -> Work:
    model = resnet18((3, SIZE, SIZE), 1000)
    bare = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = guard(bare, Identity(), model=model) if guarded else bare

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
