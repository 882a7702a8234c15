"""The guard gives its memory to transforms that work in place, and stays right or refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    ClipByGlobalNorm,
    ErrorFeedback,
    Grads,
    GradTransform,
    Identity,
    KeepTopK,
    NonFiniteGradientError,
    State,
    chain,
    guard,
)
from gradguard.core import InPlace
from gradguard.finite import check_finite
from gradguard.optimizer import GuardedOptimizer
from tests.optimizer.training import backward, differentiate, network, same, train


@dataclass(frozen=True)
class Halves:
    """Halves gradients, in place where it may, and says which way it was called."""

    calls: list[str] = field(default_factory=list, compare=False)

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.calls.append("update")
        return [None if g is None else g * 0.5 for g in grads], state

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.calls.append("update_")
        return [None if g is None else g.mul_(0.5) for g in grads], state


class Doubles(Halves):
    """Overrides ``update`` alone, and so has inherited an ``update_`` that does something else."""

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g * 2 for g in grads], state


@dataclass(frozen=True)
class Accumulates:
    """Sends the sum of all gradients so far, held in memory that is used again."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {"memory": [torch.zeros_like(p) for p in params]}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.update_(copy.deepcopy(grads), copy.deepcopy(state))

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        for grad, held in zip(grads, state["memory"], strict=True):
            if grad is not None:
                grad.copy_(held.add_(grad))
        return grads, state


