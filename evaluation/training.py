"""What a defence costs: accuracy after training with it, and time per step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from gradguard import Defense, NonFiniteGradientError
from gradguard.evaluation.specs import TrainingSpec
from gradguard.finite import NonFiniteExampleError
from gradguard.hook_warning import without_hook_warning

Criterion = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A training run.

    Args:
        model: The model after the last step that succeeded.
        accuracy: Share of test images classified correctly; 0.0 when the run diverged.
        diverged: Loss, gradient or weights stopped being finite.
    """

    model: nn.Module
    accuracy: float
    diverged: bool


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Tensors as a dataset that hands out a whole batch in one indexing operation."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        # DataLoader asks for a batch this way if it can: 60 times fewer tensor operations than
        # fetching and stacking images one by one, which takes longer than a small model's step.
        return self.inputs[indices], self.labels[indices]


def _as_fetched(batch: Any) -> Any:
    return batch


def loader(inputs: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> DataLoader[Any]:
    """Shuffled full batches, in an order decided by ``seed``."""
    return DataLoader(
        Images(inputs, labels),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=_as_fetched,
        generator=torch.Generator().manual_seed(seed),
    )


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    spec: TrainingSpec,
    seed: int,
    defense: Defense | None,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train ``model`` in place, through ``defense.attach`` where there is a defence.

    Guarantees:

    - the same seed gives the same batches, with whatever defence;
    - a run whose loss, gradient or weights stop being finite ends there, with accuracy 0.0.

    Args:
        data: Inputs and labels to train on.
        test: Inputs and labels to measure accuracy on.
    """
    optimizer: Optimizer = torch.optim.SGD(
        model.parameters(), lr=spec.learning_rate, momentum=spec.momentum
    )
    batches: Any = loader(*data, batch_size=spec.batch_size, seed=seed)
    model.train()
    criterion: Criterion = spec.criterion
    trained: nn.Module = model
    if defense is not None:
        attached = defense.attach(
            model, optimizer, batches, criterion=spec.criterion, aggregated=True
        )
        # A deployed guard takes its noise from the operating system; a study can be run again.
        attached.reset(seed)
        trained, optimizer, batches = attached
        criterion = getattr(attached, "criterion", criterion)
    # Dropout and a defence's default streams draw from the global state: keep that repeatable.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        finite = _run(trained, optimizer, criterion, endless(batches), spec.steps, on_step)
    if not finite or not is_finite(model):
        return Outcome(model, 0.0, True)
    return Outcome(model, accuracy(model, *test), False)


def _run(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    on_step: Callable[[], None],
) -> bool:
    """Take the steps; false as soon as a loss or a gradient is not finite."""
    with without_hook_warning():
        return all(_step(model, optimizer, criterion, next(batches), on_step) for _ in range(steps))


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    batch: tuple[Tensor, Tensor],
    on_step: Callable[[], None],
) -> bool:
    inputs, labels = batch
    optimizer.zero_grad()
    loss = criterion(model(inputs), labels)
    # A Poisson batch may be empty, and the mean of nothing is NaN; its gradient is zero.
    if len(labels) and not math.isfinite(loss.item()):
        return False
    loss.backward()
    # A guard refuses a gradient that is not finite. Without one it reaches the weights, and
    # the next loss, or the weights at the end, show it.
    try:
        optimizer.step()
    except (NonFiniteGradientError, NonFiniteExampleError):
        return False
    on_step()
    return True


def step_overhead(
    build: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    *,
    spec: TrainingSpec,
    defense: Defense,
    steps: int = 15,
) -> float:
    """Median time of a defended training step over that of a bare one, measured in turns.

    In turns, because a machine that slows down half-way would otherwise slow one side only.
    """
    sides = []
    for side in (None, defense):
        model = build()
        optimizer: Optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        batches: Any = loader(*data, batch_size=spec.batch_size, seed=0)
        criterion: Criterion = spec.criterion
        if side is not None:
            attached = side.attach(
                model, optimizer, batches, criterion=spec.criterion, aggregated=True
            )
            model, optimizer, batches = attached
            criterion = getattr(attached, "criterion", criterion)
        sides.append((model, optimizer, criterion, endless(batches)))
    times: list[list[float]] = [[], []]
    for _ in range(steps):
        for (model, optimizer, criterion, batches), taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            _run(model, optimizer, criterion, batches, 1, lambda: None)
            taken.append(time.perf_counter() - start)
    warm = [np.median(taken[steps // 5 :]) for taken in times]
    return float(warm[1] / warm[0])


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of ``inputs`` whose highest output is the label; leaves the model's mode as it was."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        parts = zip(torch.split(inputs, 512), torch.split(labels, 512), strict=True)
        hits = [int((model(x).argmax(dim=1) == y).sum()) for x, y in parts]
    model.train(mode)
    return sum(hits) / len(labels)


def endless(batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader, over and over."""
    while True:
        yield from batches


def is_finite(model: nn.Module) -> bool:
    """Whether no parameter holds NaN or infinity."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
