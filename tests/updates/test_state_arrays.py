"""States as arrays and JSON: the same state again, or a refusal."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    ErrorFeedback,
    GradTransform,
    KeepTopK,
    Only,
    Sign,
    UpdateGuard,
    chain,
    protect,
)
from gradguard.strategies import transforms
from gradguard.updates.errors import NonFiniteUpdateError
from gradguard.updates.layout import layout_of_entries
from gradguard.updates.state_arrays import state_from_arrays, state_to_arrays

BEFORE = {"body.weight": torch.zeros(3, 4), "scale": torch.tensor(0.0), "head.bias": torch.zeros(5)}
AFTER = {name: torch.linspace(-1, 2, t.numel()).view(t.shape) for name, t in BEFORE.items()}


@given(transform=transforms())
def test_the_next_message_after_a_round_trip_is_bitwise_the_same(transform: GradTransform) -> None:
    _, state = protect(BEFORE, AFTER, transform)
    like = transform.init(layout_of_entries(AFTER).named_parameters(BEFORE))
    arrays, text = state_to_arrays(copy.deepcopy(state))
    again = state_from_arrays(arrays, text, like=like)
    expected, got = (protect(BEFORE, AFTER, transform, s)[0] for s in (state, again))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_every_dtype_returns_bit_by_bit(dtype: torch.dtype) -> None:
    state = {"x": torch.tensor([[1.5, -0.0], [3.0, 7.0]]).to(dtype), "s": torch.tensor(2).to(dtype)}
    arrays, text = state_to_arrays(state)
    again = state_from_arrays(arrays, text, like={k: torch.zeros_like(t) for k, t in state.items()})
    for key, tensor in state.items():
        assert again[key].dtype == dtype
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, again[key])))


def test_arrays_are_copies_and_what_is_loaded_is_too() -> None:
    state = {"x": torch.ones(2)}
    arrays, text = state_to_arrays(state)
    state["x"].zero_()
    again = state_from_arrays(arrays, text, like=state)
    arrays["x"][:] = 5
    assert torch.equal(again["x"], torch.ones(2))


def _state() -> tuple[dict[str, np.ndarray], str, dict[str, Any]]:
    transform = chain(ErrorFeedback(KeepTopK(0.5)), Only("body.*", AddGaussian(0.1)))
    like = transform.init(layout_of_entries(AFTER).named_parameters(BEFORE))
    return *state_to_arrays(like), like


def test_a_state_that_was_changed_on_its_way_is_refused() -> None:
    arrays, text, like = _state()
    name = next(iter(arrays))
    with pytest.raises(ValueError, match="not the state of a transform"):
        state_from_arrays({k: a for k, a in arrays.items() if k != name}, text, like=like)
    for array in (arrays[name].astype(np.float64), arrays[name][None], arrays[name].tolist()):
        with pytest.raises(ValueError, match="expected float32 of shape"):
            state_from_arrays(arrays | {name: array}, text, like=like)
    for other in (
        "",
        "[]",
        "{}",
        text[:-9],
        text.replace('"format": 1', '"format": 2'),
        "[" * 10**5,
    ):
        with pytest.raises(ValueError, match=r"state of a transform|expected format"):
            state_from_arrays(arrays, other, like=like)


def test_a_selection_of_other_layers_is_refused() -> None:
    arrays, text, like = _state()
    with pytest.raises(ValueError, match="expected True, got False"):
        state_from_arrays(arrays, text.replace("true", "false"), like=like)


def test_a_state_of_another_transform_is_refused() -> None:
    arrays, text, _ = _state()
    with pytest.raises(ValueError, match="belongs to another transform"):
        state_from_arrays(arrays, text, like=chain(Sign()).init([]))


def test_only_plain_things_are_written() -> None:
    with pytest.raises(TypeError, match="x of the state is object"):
        state_to_arrays({"x": object()})
    assert json.loads(state_to_arrays({"x": [None, 1, True, "a"]})[1])["state"]["x"] == [
        None,
        1,
        True,
        "a",
    ]


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def moved(net: nn.Module, by: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    before = net.state_dict()
    return before, {
        k: t + by * torch.linspace(-1, 1, t.numel()).view(t.shape) for k, t in before.items()
    }


def test_a_client_made_anew_each_round_sends_what_a_lasting_one_sends() -> None:
    transform = chain(ErrorFeedback(KeepTopK(0.25)), AddGaussian(0.1))
    lasting = UpdateGuard(transform, model())
    lasting.reset(seed=3)
    kept = lasting.state_to_arrays()
    for step in range(4):
        fresh = UpdateGuard(transform, model())
        fresh.load_arrays(*kept)
        expected, got = (g.protect(*moved(model(), step)) for g in (lasting, fresh))
        assert all(torch.equal(expected[name], got[name]) for name in expected)
        kept = fresh.state_to_arrays()


def test_a_round_that_raises_leaves_the_state_as_it_was() -> None:
    guard = UpdateGuard(chain(ErrorFeedback(KeepTopK(0.25)), AddGaussian(0.1)), model())
    guard.protect(*moved(model(), 1.0))
    arrays, text = guard.state_to_arrays()
    with pytest.raises(NonFiniteUpdateError):
        guard.protect(*moved(model(), float("nan")))
    with pytest.raises(ValueError, match="state"):
        guard.load_arrays({}, text)
    again, same = guard.state_to_arrays()
    assert same == text
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


def test_clients_do_not_share_noise() -> None:
    first, second = (UpdateGuard(AddGaussian(1.0), model()) for _ in range(2))
    one, other = (g.protect(*moved(model(), 1.0)) for g in (first, second))
    assert not torch.equal(one["weight"], other["weight"])


def test_what_is_no_transform_is_refused() -> None:
    with pytest.raises(TypeError, match="init and update"):
        UpdateGuard(Sign, model())  # type: ignore[arg-type]
