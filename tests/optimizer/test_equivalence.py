"""Under Identity() a guarded optimizer is bitwise the bare one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from gradguard import ClipByGlobalNorm, ClipByValue, Identity, Sign, chain, guard
from tests.optimizer.training import Spy, backward, loss_of, network, same, train

Make = Callable[[Iterable[Tensor]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD+momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD+decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_identity_guard_is_bitwise_the_bare_optimizer(name: str) -> None:
    bare, guarded = network(), network()
    plain = train(bare, OPTIMIZERS[name](bare.parameters()))
    assert same(plain, train(guarded, guard(OPTIMIZERS[name](guarded.parameters()), Identity())))


def _lbfgs(model: nn.Module, wrap: Callable[[Optimizer], Optimizer]) -> list[Tensor]:
    optimizer = wrap(torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe"))
    for _ in range(3):
        optimizer.step(lambda: backward(model, optimizer))
    return [p.detach().clone() for p in model.parameters()]


def test_identity_guard_is_bitwise_lbfgs_with_strong_wolfe() -> None:
    plain = _lbfgs(network(), lambda optimizer: optimizer)
    assert same(plain, _lbfgs(network(), lambda optimizer: guard(optimizer, Identity())))


def test_every_gradient_lbfgs_sees_is_transformed() -> None:
    spy, model = Spy(), network()
    optimizer = guard(torch.optim.LBFGS(model.parameters()), spy)
    after: list[float] = []

    def closure() -> float:
        loss = backward(model, optimizer)
        after.append(float(next(model.parameters()).grad.norm()))  # type: ignore[union-attr]
        return loss

    optimizer.step(closure)
    assert len(spy.seen) == len(after) > 1
    for raw, seen in zip(after, spy.seen, strict=True):
        assert seen[0] is not None
        assert float(seen[0].norm()) == raw


def test_closure_returns_its_loss_and_runs_with_gradients_enabled() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Sign())
    expected = loss_of(model).item()
    with torch.no_grad():
        assert optimizer.step(lambda: backward(model, optimizer)) == expected


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["SGD+momentum", "AdamW"])
def test_schedulers_drive_the_inner_optimizer_momentum_included(name: str, kind: str) -> None:
    runs = []
    for wrapped in (False, True):
        model = network()
        inner = OPTIMIZERS[kind](model.parameters())
        optimizer = guard(inner, Identity()) if wrapped else inner
        scheduler = SCHEDULERS[name](optimizer)
        for _ in range(6):
            backward(model, optimizer)
            optimizer.step()
            scheduler.step()
        runs.append([p.detach().clone() for p in model.parameters()])
        runs[-1].append(torch.tensor([float(inner.param_groups[0]["lr"])]))
    assert same(*runs)


def test_groups_state_and_defaults_are_views_of_the_inner_optimizer() -> None:
    inner = OPTIMIZERS["AdamW"](network().parameters())
    optimizer = guard(inner, Identity())
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    assert isinstance(optimizer, Optimizer)


def test_unknown_attributes_are_not_forwarded() -> None:
    """GradScaler would hand scaled gradients to an optimizer that has this attribute."""
    optimizer = guard(OPTIMIZERS["Adam fused"](network().parameters()), Identity())
    assert getattr(optimizer.inner, "_step_supports_amp_scaling", False)
    assert not hasattr(optimizer, "_step_supports_amp_scaling")


def test_step_hooks_of_torch_work_on_the_guard() -> None:
    """torch makes its hook tables in Optimizer.__setstate__; this pins that it still does."""
    model, calls = network(), list[str]()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Identity())
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(model, optimizer, steps=1)
    assert calls == ["pre", "post"]


def test_a_guard_around_a_guard_is_the_chain() -> None:
    outer, inner = ClipByValue(0.05), ClipByGlobalNorm(0.1)
    nested, chained = network(), network()
    twice = guard(guard(torch.optim.SGD(nested.parameters(), lr=0.1), inner), outer)
    once = guard(torch.optim.SGD(chained.parameters(), lr=0.1), chain(outer, inner))
    assert same(train(nested, twice), train(chained, once))


def test_the_gradient_left_behind_is_the_defended_one() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Sign())
    backward(model, optimizer)
    buffers = [p.grad for p in model.parameters()]
    raw = copy.deepcopy(buffers)
    optimizer.step()
    expected, _ = Sign().update(raw, {})
    for p, buffer, defended in zip(model.parameters(), buffers, expected, strict=True):
        assert p.grad is buffer  # written in place: DDP buckets alias it
        assert buffer is not None
        assert defended is not None
        assert torch.equal(buffer, defended)
