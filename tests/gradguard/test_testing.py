"""check_transform finds transforms that break a law: each of these was written by somebody."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard import AddGaussian, Grads, Identity, NonFiniteGradientError, State
from gradguard.finite import check_finite
from gradguard.kernels.elementwise import map_present
from gradguard.randomness import generator, seeded_rng
from gradguard.strategies import transforms
from gradguard.testing import LawBrokenError, check_transform


@dataclass(frozen=True)
class Sound:
    """A user's own transform, in order."""

    factor: float

    def init(self, params: Sequence[Tensor]) -> State:
        return {"steps": torch.zeros(())}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return map_present(lambda g: g * self.factor, grads), {"steps": state["steps"] + 1}


class DropsLast(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [*super().update(grads, state)[0][:-1], None], state


class AlwaysFloat32(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return map_present(lambda g: g, [None if g is None else g.float() for g in grads]), state


class Flattens(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g.contiguous() for g in grads], state


class WritesInPlace(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g.mul_(0.5) for g in grads], state


class UsesGlobalRandomness(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return map_present(lambda g: g + torch.rand_like(g), grads), state


class SeedsGlobalRandomness(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        torch.manual_seed(0)
        return super().update(grads, state)


class ShortList(Sound):
    def init(self, params: Sequence[Tensor]) -> State:
        return {"steps": torch.zeros(()), "memory": [torch.zeros(1)]}


class GrowingState(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return super().update(grads, state)[0], {**state, "seen": 1}


class DividesByZero(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g / g.abs().amax() for g in grads], state


class HidesNaN(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g.nan_to_num() for g in grads], state


class DefaultSeed(AddGaussian):
    def init(self, params: Sequence[Tensor]) -> State:
        return {"rng": seeded_rng(0)}


class SameNoiseEveryStep(AddGaussian):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        generator(state["rng"])
        return super().update(grads, state)[0], state


class Forgetful(Sound):
    def __repr__(self) -> str:
        return "Forgetful(factor=1.0)"


class Unreadable(Sound):
    def __repr__(self) -> str:
        return "<unreadable>"


class Mutable(Sound):
    memory: ClassVar[list[float]] = []

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.memory.append(1.0)
        return map_present(lambda g: g * len(self.memory), grads), state


class ClampsInPlace(Sound):
    """Writes to its argument, though it changes nothing in gradients as small as the examples."""

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if g is None else g.clamp_(-99, 99) for g in grads], state


class SeedsNumpy(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        np.random.seed(0)
        return map_present(lambda g: g + float(np.random.rand()), grads), state


class SeedsPython(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        random.seed(0)
        return map_present(lambda g: g + random.random(), grads), state


class HiddenStream(Sound):
    """Under another key no reseed() finds it: every client has the same noise."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {"generator": seeded_rng(0)}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["generator"])
        out = map_present(lambda g: g + torch.randn(g.shape, generator=rng), grads)
        return out, {"generator": rng.get_state()}


class LeaksSigns(Sound):
    """Half of the coordinates are dropped, and their signs are sent as -0.0."""

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return map_present(lambda g: g * (g.abs() > g.abs().median()), grads), state


class ChecksTheFirstTensorOnly(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads[:1])
        return list(grads), state


class ChecksTheFirstElementOnly(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite([None if g is None else g.reshape(-1)[:1] for g in grads])
        return list(grads), state


class OverflowsSquares(Sound):
    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        return [None if g is None else g * g.square().sum().clamp(min=1) for g in grads], state


class InPlace(Sound):
    """A user's own transform that can also work in place."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {"steps": torch.zeros(()), "memory": [torch.zeros_like(p) for p in params]}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        out, steps = super().update(grads, state)
        return out, {**steps, "memory": state["memory"]}

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        for grad in grads:
            if grad is not None:
                grad.mul_(self.factor)
                if grad.dtype.itemsize < 4:
                    grad.add_(0.0)  # as map_present: no sign of what half precision rounds to 0
        state["steps"].add_(1)
        return grads, state


class OtherResultInPlace(InPlace):
    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        grads, state = super().update_(grads, state)
        return [None if g is None else g.add_(1e-3) for g in grads], state

    update = InPlace.update


class ForgetsItsStateInPlace(InPlace):
    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return super().update_(grads, {**state, "steps": state["steps"].clone()})[0], state


class ChecksTooLate(InPlace):
    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        for grad in grads:
            if grad is not None:
                check_finite([grad])
                grad.mul_(self.factor)
        state["steps"].add_(1)
        return grads, state


class WritesUnseen(InPlace):
    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        for grad in grads:
            if grad is not None:
                values = grad.numpy()
                np.multiply(values, self.factor, out=values)
        state["steps"].add_(1)
        return grads, state


class SharesResults(InPlace):
    def init(self, params: Sequence[Tensor]) -> State:
        return {"steps": torch.zeros(()), "last": [p.detach().clone() for p in params]}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        out, steps = Sound.update(self, grads, state)
        last = zip(out, state["last"], strict=True)
        return out, {**steps, "last": [old if new is None else new for new, old in last]}

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.update(grads, state)


class StartsWithTheParameters(InPlace):
    def init(self, params: Sequence[Tensor]) -> State:
        return {"steps": torch.zeros(()), "memory": [p.detach() for p in params]}


BROKEN = [
    (OtherResultInPlace(0.5), "in_place_agrees"),
    (ForgetsItsStateInPlace(0.5), "in_place_agrees"),
    (ChecksTooLate(0.5), "in_place_agrees"),
    (WritesUnseen(0.5), "in_place_agrees"),
    (SharesResults(0.5), "in_place_agrees"),
    (StartsWithTheParameters(0.5), "in_place_agrees"),
    (ClampsInPlace(0.5), "purity"),
    (SeedsNumpy(0.5), "purity"),
    (SeedsPython(0.5), "purity"),
    (HiddenStream(0.5), "randomness_is_fresh"),
    (LeaksSigns(0.5), "dropped_coordinates_have_no_sign"),
    (ChecksTheFirstTensorOnly(0.5), "non_finite_is_refused"),
    (ChecksTheFirstElementOnly(0.5), "non_finite_is_refused"),
    (OverflowsSquares(0.5), "finite_in_finite_out"),
    (DropsLast(0.5), "presence"),
    (AlwaysFloat32(0.5), "shape_dtype_device_layout"),
    (Flattens(0.5), "shape_dtype_device_layout"),
    (WritesInPlace(0.5), "purity"),
    (UsesGlobalRandomness(0.5), "purity"),
    (SeedsGlobalRandomness(0.5), "purity"),
    (Mutable(0.5), "purity"),
    (ShortList(0.5), "state_is_plain"),
    (GrowingState(0.5), "state_structure_is_stable"),
    (DividesByZero(0.5), "finite_in_finite_out"),
    (HidesNaN(0.5), "non_finite_is_refused"),
    (DefaultSeed(0.5), "randomness_is_fresh"),
    (SameNoiseEveryStep(0.5), "randomness_is_fresh"),
    (Forgetful(0.5), "values_back_from_text"),
    (Unreadable(0.5), "values_back_from_text"),
]


def test_a_sound_transform_of_a_user_passes() -> None:
    check_transform(Sound(0.5))
    check_transform(InPlace(0.5))


@pytest.mark.parametrize(("transform", "law"), BROKEN, ids=lambda v: type(v).__name__)
def test_a_broken_law_is_found_and_named(transform: Sound | AddGaussian, law: str) -> None:
    named = {"w": torch.randn(3, 4).t(), "b": torch.zeros(4), "h": torch.ones(2).half()}
    with pytest.raises(LawBrokenError, match=f"^{law} does not hold for"):
        check_transform(transform, named=named)


def test_strategies_without_hypothesis_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis.strategies", None)
    with pytest.raises(ImportError, match=r"pip install 'gradguard\[test\]'"):
        transforms()


def test_identity_may_pass_nan_and_others_may_not() -> None:
    check_transform(Identity())
    with pytest.raises(NonFiniteGradientError):
        Sound(1.0).update([torch.tensor([float("nan")])], Sound(1.0).init([]))
