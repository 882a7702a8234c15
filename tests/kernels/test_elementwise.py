"""Working on gradients piece by piece, in the memory in which they lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradguard import (
    AddGaussian,
    AddLaplace,
    Cast,
    ClipByGlobalNorm,
    ClipByValue,
    NonFiniteGradientError,
    Quantize,
    Sign,
    Ternary,
)
from gradguard.core import InPlace
from gradguard.kernels.elementwise import PIECE, overwrite, pieces
from gradguard.randomness import generator, reseeded, seeded_rng

IN_PLACE: list[InPlace] = [
    *(ClipByGlobalNorm(1.0), ClipByValue(0.5), Cast("float16"), Cast("float8_e5m2"), Cast("int8")),
    *(Sign(), Quantize(1), Quantize(4), Quantize(12), Ternary(), AddGaussian(0.1), AddLaplace(0.1)),
]
LONG = 2 * PIECE + 3  # three short of a normal draw by sixteens

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda flat: flat.clone(),
    "transposed": lambda flat: flat[: LONG // 2 * 2].view(2, -1).t(),
    "channels last": lambda flat: (
        flat[: LONG // 18 * 18].view(-1, 2, 3, 3).to(memory_format=torch.channels_last)
    ),
    "with gaps": lambda flat: torch.stack([flat, flat], 1)[:, 0],
    "double": Tensor.double,
    "half": Tensor.half,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transform", IN_PLACE, ids=repr)
def test_long_gradients_come_out_in_place_as_from_the_pure_update(
    transform: InPlace, layout: str
) -> None:
    flat = torch.randn(LONG, generator=torch.Generator().manual_seed(2))
    grad = LAYOUTS[layout](flat)
    before, strides = grad.clone(), grad.stride()
    state = reseeded(transform.init([grad]), 1)
    (expected,), after = transform.update([grad], state)
    assert expected is not None
    assert torch.equal(grad, before)
    (out,), held = transform.update_([grad], state)
    assert out is grad
    assert grad.stride() == strides
    assert torch.equal(grad, expected)
    assert {k: v.tolist() for k, v in after.items()} == {k: v.tolist() for k, v in held.items()}


@pytest.mark.parametrize(
    "transform", [AddGaussian(0.1), AddLaplace(0.1), Ternary()], ids=lambda t: type(t).__name__
)
def test_random_numbers_fall_on_the_same_coordinates_in_every_layout(
    transform: AddGaussian | AddLaplace | Ternary,
) -> None:
    grad = torch.randn(LONG // 18, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    state = reseeded(transform.init([grad]), 1)
    (one,), _ = transform.update([grad], state)
    (other,), _ = transform.update([grad.to(memory_format=torch.channels_last)], state)
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_noise_is_that_of_one_draw_over_the_whole_gradient() -> None:
    """Drawing in pieces changed nothing: torch draws by sixteens, and a short rest differently."""
    for size in (1, 15, 17, PIECE + 1, PIECE + 15, PIECE + 17, LONG):
        state = {"rng": seeded_rng(6)}
        whole = torch.randn(size, generator=generator(state["rng"])).mul_(0.1)
        (out,), _ = AddGaussian(0.1).update([torch.zeros(size)], state)
        assert out is not None
        assert torch.equal(out, whole)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 15, PIECE + 16, 3 * PIECE + 5])
def test_pieces_cover_everything_once_in_order(size: int) -> None:
    flat = torch.arange(size)
    found = list(pieces(flat))
    assert torch.equal(torch.cat(found), flat)
    assert all(16 <= len(piece) < PIECE + 16 for piece in found) or len(found) == 1


def test_a_result_that_does_not_fit_is_refused() -> None:
    grad = torch.full((3,), 6e4, dtype=torch.float16)
    with pytest.raises(NonFiniteGradientError, match=r"parameter 7 does not fit torch\.float16"):
        overwrite(grad, lambda piece: piece.mul_(2), index=7, most=12e4)
    huge = torch.full((3,), 3e38)
    with pytest.raises(NonFiniteGradientError, match=r"does not fit torch\.float32"):
        AddGaussian(3e38).update([huge.repeat(100)], AddGaussian(1.0).init([]))


@pytest.mark.parametrize("transform", IN_PLACE, ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_in_the_last_gradient_leaves_the_first_unwritten(
    transform: InPlace, bad: float
) -> None:
    first, last = torch.linspace(-1, 1, 50), torch.tensor([1.0, bad])
    before = first.clone()
    with pytest.raises(NonFiniteGradientError, match="parameter 2 contains NaN or infinity"):
        transform.update_([first, None, last], transform.init([]))
    assert torch.equal(first, before)
    assert first._version == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("transform", IN_PLACE, ids=repr)
def test_a_gpu_gives_what_the_cpu_gives(transform: InPlace) -> None:
    grad = torch.randn(LONG, generator=torch.Generator().manual_seed(2))
    state = reseeded(transform.init([grad]), 1)
    (expected,), _ = transform.update([grad], state)
    (out,), _ = transform.update_([grad.cuda()], state)
    assert out is not None
    assert expected is not None
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-6, atol=0.0)
