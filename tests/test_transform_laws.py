"""Every exported transform obeys every law; a new one cannot escape."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard import (
    AddGaussian,
    AddLaplace,
    Cast,
    ClipByGlobalNorm,
    ClipByValue,
    ErrorFeedback,
    Grads,
    GradTransform,
    Identity,
    KeepRandomK,
    KeepTopK,
    LowRank,
    MomentumCorrection,
    Only,
    Quantize,
    Sign,
    Ternary,
    WarmUp,
    Withhold,
    chain,
)
from gradguard.randomness import reseeded
from gradguard.serialization import TRANSFORMS
from gradguard.testing import check_transform, example_parameters, grads, transforms

NAMES = sorted(TRANSFORMS)
UNNAMED = [name for name in NAMES if name not in ("Only", "Withhold", "ErrorFeedback")]


def test_every_exported_transform_is_known_to_files_and_strategies() -> None:
    exported = {
        name
        for name, value in vars(gradguard).items()
        if isinstance(value, type) and isinstance(value, GradTransform)
    }
    assert exported - {"Chain", "GradTransform"} == set(TRANSFORMS)


def test_a_transform_without_a_strategy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS, "Novel", Identity)
    with pytest.raises(KeyError, match="no strategy makes Novel"):
        transforms()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_laws_hold(name: str, data: st.DataObject) -> None:
    check_transform(data.draw(transforms(name)))


@given(transforms())
def test_laws_hold_for_chains(transform: GradTransform) -> None:
    check_transform(transform)


@pytest.mark.parametrize("name", UNNAMED)
@given(data=st.data())
def test_arbitrary_gradients_keep_presence_form_and_finiteness(
    name: str, data: st.DataObject
) -> None:
    transform, given_grads = data.draw(transforms(name)), data.draw(grads())
    params = [torch.zeros(()) if g is None else torch.zeros_like(g) for g in given_grads]
    before = copy.deepcopy(given_grads)
    out, _ = transform.update(given_grads, transform.init(params))
    for old, new, kept in zip(given_grads, out, before, strict=True):
        assert (old is None) == (new is None)
        if old is not None and new is not None and kept is not None:
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
            assert bool(torch.isfinite(new).all())
            assert torch.equal(old, kept)


NEUTRAL: dict[str, GradTransform | None] = {
    "Identity": Identity(),
    "ClipByGlobalNorm": ClipByGlobalNorm(math.inf),
    "ClipByValue": ClipByValue(math.inf),
    "KeepTopK": KeepTopK(1.0),
    "KeepRandomK": KeepRandomK(1.0),
    "AddGaussian": AddGaussian(0.0),
    "AddLaplace": AddLaplace(0.0),
    "ErrorFeedback": ErrorFeedback(Identity()),
    "MomentumCorrection": MomentumCorrection(0.0, Identity()),
    "WarmUp": WarmUp(KeepTopK(1.0), steps=2),
    "Only": Only("*", Identity()),
    # No strength at which these are the identity:
    "Quantize": None,
    "Ternary": None,
    "Sign": None,
    "Cast": None,
    "Withhold": None,
    "LowRank": None,
}


def test_neutral_strength_is_stated_for_every_transform() -> None:
    assert set(NEUTRAL) == set(TRANSFORMS)


@pytest.mark.parametrize("name", [name for name, t in NEUTRAL.items() if t is not None])
def test_neutral_strength_is_identity(name: str) -> None:
    transform = NEUTRAL[name]
    assert transform is not None
    params = gradguard.NamedParameters(example_parameters())
    given_grads: Grads = [p.clone() for p in params]
    out, _ = transform.update(given_grads, transform.init(params))
    for old, new in zip(given_grads, out, strict=True):
        assert old is not None
        assert new is not None
        assert torch.equal(old, new)


@given(transforms(), transforms(), transforms())
def test_chain_is_associative(a: GradTransform, b: GradTransform, c: GradTransform) -> None:
    left, right = chain(chain(a, b), c), chain(a, chain(b, c))
    assert left == right == chain(a, b, c)


@pytest.mark.parametrize(
    "transform",
    [KeepTopK(0.3), KeepTopK(0.3, scope="tensor"), Sign(), Quantize(4), Quantize(1), Ternary(),
     KeepRandomK(0.3), LowRank(1)],
    ids=repr,
)  # fmt: skip
@given(exponent=st.integers(-8, 8))
def test_compression_commutes_with_scaling(transform: GradTransform, exponent: int) -> None:
    """Powers of two scale without rounding, so equality is exact."""
    rng = torch.Generator().manual_seed(3)
    given_grads = [torch.randn(20, generator=rng), torch.randn(3, 4, generator=rng)]
    state = reseeded(transform.init(given_grads), 1)
    out, _ = transform.update(list(given_grads), state)
    scaled, _ = transform.update([g * 2.0**exponent for g in given_grads], state)
    for one, other in zip(out, scaled, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one * 2.0**exponent, other)


@pytest.mark.parametrize("transform", [KeepTopK(0.3, scope="tensor"), Sign(), Cast("float16")])
def test_deterministic_per_tensor_transforms_do_not_see_parameter_order(
    transform: GradTransform,
) -> None:
    rng = torch.Generator().manual_seed(4)
    given_grads: Grads = [torch.randn(n, generator=rng) for n in (3, 8, 5)]
    out, _ = transform.update(given_grads, transform.init([]))
    backwards, _ = transform.update(given_grads[::-1], transform.init([]))
    for one, other in zip(out, backwards[::-1], strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "transform",
    [KeepTopK(0.3), KeepTopK(0.3, scope="tensor"), KeepRandomK(0.3), Quantize(2), Quantize(5),
     Ternary(), Sign(), Withhold("*"), ErrorFeedback(KeepTopK(0.3)), Only("*", KeepTopK(0.3)),
     LowRank(2)],
    ids=repr,
)  # fmt: skip
def test_a_zero_that_is_sent_carries_no_sign(transform: GradTransform) -> None:
    """-0.0 equals 0.0 and yet tells the server the sign of a coordinate that was dropped."""
    rng = torch.Generator().manual_seed(5)
    params = gradguard.NamedParameters({"w": torch.randn(40, 5, generator=rng) - 1})
    for dtype in (torch.float32, torch.float16):
        (out,), _ = transform.update([params[0].to(dtype)], transform.init(params))
        assert out is not None
        assert not bool(torch.signbit(out[out == 0]).any())


def test_no_two_transforms_share_a_seed_even_in_one_chain() -> None:
    noise = chain(AddGaussian(1.0), AddGaussian(1.0))
    state = reseeded(noise.init([]), 0)
    first, second = (state[f"{i}:AddGaussian"]["rng"] for i in range(2))
    assert not torch.equal(first, second)


def test_withheld_and_routed_names_are_found() -> None:
    for pattern in ("*", "body.*", "head.*", "*.bias"):
        Withhold(pattern).init(gradguard.NamedParameters(example_parameters()))
