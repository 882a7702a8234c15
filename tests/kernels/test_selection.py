from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import KeepTopK, State, WarmUp
from gradguard.core import Grads
from gradguard.kernels import selection as module
from gradguard.kernels.candidates import thin_out
from gradguard.kernels.selection import Numbers, OverflowInSelectionError, largest, selects
from tests import reference

BIG = 2**18 + 2**16 + 123


def _plain(*flats: Tensor) -> Numbers:
    return Numbers((flats,), lambda part: part, flats)


def _kept(numbers: Numbers, count: int, *, among: Sequence[int] | None = None) -> list[Tensor]:
    """The selection written into zeros; every element must be covered exactly once."""
    out = [torch.zeros(tensor.numel(), dtype=torch.float64) for tensor in numbers.like]
    covered = [torch.zeros(tensor.numel()) for tensor in numbers.like]
    for found in largest(numbers, count, among=among):
        inside = slice(found.start, found.stop)
        covered[found.index][inside] += 1
        assert bool((found.positions.diff() > 0).all())
        out[found.index][inside][found.positions.long()] = found.values.double()
    for i, times in enumerate(covered):
        assert bool((times == (1 if among is None or i in among else 0)).all())
    return out


def _expected(flat: Tensor, count: int) -> Tensor:
    order = torch.sort(flat.double().abs(), descending=True, stable=True).indices[:count]
    out = torch.zeros(len(flat), dtype=torch.float64)
    out[order] = flat.double()[order]
    return out


@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5]), max_size=6)), st.data())
def test_it_is_the_plain_sort_of_all_tensors_end_to_end(
    values: list[list[float]], data: st.DataObject
) -> None:
    flat = [v for piece in values for v in piece]
    count = data.draw(st.integers(0, len(flat)))
    kept = _kept(_plain(*(torch.tensor(piece) for piece in values)), count)
    assert [v for piece in kept for v in piece.tolist()] == reference.top_k(flat, count)


