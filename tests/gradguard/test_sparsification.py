from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import Grads, KeepRandomK, KeepTopK
from gradguard.sparsification import Scope, kept_of
from gradguard.testing import LawBrokenError, check_unbiased, grads
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
