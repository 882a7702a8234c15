"""GradScaler: transforms see gradients at their true scale, and overflow costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradguard import AddGaussian, Identity, guard
from tests.optimizer.training import Spy, differentiate, loss_of, network, same

MAKE: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
}


def _step(
    model: nn.Module, optimizer: Optimizer, scaler: GradScaler, *, unscale: bool, factor: float = 1
) -> None:
    optimizer.zero_grad()
    differentiate(scaler.scale(loss_of(model) * factor))
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_transforms_see_gradients_at_true_scale(name: str, unscale: bool) -> None:
    spy, model = Spy(), network()
    differentiate(loss_of(model))
    true = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer = guard(MAKE[name](model.parameters()), spy)
    _step(model, optimizer, GradScaler("cpu", init_scale=1024.0), unscale=unscale)
    (seen,) = spy.seen
    for a, b in zip(true, seen, strict=True):
        assert b is not None
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_identity_guard_under_a_scaler_is_bitwise_the_bare_optimizer(
    name: str, unscale: bool
) -> None:
    runs = []
    for wrapped in (False, True):
        model = network()
        inner = MAKE[name](model.parameters())
        optimizer = guard(inner, Identity()) if wrapped else inner
        scaler = GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, float("inf"), 1.0):
            _step(model, optimizer, scaler, unscale=unscale, factor=factor)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert same(*runs)


def test_unscaled_gradients_can_be_released_and_are_then_stepped_as_they_are() -> None:
    spy, model = Spy(), network()
    optimizer = guard(MAKE["sgd"](model.parameters()), spy)
    scaler = GradScaler("cpu", init_scale=1024.0)
    differentiate(scaler.scale(loss_of(model)))
    scaler.unscale_(optimizer)
    optimizer.release()
    scaler.step(optimizer)
    scaler.update()
    assert len(spy.seen) == 1


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_overflow_skips_the_step_and_spends_no_noise(name: str, unscale: bool) -> None:
    model = network()
    optimizer = guard(MAKE[name](model.parameters()), AddGaussian(1.0))
    before = optimizer.state_dict()["gradguard"]["0:AddGaussian"]["rng"]
    weights = [p.detach().clone() for p in model.parameters()]
    scaler = GradScaler("cpu", init_scale=1024.0)
    _step(model, optimizer, scaler, unscale=unscale, factor=float("inf"))
    assert same(weights, list(model.parameters()))
    assert torch.equal(before, optimizer.state_dict()["gradguard"]["0:AddGaussian"]["rng"])
    assert scaler.get_scale() == 512.0
    _step(model, optimizer, scaler, unscale=unscale)
    assert not torch.equal(before, optimizer.state_dict()["gradguard"]["0:AddGaussian"]["rng"])
