"""Whatever could let an untransformed gradient through raises, and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from tests.optimizer.training import Spy, backward, differentiate, loss_of, network, same, train


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
    rng = optimizer.state_dict()["gradguard"]["0:AddGaussian"]["rng"]
    with pytest.raises(NonFiniteGradientError, match=r"parameter 3 \('2.bias'\)") as caught:
        optimizer.step()
    assert (caught.value.index, caught.value.name) == (3, "2.bias")
    assert same(before, list(model.parameters()))
    assert torch.equal(rng, optimizer.state_dict()["gradguard"]["0:AddGaussian"]["rng"])


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


def test_parameters_put_in_another_order_are_refused() -> None:
    """Otherwise the zeros meant for one layer would go to another, and that layer would be sent."""
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Withhold("2.*"), model=model)
    optimizer.param_groups[0]["params"].reverse()
    backward(model, optimizer)
    with pytest.raises(RuntimeError, match="in this order"):
        optimizer.step()


def test_one_gradient_that_was_already_transformed_is_enough_to_refuse() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Sign())
    train(model, optimizer, steps=1)
    model[0].bias.grad = None
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()
    model[0](torch.ones(1, 4)).sum().backward()  # the other layer still holds what was sent
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()


def test_a_released_tensor_carries_nothing_of_what_is_withheld() -> None:
    """torch.save writes all the memory behind a view, so a released tensor must not be a view."""
    model = network()
    defence = chain(KeepTopK(1.0), Withhold("2.*"))
    optimizer = guard(torch.optim.SGD(model.named_parameters(), lr=0.1), defence)
    backward(model, optimizer)
    sent = optimizer.release()
    assert isinstance(sent, dict)
    for tensor in sent.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


@dataclass(frozen=True)
class Inline:
    """Whatever a test needs, as a transform."""

    function: Callable[[Grads], Grads]

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.function(grads), state


@pytest.mark.parametrize(
    "function",
    [lambda g: [x.mean() for x in g], lambda g: [x.double() for x in g]],
    ids=["shape", "dtype"],
)
def test_a_transform_that_changes_the_form_of_a_gradient_raises(
    function: Callable[[Grads], Grads],
) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = guard(torch.optim.SGD([p], lr=0.1), Inline(function))
    p.grad = torch.tensor([1.0, 3.0])
    with pytest.raises(RuntimeError, match="changed the gradient of parameter 0"):
        optimizer.step()
    assert p.grad.tolist() == [1.0, 3.0]


def test_a_transform_may_return_its_arguments_in_another_order() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = guard(torch.optim.SGD([a, b], lr=1.0), Inline(lambda g: g[::-1]))
    a.grad, b.grad = torch.tensor([1.0]), torch.tensor([2.0])
    optimizer.step()
    assert (a.item(), b.item()) == (-2.0, -1.0)


@dataclass(frozen=True)
class Difference:
    """Sends what changed since the last gradient, which it keeps in its state as it is."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {"last": [torch.zeros_like(p) for p in params]}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        pairs = zip(grads, state["last"], strict=True)
        return [None if g is None else g - last for g, last in pairs], {"last": list(grads)}


def test_a_gradient_kept_in_the_state_is_not_written_to() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = guard(torch.optim.SGD([p], lr=0.1), Difference())
    sent = []
    for value in (3.0, 5.0, 6.0):
        optimizer.zero_grad(set_to_none=False)
        differentiate((p * value).sum())
        sent += [g.item() for g in optimizer.release() if isinstance(g, Tensor)]
    assert sent == [3.0, 2.0, 1.0]


def test_a_write_that_fails_half_way_spends_the_noise_and_refuses_a_retry() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = guard(torch.optim.SGD([a, b], lr=0.1), AddGaussian(1.0))
    a.grad, b.grad = torch.zeros(2), torch.zeros(1).expand(2)  # torch cannot write to the latter
    before = optimizer.guard_state["rng"]
    with pytest.raises(RuntimeError, match="single memory location"):
        optimizer.step()
    assert not torch.equal(before, optimizer.guard_state["rng"])
    with pytest.raises(RuntimeError, match="already transformed"):
        optimizer.step()


class Early(torch.optim.SGD):
    """Looks at p.grad before it evaluates the closure, or never evaluates it."""

    def __init__(self, params: Iterable[Tensor], evaluate: bool) -> None:
        super().__init__(params, lr=0.1)
        self.evaluate, self.seen = evaluate, list[Tensor | None]()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.seen += [p.grad for p in self.param_groups[0]["params"]]
        if self.evaluate and closure is not None:
            with torch.enable_grad():
                closure()
        super().step()


@pytest.mark.parametrize("evaluate", [True, False])
def test_gradients_from_before_a_closure_are_not_seen_by_the_inner_optimizer(
    evaluate: bool,
) -> None:
    model = network()
    inner = Early(model.parameters(), evaluate)
    optimizer = guard(inner, Sign())
    backward(model, optimizer)
    raw = [p.grad for p in model.parameters()]
    if evaluate:
        optimizer.step(lambda: backward(model, optimizer))
    else:
        with pytest.raises(RuntimeError, match="Early did not evaluate the closure"):
            optimizer.step(lambda: backward(model, optimizer))
        assert all(p.grad is g for p, g in zip(model.parameters(), raw, strict=True))
    assert inner.seen == [None] * 4


def test_gradients_from_before_a_closure_are_accumulated_into_by_it() -> None:
    model, spy = network(), Spy()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), spy)
    backward(model, optimizer)
    single = [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def closure() -> None:
        differentiate(loss_of(model))

    optimizer.step(closure)
    (seen,) = spy.seen
    assert same([2 * g for g in single], [g for g in seen if g is not None])


def test_two_parameters_of_one_name_are_refused() -> None:
    groups = [{"params": nn.Linear(2, 2).named_parameters()} for _ in range(2)]
    with pytest.raises(ValueError, match="two parameters are called 'weight'"):
        guard(torch.optim.SGD(groups, lr=0.1), Sign())


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
