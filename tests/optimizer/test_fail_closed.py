"""Whatever could let an untransformed gradient through raises, and says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    ErrorFeedback,
    Grads,
    Identity,
    KeepTopK,
    NonFiniteGradientError,
    Only,
    Sign,
    State,
    Withhold,
    chain,
    guard,
)
from tests.optimizer.training import Spy, backward, network, same, train


@dataclass(frozen=True)
class Faulty:
    """Drops the first gradient, or makes one up where there is none."""

    add: bool

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        first = torch.ones(1) if self.add else None
        return [first, *grads[1:]], state


@pytest.mark.parametrize("add", [True, False])
def test_a_transform_that_adds_or_drops_a_gradient_raises(add: bool) -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = guard(torch.optim.SGD([p], lr=0.1), Faulty(add))
    p.grad = None if add else torch.ones(1)
    with pytest.raises(RuntimeError, match="added or dropped a gradient"):
        optimizer.step()
    assert p.item() == 1.0


def test_a_second_step_without_a_fresh_backward_raises() -> None:
    model = network()
    optimizer = guard(torch.optim.Adam(model.parameters(), lr=0.1), Sign())
    train(model, optimizer, steps=2)
    with pytest.raises(RuntimeError, match=r"Run zero_grad\(\) and backward\(\)"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.release()
    train(model, optimizer, steps=1)


class NormalisedSGD(torch.optim.SGD):
    """Writes to p.grad within its step, as some optimizers do."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.div_(p.grad.norm())
        super().step()


def test_an_optimizer_that_writes_to_its_gradients_does_not_make_them_fresh() -> None:
    model = network()
    optimizer = guard(NormalisedSGD(model.parameters(), lr=0.1), Sign())
    train(model, optimizer, steps=2)
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()


@pytest.mark.parametrize("to_none", [True, False])
def test_a_fresh_backward_is_recognised_however_gradients_are_zeroed(to_none: bool) -> None:
    model, spy = network(), Spy()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), spy)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=to_none)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert len(spy.seen) == 3


def test_accumulated_gradients_are_transformed_once_together() -> None:
    model, spy = network(), Spy()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), spy)
    for _ in range(2):
        model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert len(spy.seen) == 1


def test_step_after_release_does_not_transform_twice() -> None:
    model, other, spy = network(), network(), Spy()
    released = guard(torch.optim.SGD(model.parameters(), lr=0.1), spy)
    stepped = guard(torch.optim.SGD(other.parameters(), lr=0.1), Spy())
    for _ in range(2):
        backward(model, released)
        released.release()
        released.step()
    assert same(train(other, stepped, steps=2), list(model.parameters()))
    assert len(spy.seen) == 2
    with pytest.raises(RuntimeError, match="already transformed"):
        released.step()


def test_gradients_that_change_after_release_are_transformed_again() -> None:
    """A further backward adds raw gradient on top of the defended one: it must not go out."""
    model, spy = network(), Spy()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), spy)
    backward(model, optimizer)
    optimizer.release()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert len(spy.seen) == 2


def test_the_step_check_keeps_no_gradient_alive() -> None:
    """A strong reference to the last gradients would double the memory of training."""
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Sign())
    train(model, optimizer, steps=1)
    references = [ref for ref, _ in optimizer._seen]
    assert all(ref() is not None for ref in references)
    optimizer.zero_grad()
    assert all(ref() is None for ref in references)


def test_released_gradients_are_named_copies() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.named_parameters(), lr=0.1), Identity())
    backward(model, optimizer)
    sent = optimizer.release()
    assert isinstance(sent, dict)
    assert list(sent) == [name for name, _ in model.named_parameters()]
    before = {name: g.clone() for name, g in sent.items()}
    optimizer.zero_grad(set_to_none=False)
    assert same(list(before.values()), list(sent.values()))


def test_released_gradients_without_names_are_in_order() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Sign())
    backward(model, optimizer)
    sent = optimizer.release()
    assert isinstance(sent, list)
    assert len(sent) == 4


def test_missing_gradients_stay_missing_and_residuals_wait_for_them() -> None:
    model = network()
    optimizer = guard(
        torch.optim.SGD(model.parameters(), lr=0.1), ErrorFeedback(KeepTopK(0.1, scope="tensor"))
    )
    backward(model, optimizer)
    optimizer.step()
    owed = optimizer.guard_state["memory"][0].clone()
    backward(model, optimizer)
    first = next(model.parameters())
    first.grad = None  # this layer took no part in the batch
    optimizer.step()
    assert first.grad is None
    assert torch.equal(optimizer.guard_state["memory"][0], owed)
    train(model, optimizer, steps=1)
    assert not torch.equal(optimizer.guard_state["memory"][0], owed)


def test_a_step_without_any_gradient_is_a_step_of_the_inner_optimizer() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), AddGaussian(1.0))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    optimizer.step()
    assert same(before, list(model.parameters()))


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = guard(torch.optim.SGD(embedding.parameters(), lr=0.1), Sign())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse=False"):
        optimizer.step()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradients_are_refused_by_name_and_change_nothing(bad: float) -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.named_parameters(), lr=0.1), AddGaussian(1.0))
    backward(model, optimizer)
    grad = list(model.parameters())[3].grad
    assert grad is not None
    grad[1] = bad
    before = [p.detach().clone() for p in model.parameters()]
    rng = optimizer.state_dict()["gradguard"]["rng"]
    with pytest.raises(NonFiniteGradientError, match=r"parameter 3 \('2.bias'\)") as caught:
        optimizer.step()
    assert (caught.value.index, caught.value.name) == (3, "2.bias")
    assert same(before, list(model.parameters()))
    assert torch.equal(rng, optimizer.state_dict()["gradguard"]["rng"])


def test_identity_passes_nan_as_the_bare_optimizer_does() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([float("nan"), 1.0])
    guard(torch.optim.SGD([p], lr=0.5), Identity()).step()
    assert p.isnan().tolist() == [True, False]


def test_parameters_added_behind_the_guards_back_are_refused() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model[0].parameters(), lr=0.1), Identity())
    optimizer.inner.add_param_group({"params": list(model[2].parameters())})
    backward(model, optimizer)
    with pytest.raises(RuntimeError, match=r"add_param_group\(\) of the guard"):
        optimizer.step()


def test_patterns_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="model=model"):
        guard(torch.optim.SGD(network().parameters(), lr=0.1), Withhold("2.*"))


def test_a_pattern_that_matches_nothing_is_refused_and_lists_the_names() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"names are 0\.weight, 0\.bias, 2\.weight, 2\.bias"):
        guard(torch.optim.SGD(model.named_parameters(), lr=0.1), Only("head.*", Sign()))


def test_parameters_outside_the_named_model_are_refused() -> None:
    with pytest.raises(ValueError, match="not in the model given to guard"):
        guard(torch.optim.SGD(network().parameters(), lr=0.1), Sign(), model=network())


@pytest.mark.parametrize("wrong", [Sign, [Sign()], None])
def test_what_is_no_transform_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"combine several with chain\(...\)"):
        guard(torch.optim.SGD(network().parameters(), lr=0.1), wrong)  # type: ignore[arg-type]


def test_repr_shows_both_parts() -> None:
    optimizer = guard(torch.optim.SGD(network().parameters(), lr=0.1), chain(Sign()))
    assert repr(optimizer).startswith("GuardedOptimizer(SGD (")
    assert "chain(Sign())" in repr(optimizer)
