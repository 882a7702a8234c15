"""With Opacus: the guard goes inside DPOptimizer, and is refused outside."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import GuardedOptimizer, KeepTopK, guard
from gradguard.core import GradTransform
from tests.optimizer.training import INPUTS, TARGETS, Spy, differentiate, network


def _private(transform: GradTransform) -> tuple[PrivacyEngine, nn.Module, Any, Any]:
    model = network()
    inner = guard(torch.optim.SGD(model.parameters(), lr=0.1), transform)
    engine = PrivacyEngine(accountant="prv")
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=inner,
        data_loader=DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    return engine, model, optimizer, loader


def _epoch(model: nn.Module, optimizer: Any, loader: Any) -> int:
    steps = 0
    with warnings.catch_warnings():
        # Opacus' backward hooks see inputs that need no gradient, of which torch warns.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for inputs, targets in loader:
            optimizer.zero_grad()
            differentiate(nn.functional.mse_loss(model(inputs), targets))
            optimizer.step()
            steps += 1
    return steps


def _make(transform: GradTransform) -> tuple[PrivacyEngine, nn.Module, Any, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        return _private(transform)


def test_guard_inside_make_private_transforms_the_noised_gradient() -> None:
    spy = Spy()
    engine, model, optimizer, loader = _make(spy)
    steps = _epoch(model, optimizer, loader)
    assert isinstance(optimizer.original_optimizer, GuardedOptimizer)
    assert len(spy.seen) == steps == 2
    assert sum(int(entry[2]) for entry in engine.accountant.history) == steps
    # Clipped to norm 1 and averaged over 8, the gradient alone could not be this long.
    norms = [torch.cat([g.view(-1) for g in seen if g is not None]).norm() for seen in spy.seen]
    assert max(norms) > 1 / 8


def test_guard_inside_make_private_changes_what_is_applied() -> None:
    _, model, optimizer, loader = _make(KeepTopK(0.1))
    _epoch(model, optimizer, loader)
    flat = torch.cat([p.grad.view(-1) for p in model.parameters() if p.grad is not None])
    assert int(flat.count_nonzero()) == round(0.1 * flat.numel())


def test_guard_around_dp_optimizer_is_refused_with_the_mend() -> None:
    _, _, optimizer, _ = _make(Spy())
    with pytest.raises(TypeError, match=r"make_private\(optimizer=guard\(optimizer"):
        guard(optimizer, KeepTopK(0.1))
