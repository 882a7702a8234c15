from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard.kernels import low_rank_product
from gradguard.kernels.low_rank_product import outer_sum


def _normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


@given(
    st.integers(0, 9), st.integers(0, 9), st.integers(0, 5), st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_every_product_and_every_sum_is_rounded_on_its_own_and_in_order(
    rows: int, columns: int, rank: int, seed: int, dtype: torch.dtype
) -> None:
    p = _normal(rows, rank, seed=seed, dtype=dtype)
    q = _normal(columns, rank, seed=seed + 1, dtype=dtype)
    kind = np.float32 if dtype == torch.float32 else np.float64
    slow = np.zeros((rows, columns), dtype=kind)
    for i in range(rows):
        for j in range(columns):
            total = kind(0.0)
            for k in range(rank):
                total = kind(total + kind(p[i, k].item()) * kind(q[j, k].item()))
            slow[i, j] = total
    assert np.array_equal(outer_sum(p, q).numpy(), slow)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = _normal(37, 3, seed=0), _normal(11, 3, seed=1)
    whole = outer_sum(p, q)
    for block in (1, 11, 50, 100):
        monkeypatch.setattr(low_rank_product, "_ROWS_OF", block)
        assert torch.equal(outer_sum(p, q), whole)


def test_the_number_of_threads_does_not_change_the_result() -> None:
    p, q, threads = _normal(700, 4, seed=0), _normal(500, 4, seed=1), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(outer_sum(p, q))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_a_zero_has_no_sign() -> None:
    out = outer_sum(torch.tensor([[-0.0], [0.0], [1e-30]]), torch.tensor([[1.0], [-1e-30]]))
    assert not bool(torch.signbit(out[out == 0]).any())


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (torch.zeros(3), torch.zeros(3, 1)),
        (torch.zeros(3, 2), torch.zeros(3, 1)),
        (torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.float64)),
    ],
)
def test_factors_that_do_not_fit_together_are_refused(p: torch.Tensor, q: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="factors must"):
        outer_sum(p, q)
