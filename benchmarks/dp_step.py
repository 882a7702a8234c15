"""Time of a private training step over that of plain Opacus, in one run, step by step in turns."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.table import print_table
from gradguard import KeepTopK
from gradguard.core import GradTransform
from gradguard.dp import make_private
from gradguard.evaluation.models import build_model, find_factory
from gradguard.hook_warning import without_hook_warning

BATCH, CLASSES, SHAPE = 64, 10, (1, 28, 28)
STEPS, ROUNDS = 60, 5
TARGETS = {"nothing": 1.05, "top-k 1 %": 1.15}

Step = Callable[[torch.Tensor, torch.Tensor], None]


def main() -> bool:
    """Print the ratios; true if both are within their targets."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, *SHAPE, generator=rng)
    labels = torch.randint(CLASSES, (BATCH,), generator=rng)
    rows, met = [], True
    for name, after in (("nothing", None), ("top-k 1 %", KeepTopK(0.01))):
        ratios = [_ratio(after, inputs, labels) for _ in range(ROUNDS)]
        ratio = float(np.median(ratios))
        met &= ratio <= TARGETS[name]
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        rows.append([name, f"{ratio:.3f}", spread, f"{TARGETS[name]:.2f}"])
    print_table(
        f"cnn-relu on 28 x 28, batch {BATCH}: median over {ROUNDS} runs of {STEPS} steps in turns",
        ["after the noise", "ratio", "runs", "at most"],
        rows,
    )
    return met


def _ratio(after: GradTransform | None, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    sides, times = (_opacus(), _ours(after)), ([], [])  # type: tuple[Step, Step], tuple[list[float], list[float]]
    with without_hook_warning():
        for i in range(STEPS):
            order = (0, 1) if i % 2 else (1, 0)
            for side in order:
                start = time.perf_counter()
                sides[side](inputs, labels)
                times[side].append(time.perf_counter() - start)
    warm = [np.median(taken[STEPS // 5 :]) for taken in times]
    return float(warm[1] / warm[0])


def _setting() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    factory = find_factory("cnn-relu", None)
    model = build_model(factory, input_shape=SHAPE, num_classes=CLASSES, seed=0)
    data = TensorDataset(torch.zeros(4096, *SHAPE), torch.zeros(4096, dtype=torch.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, DataLoader(data, batch_size=BATCH)


def _opacus() -> Step:
    model, optimizer, loader = _setting()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG")
        engine = PrivacyEngine()
    private, dp, _ = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=1.0,
    )  # fmt: skip
    return _stepper(private, dp)


def _ours(after: GradTransform | None) -> Step:
    model, optimizer, loader = _setting()
    training = make_private(
        model, optimizer, loader, noise_multiplier=1.0, max_grad_norm=1.0, after=after
    )
    return _stepper(training.model, training.optimizer)


def _stepper(model: nn.Module, optimizer: Any) -> Step:
    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
