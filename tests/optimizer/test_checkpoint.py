"""Saving, resuming, copying and growing a guarded optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    AddLaplace,
    ErrorFeedback,
    GradTransform,
    GuardedOptimizer,
    Identity,
    KeepTopK,
    Only,
    Quantize,
    Sign,
    Withhold,
    chain,
    guard,
)
from tests.optimizer.training import backward, network, same, train

NOISY = chain(ErrorFeedback(KeepTopK(0.3)), Quantize(4), AddGaussian(0.1))


def _guarded(model: nn.Module, transform: GradTransform = NOISY) -> GuardedOptimizer:
    return guard(torch.optim.Adam(model.named_parameters(), lr=0.01), transform)


def _saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_resume_is_bitwise_identical_including_noise() -> None:
    model = network()
    optimizer = _guarded(model)
    train(model, optimizer, steps=3)
    checkpoint = _saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    straight = train(model, optimizer, steps=3)
    resumed = network(seed=1)
    fresh = _guarded(resumed)
    resumed.load_state_dict(checkpoint["model"])
    fresh.load_state_dict(checkpoint["optimizer"])
    assert same(straight, train(resumed, fresh, steps=3))


def test_state_dict_is_a_copy_and_loading_copies_too() -> None:
    model = network()
    optimizer = _guarded(model)
    train(model, optimizer, steps=1)
    saved = optimizer.state_dict()
    frozen = copy.deepcopy(saved["gradguard"])
    saved["gradguard"]["0:ErrorFeedback"]["memory"][0].fill_(7.0)
    again = optimizer.state_dict()["gradguard"]["0:ErrorFeedback"]["memory"][0]
    assert torch.equal(again, frozen["0:ErrorFeedback"]["memory"][0])
    saved["gradguard"] = frozen
    optimizer.load_state_dict(saved)
    frozen["2:AddGaussian"]["rng"].zero_()
    assert optimizer.state_dict()["gradguard"]["2:AddGaussian"]["rng"].any()


@pytest.mark.parametrize(
    "other",
    [
        chain(Quantize(4), ErrorFeedback(KeepTopK(0.3)), AddGaussian(0.1)),  # another order
        chain(ErrorFeedback(Sign()), Quantize(4), AddGaussian(0.1)),  # differs below the top
        chain(ErrorFeedback(KeepTopK(0.3)), Quantize(4), AddLaplace(0.1)),
        Identity(),
    ],
    ids=repr,
)
def test_loading_into_another_chain_fails_and_shows_both(other: GradTransform) -> None:
    saved = _guarded(network()).state_dict()
    target = _guarded(network(), other)
    before = target.state_dict()
    with pytest.raises(ValueError, match="belongs to another defence") as caught:
        target.load_state_dict(saved)
    assert "2:AddGaussian" in str(caught.value)
    assert f"expected {{{'0:' if before['gradguard'] else ''}" in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "other"),
    [(Sign(), Identity()), (AddGaussian(0.1), Quantize(4)), (AddGaussian(0.1), AddLaplace(0.1))],
)
def test_loading_into_another_single_transform_fails_though_the_states_look_alike(
    saved: GradTransform, other: GradTransform
) -> None:
    checkpoint = _guarded(network(), saved).state_dict()
    with pytest.raises(ValueError, match=f"expected {{0:{type(other).__name__}"):
        _guarded(network(), other).load_state_dict(checkpoint)


def test_a_transform_and_the_chain_of_it_share_checkpoints() -> None:
    single, chained = (_guarded(network(), t) for t in (AddGaussian(0.1), chain(AddGaussian(0.1))))
    chained.load_state_dict(single.state_dict())
    single.load_state_dict(chained.state_dict())
    assert torch.equal(single.guard_state["rng"], chained.guard_state["0:AddGaussian"]["rng"])


def test_loading_a_bare_optimizers_checkpoint_fails() -> None:
    bare = torch.optim.Adam(network().named_parameters(), lr=0.01)
    with pytest.raises(ValueError, match="no guard state"):
        _guarded(network()).load_state_dict(bare.state_dict())


def test_loading_a_checkpoint_that_covers_other_layers_fails() -> None:
    saved = _guarded(network(), Withhold("0.*")).state_dict()
    with pytest.raises(ValueError, match=r"withheld: \[False, False, True, True\]"):
        _guarded(network(), Withhold("2.*")).load_state_dict(saved)


def test_a_failed_load_changes_nothing() -> None:
    optimizer = _guarded(network())
    before = optimizer.state_dict()["gradguard"]
    wrong = torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
    wrong["param_groups"][0]["params"] = [0]
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict({**wrong, "gradguard": before})
    after = optimizer.state_dict()["gradguard"]
    assert torch.equal(before["2:AddGaussian"]["rng"], after["2:AddGaussian"]["rng"])


def _clones(model: nn.Module, optimizer: GuardedOptimizer) -> Sequence[Any]:
    pair = (model, optimizer)
    return copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))


def test_deepcopy_and_pickle_keep_the_guard_and_its_state() -> None:
    model = network()
    optimizer = _guarded(model)
    train(model, optimizer, steps=2)
    clones = _clones(model, optimizer)
    straight = train(model, optimizer, steps=2)
    for other_model, other in clones:
        assert isinstance(other, GuardedOptimizer)
        assert other.transform == optimizer.transform
        assert same(straight, train(other_model, other, steps=2))


def test_copies_share_the_noise_until_they_are_reseeded() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), AddGaussian(1.0))
    twin_model, twin = copy.deepcopy((model, optimizer))
    for reseed, equal in ((False, True), (True, False)):
        if reseed:
            twin.reseed()
        sent = []
        for m, o in ((model, optimizer), (twin_model, twin)):
            backward(m, o)
            sent.append([g for g in o.release() if isinstance(g, Tensor)])
        assert same(*sent) is equal


def test_reseed_with_an_integer_reproduces_the_noise() -> None:
    sent = []
    for _ in range(2):
        model = network()
        optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), AddGaussian(1.0))
        optimizer.reseed(3)
        backward(model, optimizer)
        sent.append([g for g in optimizer.release() if isinstance(g, Tensor)])
    assert same(*sent)


def test_reset_forgets_residuals_and_draws_new_noise() -> None:
    model = network()
    optimizer = _guarded(model)
    train(model, optimizer, steps=2)
    before = optimizer.state_dict()["gradguard"]
    optimizer.reset()
    after = optimizer.state_dict()["gradguard"]
    assert not any(bool(m.any()) for m in after["0:ErrorFeedback"]["memory"])
    assert not torch.equal(before["2:AddGaussian"]["rng"], after["2:AddGaussian"]["rng"])


def test_add_param_group_grows_residuals_and_keeps_the_random_stream() -> None:
    model, extra = network(), nn.Linear(2, 2)
    optimizer = _guarded(model)
    train(model, optimizer, steps=2)
    before = optimizer.state_dict()["gradguard"]
    named = [(f"extra.{name}", p) for name, p in extra.named_parameters()]
    optimizer.add_param_group({"params": named, "lr": 0.5})
    after = optimizer.state_dict()["gradguard"]
    old, new = (s["0:ErrorFeedback"]["memory"] for s in (before, after))
    assert same(old, new[: len(old)])
    assert [tuple(m.shape) for m in new[len(old) :]] == [(2, 2), (2,)]
    assert torch.equal(before["2:AddGaussian"]["rng"], after["2:AddGaussian"]["rng"])
    assert optimizer.names is not None
    assert optimizer.names[-2:] == ("extra.weight", "extra.bias")
    optimizer.zero_grad()
    extra(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_added_parameters_are_routed_by_name() -> None:
    model = network()
    head = list(model[2].named_parameters(prefix="2"))
    body = torch.optim.SGD(model[0].named_parameters(prefix="0"), lr=0.1)
    optimizer = guard(body, Only("*.bias", Sign()))
    optimizer.add_param_group({"params": head})
    selected = optimizer.state_dict()["gradguard"]["0:Only"]["selected"]
    assert selected == [False, True, False, True]


def test_added_parameters_are_named_after_the_model() -> None:
    model = network()
    inner = torch.optim.SGD(model[0].parameters(), lr=0.1)
    optimizer = guard(inner, Withhold("*.bias"), model=model)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert optimizer.names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_a_refused_group_is_not_trained() -> None:
    model = network()
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), Sign(), model=model)
    with pytest.raises(ValueError, match="not in the model given to guard"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, steps=1)