def _shaped(kind: str, n: int) -> Tensor:
    values = torch.randn(n, generator=torch.Generator().manual_seed(5))
    if kind == "tied":
        return values.sign()
    if kind == "rounded":
        return values.round()
    if kind == "few":
        return values * (torch.arange(n) % 1009 == 0)
    if kind == "misleading":  # every sampled value is large, or none
        stride = max(n // module._SAMPLES, module._LEAST_STRIDE) | 1
        values[::stride] = 50.0
    elif kind == "hidden":
        stride = max(n // module._SAMPLES, module._LEAST_STRIDE) | 1
        values[::stride] = 0.0
    elif kind == "rising":  # every chunk replaces what was found before
        values = torch.arange(n).float()
    return values


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    "kind", ["normal", "tied", "rounded", "few", "misleading", "hidden", "rising"]
)
def test_it_is_exact_on_long_tensors_whatever_the_sample_says(kind: str, share: float) -> None:
    flat = _shaped(kind, BIG)
    count = int(share * BIG)
    pieces = torch.split(flat, [5, BIG - 50_005, 20_000, 30_000])
    kept = torch.cat(_kept(_plain(*pieces), count))
    assert torch.equal(kept, _expected(flat, count))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_ranked_exactly(dtype: torch.dtype) -> None:
    flat = _shaped("normal", BIG).to(dtype)
    assert torch.equal(_kept(_plain(flat), 1000)[0], _expected(flat, 1000))


def test_mixed_dtypes_are_ranked_without_rounding() -> None:
    """0.1 in float64 is less than 0.1 in float32, and 1e300 is beyond float32 and float16."""
    single, double = torch.tensor([0.1, 3.0]), torch.tensor([0.1, 1e300], dtype=torch.float64)
    half = torch.tensor([65504.0, 0.1], dtype=torch.float16)
    kept = _kept(_plain(single, double, half), 3)
    assert [piece.tolist() for piece in kept] == [[0.0, 3.0], [0.0, 1e300], [65504.0, 0.0]]
    low = _kept(_plain(single[:1], double[:1]), 1)
    assert [float(piece) for piece in low] == [single[0].item(), 0.0]


def test_long_mixed_dtypes_are_ranked_without_rounding() -> None:
    flat = [_shaped("normal", 40_000), _shaped("normal", 40_000).double() * 1e300]
    kept = _kept(_plain(*flat), 40_100)
    assert int(kept[1].count_nonzero()) == 40_000
    assert torch.equal(kept[0], _expected(flat[0], 100))


def test_among_equals_the_first_in_row_major_order_is_chosen_whatever_the_layout() -> None:
    like = [torch.ones(3, 4).t(), torch.ones(2, 2, 2, 2).to(memory_format=torch.channels_last)]
    flats = [torch.ones(12), torch.ones(16)]
    found = largest(Numbers((flats,), lambda part: part, like), 15)
    assert found[0].positions.tolist() == list(range(12))
    assert found[1].positions.tolist() == [0, 2, 4]  # (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0)


def test_numbers_are_combined_where_they_are_looked_at() -> None:
    first, second = _shaped("normal", BIG), _shaped("normal", BIG).flip(0)
    pieces = [7, 100_000, 8, BIG - 100_015]
    terms = (torch.split(first, pieces), torch.split(second, pieces))
    kept = torch.cat(_kept(Numbers(terms, torch.add, terms[0]), 500))
    assert torch.equal(kept, _expected(first + second, 500))


def test_among_restricts_the_choice() -> None:
    flats = [torch.tensor([5.0, 6.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    kept = _kept(_plain(*flats), 2, among=(1, 2))
    assert [piece.tolist() for piece in kept] == [[0.0, 0.0], [0.0, 2.0], [3.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("at", [0, -1])
def test_a_number_that_is_not_finite_is_refused_with_its_tensor(
    bad: float, index: int, at: int
) -> None:
    flats = [torch.ones(9), torch.randn(BIG), torch.ones(4)]
    flats[index][at] = bad
    with pytest.raises(OverflowInSelectionError) as caught:
        largest(_plain(*flats), 3)
    assert caught.value.index == index


@pytest.mark.parametrize("bits", [0x7F800001, -0x00000001, 0x7F800000, 0x7FC00000])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_any_nan_is_refused_however_many_there_are(bits: int, share: float) -> None:
    """Also with payloads below that of the NaN that arithmetic makes."""
    flat = torch.randn(BIG)
    flat.view(torch.int32)[: int(share * BIG)] = bits
    flat = flat[torch.randperm(BIG, generator=torch.Generator().manual_seed(2))]
    for count in (1, BIG // 100, BIG):
        with pytest.raises(OverflowInSelectionError):
            largest(_plain(flat), count)


def test_an_overflowing_sum_is_refused() -> None:
    terms = ([torch.tensor([3e38])], [torch.tensor([3e38])])
    with pytest.raises(OverflowInSelectionError):
        largest(Numbers(terms, torch.add, terms[0]), 1)


@pytest.mark.parametrize("kind", ["tied", "rising", "hidden", "misleading"])
def test_candidates_are_thinned_out_on_the_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All equal, all growing, or hidden from the sample: memory stays a multiple of the count."""
    seen: list[int] = []

    def counted(runs: list[Any], *arguments: Any) -> float:
        seen.append(sum(len(run.positions) for run in runs))
        return thin_out(runs, *arguments)

    monkeypatch.setattr("gradguard.kernels.selection.thin_out", counted)
    largest(_plain(_shaped(kind, 8 * BIG)), 100)
    assert max(seen) <= module._FEW + module._RUN


def test_the_choice_does_not_depend_on_the_number_of_threads() -> None:
    flat = _shaped("rounded", BIG)
    threads = torch.get_num_threads()
    kept = []
    for number in (1, 2):
        torch.set_num_threads(number)
        kept.append(_kept(_plain(flat), 3000)[0])
    torch.set_num_threads(threads)
    assert torch.equal(*kept)


def test_a_subclass_with_an_update_of_its_own_does_not_inherit_the_selection() -> None:
    class Negated(KeepTopK):
        def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
            out, state = super().update(grads, state)
            return [None if g is None else -g for g in out], state

    class Same(KeepTopK):
        pass

    assert selects(KeepTopK(0.1))
    assert selects(WarmUp(KeepTopK(0.1), steps=1))
    assert selects(Same(0.1))
    assert not selects(Negated(0.1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["normal", "tied", "few"])
def test_on_a_gpu_the_choice_is_the_same(kind: str) -> None:
    flat = _shaped(kind, BIG)
    count = BIG // 100
    here = _kept(_plain(*torch.split(flat, 100_000)), count)
    numbers = _plain(*torch.split(flat.cuda(), 100_000))
    there = _kept(numbers, count)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
