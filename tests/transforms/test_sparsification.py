from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import (
    ErrorFeedback,
    Grads,
    GradTransform,
    KeepRandomK,
    KeepTopK,
    MomentumCorrection,
)
from gradguard.kernels.random_coordinates import draw_coordinates
from gradguard.randomness import generator, reseeded
from gradguard.testing import LawBrokenError, check_unbiased, grads
from gradguard.transforms.sparsification import Scope, kept_of
from tests import reference


def _flat(given_grads: Grads) -> list[float]:
    return [v for g in given_grads if g is not None for v in g.double().reshape(-1).tolist()]


@given(grads(max_tensors=5), st.floats(0.001, 1.0))
def test_global_top_k_is_the_plain_sort(given_grads: Grads, ratio: float) -> None:
    out, _ = KeepTopK(ratio, scope="global").update(given_grads, {})
    values = _flat(given_grads)
    assert _flat(out) == reference.top_k(values, kept_of(ratio, len(values)))


@given(grads(max_tensors=5), st.floats(0.001, 1.0))
def test_top_k_per_tensor_is_the_plain_sort_of_each(given_grads: Grads, ratio: float) -> None:
    out, _ = KeepTopK(ratio, scope="tensor").update(given_grads, {})
    for before, after in zip(given_grads, out, strict=True):
        values = _flat([before])
        assert _flat([after]) == reference.top_k(values, kept_of(ratio, len(values)))


@pytest.mark.parametrize("scope", ["tensor", "global"])
@given(st.integers(1, 300), st.floats(0.001, 1.0), st.booleans())
def test_exactly_k_are_kept_ties_or_not(scope: Scope, n: int, ratio: float, tied: bool) -> None:
    given_grads: Grads = [torch.ones(n) if tied else torch.randn(n) + 5]
    (out,), _ = KeepTopK(ratio, scope=scope).update(given_grads, {})
    assert out is not None
    assert int(out.count_nonzero()) == max(1, round(ratio * n))
    if tied:
        assert bool(out[: int(out.sum())].all())  # the lowest indices


