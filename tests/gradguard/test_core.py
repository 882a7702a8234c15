"""Chains in place around transforms that are not, and what is found inside a transform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from gradguard import (
    AddGaussian,
    ErrorFeedback,
    Grads,
    GradTransform,
    KeepTopK,
    State,
    chain,
    guard,
)
from gradguard.core import walk


@dataclass(frozen=True)
class KeepsItsAnswer:
    """Pure: it changes no argument, and always returns the same tensors."""

    kept: dict[int, Tensor] = field(default_factory=dict)

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        zeros: Grads = [
            None if g is None else self.kept.setdefault(i, torch.zeros_like(g))
            for i, g in enumerate(grads)
        ]
        return zeros, state


@dataclass(frozen=True)
class Holds:
    """A user's own transform of transforms."""

    inner: Any

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return grads, state


def test_a_link_in_place_never_writes_to_what_a_pure_link_keeps() -> None:
    weight = torch.nn.Parameter(torch.zeros(1000))
    pure = KeepsItsAnswer()
    optimizer = guard(torch.optim.SGD([weight], lr=0.0), chain(pure, AddGaussian(1.0)))
    for _ in range(4):
        weight.grad = torch.ones(1000)
        (sent,) = optimizer.release()
        assert isinstance(sent, Tensor)
        assert sent.std().item() == pytest.approx(1.0, abs=0.15)
    assert not pure.kept[0].any()


@pytest.mark.parametrize("inner", [[AddGaussian(1.0)], {"noise": AddGaussian(1.0)}])
def test_noise_in_a_list_or_a_dict_is_found(inner: Any) -> None:
    holder: GradTransform = Holds(inner)
    assert [type(t).__name__ for t in walk(holder)] == ["Holds", "AddGaussian"]
    with pytest.raises(ValueError, match="would take the noise back"):
        ErrorFeedback(holder)


@pytest.mark.parametrize(
    "where", [torch.inference_mode(), torch.device("meta")], ids=["inference", "meta"]
)
def test_a_first_use_in_inference_mode_or_on_another_default_device_breaks_nothing(
    where: Any,
) -> None:
    with where:
        KeepTopK(0.1).update([torch.randn(100, device="cpu")], {})
    weight = torch.nn.Parameter(torch.zeros(100))
    optimizer = guard(torch.optim.SGD([weight], lr=0.1), chain(KeepTopK(0.1), AddGaussian(0.1)))
    weight.grad = torch.randn(100)
    with where:
        optimizer.step()
    weight.grad = torch.randn(100)
    optimizer.step()
    assert bool(torch.isfinite(weight).all())


def test_a_gradient_made_in_inference_mode_is_refused_and_the_next_one_is_not() -> None:
    weight = torch.nn.Parameter(torch.zeros(10))
    optimizer = guard(torch.optim.SGD([weight], lr=0.1), AddGaussian(0.1))
    with torch.inference_mode():
        weight.grad = torch.ones(10)
    with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode"):
        optimizer.step()
    assert not weight.any()
    weight.grad = torch.ones(10)
    optimizer.step()
    assert bool(weight.all())