@dataclass(frozen=True)
class KeepsAndPasses:
    """A pure transform that passes its argument on and holds it in its state as well."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {"last": [torch.zeros_like(p) for p in params]}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return list(grads), {"last": list(grads)}


@dataclass(frozen=True)
class Fails:
    """Raises as long as the switch is on."""

    on: list[bool]

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if self.on[0]:
            raise OverflowError("too large to send")
        return grads, state


def _one(transform: GradTransform) -> tuple[nn.Parameter, GuardedOptimizer]:
    p = nn.Parameter(torch.zeros(2))
    return p, guard(torch.optim.SGD([p], lr=1.0), transform)


def _differentiate(p: nn.Parameter, optimizer: GuardedOptimizer, value: float = 2.0) -> None:
    optimizer.zero_grad()
    differentiate((p * value).sum())


def test_the_gradient_is_transformed_where_it_lies_and_not_copied() -> None:
    halves = Halves()
    p, optimizer = _one(halves)
    _differentiate(p, optimizer)
    grad = p.grad
    assert grad is not None
    version = grad._version
    optimizer.step()
    assert halves.calls == ["update_"]
    assert p.grad is grad
    assert grad._version == version + 1  # one write: nothing was copied back
    assert p.tolist() == [-1.0, -1.0]


def test_an_identity_guard_writes_nothing() -> None:
    p, optimizer = _one(chain(Identity(), Identity()))
    _differentiate(p, optimizer)
    assert p.grad is not None
    before = p.grad._version
    optimizer.step()
    assert p.grad._version == before


def test_state_memory_is_used_again() -> None:
    p, optimizer = _one(Accumulates())
    held = optimizer.guard_state["memory"][0]
    for total in (2.0, 4.0):
        _differentiate(p, optimizer)
        optimizer.release()
        assert optimizer.guard_state["memory"][0] is held
        assert held.tolist() == [total, total]


def test_an_inherited_update_in_place_does_not_replace_an_overridden_update() -> None:
    p, optimizer = _one(chain(Doubles()))
    _differentiate(p, optimizer)
    optimizer.step()
    assert p.tolist() == [-4.0, -4.0]


def test_protocols_are_told_apart() -> None:
    assert isinstance(Identity(), InPlace)
    assert not isinstance(KeepsAndPasses(), InPlace)


def test_a_pure_transform_in_a_chain_keeps_its_state_from_the_writes_of_the_next() -> None:
    p, optimizer = _one(chain(Halves(), KeepsAndPasses(), Halves()))
    _differentiate(p, optimizer)
    optimizer.step()
    assert p.tolist() == [-0.5, -0.5]
    optimizer.zero_grad(set_to_none=False)
    assert optimizer.guard_state["1:KeepsAndPasses"]["last"][0].tolist() == [1.0, 1.0]


LAYOUTS: dict[str, Callable[[], list[Tensor]]] = {
    "views of one bucket": lambda: [*torch.split(torch.arange(4.0), 2)],
    "interlaced views": lambda: [*torch.arange(4.0).view(2, 2).unbind(1)],
    "transposed": lambda: [torch.arange(4.0).view(2, 2).t(), torch.ones(2)],
    "with gaps": lambda: [torch.arange(4.0)[::2], torch.ones(2)],
    "empty": lambda: [torch.zeros(0, 3), torch.zeros(0)],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_of_every_layout_come_out_as_from_the_pure_update(name: str) -> None:
    grads = LAYOUTS[name]()
    params = [nn.Parameter(torch.zeros(g.shape)) for g in grads]
    expected = [g * 0.5 for g in grads]
    optimizer = guard(torch.optim.SGD(params, lr=1.0), Halves())
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert same(expected, grads)
    assert same([-g for g in expected], params)


def test_gradients_in_one_memory_are_not_transformed_twice() -> None:
    shared = torch.full((2,), 2.0)
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for p in params:
        p.grad = shared
    halves = Halves()
    guard(torch.optim.SGD(params, lr=1.0), halves).step()
    assert halves.calls == ["update"]
    assert shared.tolist() == [1.0, 1.0]


def test_gradients_in_one_memory_that_should_differ_are_refused() -> None:
    """The memory holds one of the two only: a withheld layer might be sent through the other."""
    shared = torch.ones(2)
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for p in params:
        p.grad = shared
    optimizer = guard(torch.optim.SGD(params, lr=1.0), AddGaussian(1.0))
    with pytest.raises(RuntimeError, match=r"p\.grad = p\.grad\.clone\(\)"):
        optimizer.step()
    assert all(not p.detach().any() for p in params)
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.release()


def test_a_gradient_that_lies_in_the_state_is_not_transformed_in_place() -> None:
    p, optimizer = _one(Accumulates())
    _differentiate(p, optimizer)
    optimizer.release()
    p.grad = optimizer.guard_state["memory"][0]
    p.grad.add_(1.0)  # the memory holds 3 now, and the gradient is the same 3
    optimizer.release()
    assert p.grad.tolist() == [6.0, 6.0]
    assert optimizer.guard_state["memory"][0] is not p.grad
    assert optimizer.guard_state["memory"][0].tolist() == [6.0, 6.0]


def _failed_after_writing_state() -> tuple[nn.Parameter, GuardedOptimizer, list[bool]]:
    on = [False]
    p, optimizer = _one(chain(Accumulates(), Fails(on)))
    _differentiate(p, optimizer)
    optimizer.step()
    on[0] = True
    _differentiate(p, optimizer)
    with pytest.raises(OverflowError):
        optimizer.step()
    on[0] = False
    return p, optimizer, on


ACTIONS: list[Callable[[GuardedOptimizer], Any]] = [
    GuardedOptimizer.step,
    lambda optimizer: optimizer.step(lambda: 0.0),
    GuardedOptimizer.release,
    GuardedOptimizer.state_dict,
    lambda optimizer: copy.deepcopy(optimizer).step(),
    lambda optimizer: pickle.loads(pickle.dumps(optimizer)).state_dict(),
]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_update_that_fails_after_writing_state_closes_the_guard(
    action: Callable[[GuardedOptimizer], Any],
) -> None:
    p, optimizer, _ = _failed_after_writing_state()
    before = p.detach().clone()
    _differentiate(p, optimizer)
    with pytest.raises(RuntimeError, match=r"half way.*too large to send.*reset\(\)"):
        action(optimizer)
    assert torch.equal(p, before)


def test_a_reset_opens_the_guard_again_after_a_fresh_backward() -> None:
    p, optimizer, _ = _failed_after_writing_state()
    optimizer.reset()
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()
    _differentiate(p, optimizer)
    optimizer.step()
    assert p.tolist() == [-4.0, -4.0]


def test_a_checkpoint_opens_the_guard_again() -> None:
    on = [False]
    p, optimizer = _one(chain(Accumulates(), Fails(on)))
    _differentiate(p, optimizer)
    optimizer.step()
    saved = optimizer.state_dict()
    on[0] = True
    _differentiate(p, optimizer)
    with pytest.raises(OverflowError):
        optimizer.release()
    on[0] = False
    optimizer.load_state_dict(saved)
    _differentiate(p, optimizer)
    optimizer.step()
    assert p.tolist() == [-6.0, -6.0]


def test_a_failure_after_noise_was_added_closes_the_guard_that_would_repeat_it() -> None:
    on = [True]
    p, optimizer = _one(chain(AddGaussian(1.0), Fails(on)))
    _differentiate(p, optimizer)
    with pytest.raises(OverflowError):
        optimizer.step()
    _differentiate(p, optimizer)
    with pytest.raises(RuntimeError, match="noise may repeat"):
        optimizer.step()


def test_a_failure_that_spoilt_gradients_only_asks_for_a_fresh_backward() -> None:
    on = [True]
    p, optimizer = _one(chain(Halves(), Fails(on)))
    _differentiate(p, optimizer)
    with pytest.raises(OverflowError):
        optimizer.step()
    on[0] = False
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()
    _differentiate(p, optimizer)
    optimizer.step()
    assert p.tolist() == [-1.0, -1.0]


def test_a_failure_after_a_release_does_not_let_a_step_apply_half_an_update() -> None:
    on = [False]
    p, optimizer = _one(chain(Halves(), Fails(on)))
    _differentiate(p, optimizer)
    optimizer.release()
    on[0] = True
    _differentiate(p, optimizer)
    with pytest.raises(OverflowError):
        optimizer.release()
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()
    assert p.tolist() == [0.0, 0.0]


def test_a_failure_before_anything_was_written_changes_nothing() -> None:
    on = [True]
    p, optimizer = _one(chain(Identity(), Fails(on)))
    _differentiate(p, optimizer)
    with pytest.raises(OverflowError):
        optimizer.step()
    on[0] = False
    optimizer.step()
    assert p.tolist() == [-2.0, -2.0]


def test_a_refused_gradient_is_unwritten_and_training_goes_on_without_a_reset() -> None:
    model = network()
    defence = chain(ClipByGlobalNorm(0.1), ErrorFeedback(KeepTopK(0.5)), AddGaussian(0.1))
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), defence)
    train(model, optimizer, steps=1)
    saved = optimizer.state_dict()
    backward(model, optimizer)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    grads[-1][0] = float("nan")
    before = [g.nan_to_num(7.0) for g in grads]
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()
    assert same(before, [g.nan_to_num(7.0) for g in grads])
    kept, now = (s["gradguard"] for s in (saved, optimizer.state_dict()))
    assert same(kept["1:ErrorFeedback"]["memory"], now["1:ErrorFeedback"]["memory"])
    assert torch.equal(kept["2:AddGaussian"]["rng"], now["2:AddGaussian"]["rng"])
    train(model, optimizer, steps=1)


def test_in_place_training_is_bitwise_training_through_the_pure_update() -> None:
    class Pure(Accumulates):
        def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
            return Accumulates().update(grads, state)

    owned, copied = network(), network()
    one = guard(torch.optim.Adam(owned.parameters()), chain(Halves(), Accumulates()))
    other = guard(torch.optim.Adam(copied.parameters()), chain(Halves(), Pure()))
    assert same(train(owned, one), train(copied, other))
    saved = one.state_dict()
    held = copy.deepcopy(saved["gradguard"])
    backward(owned, one)
    one.step()
    assert same(held["1:Accumulates"]["memory"], saved["gradguard"]["1:Accumulates"]["memory"])