def test_ties_are_broken_in_row_major_order_whatever_the_layout() -> None:
    (out,), _ = KeepTopK(0.5).update([torch.ones(2, 2).t()], {})
    assert out is not None
    assert out.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_negative_values_count_by_magnitude() -> None:
    """A published compressor compares with max(x) and sends an all-negative tensor whole."""
    (out,), _ = KeepTopK(0.25).update([-torch.arange(1.0, 9.0)], {})
    assert out is not None
    assert out.tolist() == [0.0] * 6 + [-7.0, -8.0]


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["normal", "tied", "zero", "periodic"])
def test_selection_from_a_sample_is_exact_on_long_gradients(kind: str, ratio: float) -> None:
    """The sample may mislead (a period of its stride hides every large value): never the answer."""
    n = 2**18 + 12_345
    values = torch.randn(n, generator=torch.Generator().manual_seed(1))
    if kind == "tied":
        values = values.round()
    elif kind == "zero":
        values = torch.zeros(n)
    elif kind == "periodic":
        values[:: (n // 65_536) | 1] = 100.0
    order = torch.sort(values.abs(), descending=True, stable=True).indices
    expected = torch.zeros(n, dtype=torch.bool)
    expected[order[: kept_of(ratio, n)]] = True
    (out,), _ = KeepTopK(ratio).update([values], {})
    assert out is not None
    assert torch.equal(out, torch.where(expected, values, 0.0))


def test_a_zero_gradient_stays_zero() -> None:
    (out,), _ = KeepTopK(0.1).update([torch.zeros(50)], {})
    assert out is not None
    assert not bool(out.any())


@given(st.integers(1, 300), st.floats(0.001, 1.0))
def test_random_k_draws_exactly_k_distinct_coordinates_scaled(n: int, ratio: float) -> None:
    transform = KeepRandomK(ratio)
    given_grads: Grads = [torch.ones(n // 2), None, torch.ones(n - n // 2)]
    out, _ = transform.update(given_grads, transform.init([]))
    count = max(1, round(ratio * n))
    values = torch.tensor(_flat(out))
    assert int(values.count_nonzero()) == count
    torch.testing.assert_close(values[values != 0], torch.full((count,), n / count))


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_random_k_is_unbiased(ratio: float) -> None:
    check_unbiased(KeepRandomK(ratio), grad=torch.tensor([1.0, -2.0, 0.0, 0.3, 5.0]))


def test_top_k_fails_the_check_of_unbiasedness() -> None:
    """The check has power: it rejects the transform that is known to be biased."""
    with pytest.raises(LawBrokenError, match="check_unbiased"):
        check_unbiased(KeepTopK(0.5), grad=torch.tensor([1.0, -2.0, 0.0, 0.3]))


def test_every_coordinate_is_drawn_about_equally_often() -> None:
    transform, n, draws = KeepRandomK(0.1), 20, 5000
    state = transform.init([])
    counts = torch.zeros(n)
    for _ in range(draws):
        (out,), state = transform.update([torch.ones(n)], state)
        assert isinstance(out, Tensor)
        counts += out != 0
    spread = (draws * 0.1 * 0.9) ** 0.5
    assert bool(((counts - draws * 0.1).abs() < 6 * spread).all())


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
@pytest.mark.parametrize("kind", [KeepTopK, KeepRandomK])
def test_ratio_must_lie_in_zero_to_one(kind: type[KeepRandomK], ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 1\]"):
        kind(ratio)


def test_scope_must_be_known() -> None:
    with pytest.raises(ValueError, match="scope must be 'tensor' or 'global', got 'layer'"):
        KeepTopK(0.1, scope="layer")  # type: ignore[arg-type]


def test_the_mask_seed_in_the_state_redraws_the_last_messages_coordinates() -> None:
    transform = KeepRandomK(0.2)
    grads: Grads = [torch.ones(3, 4).t(), None, torch.ones(2, 3, 2, 2), torch.ones(())]
    state = transform.init([])
    assert int(state["mask_seed"]) == -1
    seeds = set()
    for _ in range(5):
        out, state = transform.update(grads, state)
        seed = int(state["mask_seed"])
        seeds.add(seed)
        assert 0 <= seed < 2**63
        sent = torch.cat([g.reshape(-1) for g in out if g is not None])  # row-major
        expected = draw_coordinates(seed, 37, kept_of(0.2, 37))
        assert sent.nonzero().view(-1).tolist() == expected.tolist()
    assert len(seeds) == 5


def test_a_mask_seed_is_not_a_word_of_the_stream() -> None:
    """Whoever collects seeds must not be able to compute the state of the twister behind them."""
    state = KeepRandomK(0.5).init([])
    rng = generator(state["rng"])
    words = torch.empty(64, dtype=torch.int64).random_(generator=rng).tolist()
    _, state = KeepRandomK(0.5).update([torch.ones(4)], state)
    seed = int(state["mask_seed"])
    for word in words:
        for order in ("big", "little"):
            read = int.from_bytes(word.to_bytes(8, "little"), order)
            assert seed not in (read, read >> 1)


@pytest.mark.parametrize("transform", [KeepTopK(0.3), KeepRandomK(0.3)], ids=repr)
@pytest.mark.parametrize("layout", ["gaps", "expanded", "channels last", "transposed"])
def test_any_layout_gives_the_values_of_the_contiguous_one(
    transform: KeepTopK | KeepRandomK, layout: str
) -> None:
    values = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(6))
    laid = {
        "gaps": values[..., ::2],
        "expanded": values[:1, :1, :1].expand(2, 3, 4, 6),
        "channels last": values.to(memory_format=torch.channels_last),
        "transposed": values.transpose(0, 3),
    }[layout]
    state = reseeded(transform.init([]), 1)
    (expected,), _ = transform.update([laid.contiguous()], state)
    (pure,), _ = transform.update([laid], state)
    (owned,), _ = transform.update_([laid.clone()], copy.deepcopy(state))
    assert expected is not None
    assert pure is not None
    assert owned is not None
    assert torch.equal(pure, expected)
    assert torch.equal(owned, expected)


def test_top_k_in_place_keeps_the_memory_of_the_gradients() -> None:
    grad = torch.tensor([3.0, -5.0, 1.0])
    (out,), _ = KeepTopK(0.34).update_([grad], {})
    assert out is grad
    assert grad.tolist() == [0.0, -5.0, 0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "transform",
    [KeepTopK(0.01), KeepTopK(0.01, scope="tensor"), KeepRandomK(0.01),
     ErrorFeedback(KeepTopK(0.01)), MomentumCorrection(0.9, KeepTopK(0.01))],
    ids=repr,
)  # fmt: skip
def test_on_a_gpu_the_result_is_the_same(transform: GradTransform) -> None:
    shapes = [(3,), (64, 64, 3, 3), (300, 400)]
    rng = torch.Generator().manual_seed(8)
    here = reseeded(transform.init([torch.zeros(s) for s in shapes]), 1)
    there = reseeded(transform.init([torch.zeros(s, device="cuda") for s in shapes]), 1)
    for _ in range(3):
        grads = [torch.randn(s, generator=rng) for s in shapes]
        out, here = transform.update(list(grads), here)
        gpu, there = transform.update([g.cuda() for g in grads], there)
        for a, b in zip(out, gpu, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b.cpu())


@pytest.mark.parametrize(
    "transform",
    [KeepTopK(0.1), KeepRandomK(0.1), ErrorFeedback(KeepTopK(0.1)),
     MomentumCorrection(0.9, KeepTopK(0.1))],
    ids=repr,
)  # fmt: skip
def test_nothing_is_refused_in_torchs_deterministic_mode(transform: GradTransform) -> None:
    grads: Grads = [torch.ones(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.ones(50)]
    state = transform.init([g for g in grads if g is not None])
    torch.use_deterministic_algorithms(True)
    try:
        transform.update(grads, state)
    finally:
        torch.use_deterministic_algorithms(False)
