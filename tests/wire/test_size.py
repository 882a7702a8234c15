"""Messages take the bytes that their information takes, and little more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradguard import (
    Cast,
    GradTransform,
    KeepRandomK,
    KeepTopK,
    LowRank,
    Quantize,
    Sign,
    Ternary,
    chain,
)
from gradguard.kernels.low_rank_product import outer_sum
from gradguard.kernels.random_coordinates import draw_coordinates
from gradguard.randomness import reseeded
from gradguard.wire import decode, encode, inspect
from gradguard.wire.sending import encode_stated
from tests.wire.cases import same

SIZE = 300_000  # more than one block
HEADER = 120  # of a message of one tensor


def normal(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def sent(transform: GradTransform, values: Tensor | None = None) -> dict[str, Tensor]:
    grads: list[Tensor | None] = [normal() if values is None else values]
    (out,), _ = transform.update(grads, reseeded(transform.init([normal()]), 1))
    assert out is not None
    return {"w": out}


@pytest.mark.parametrize(
    ("transform", "bits", "codec"),
    [
        (Sign(), 1, "palette"),
        (Ternary(), 1.6, "palette"),
        *((Quantize(b), b, "grid") for b in range(3, 17)),
        (Quantize(1), 1, "palette"),
        (Quantize(2), 1.6, "palette"),
        (Cast("bfloat16"), 16, "narrowed"),
        (Cast("float16"), 16, "narrowed"),
        (Cast("float8_e4m3fn"), 8, "narrowed"),
        (Cast("float8_e5m2"), 8, "palette"),  # which has fewer than 2**7 distinct values here
    ],
    ids=repr,
)
def test_codes_cost_their_bits(transform: GradTransform, bits: float, codec: str) -> None:
    message = sent(transform, normal().clamp(-1.5, 1.5))
    data = encode(message)
    assert inspect(data).tensors[0].codec == codec
    assert len(data) <= bits * SIZE / 8 + HEADER
    assert same(decode(data), message)


def entropy_bits(share: float) -> float:
    """Bits that a kept coordinate's place is worth, kept with probability ``share``."""
    zero = 1 - share
    return -(share * math.log2(share) + zero * math.log2(zero)) / share


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_uniform_indices_cost_little_more_than_their_entropy(share: float, portable: bool) -> None:
    kept = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < share
    message = {"w": torch.where(kept, normal(), 0.0)}
    listing = inspect(encode(message, portable=portable))
    count = int(kept.sum())
    indices = 8 * dict(listing.shared)["indices"] / count
    assert indices <= 1.2 * entropy_bits(share) + 0.2
    if share == 0.01:
        assert indices <= 10
    assert 8 * listing.total_bytes / count <= 1.1 * (entropy_bits(share) + 32)


def test_many_tensors_with_few_survivors_cost_no_more_than_one() -> None:
    (kept,) = sent(KeepTopK(0.01)).values()
    whole = len(encode({"w": kept}))
    pieces = encode({f"layers.{i}.weight": part for i, part in enumerate(kept.view(-1, 2000))})
    names = inspect(pieces).header_bytes
    assert len(pieces) - names <= whole + 50
    assert names <= 8 * 150


def test_what_survives_is_packed_too() -> None:
    count = SIZE // 100
    places = dict(inspect(encode(sent(KeepTopK(0.01)))).shared)["indices"]
    for second, bits in ((Sign(), 1.0), (Quantize(4), 4.0), (Cast("float16"), 16.0)):
        data = encode(sent(chain(KeepTopK(0.01), second)))
        assert len(data) <= places + bits * count / 8 + HEADER


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_masked_by_multiplying_costs_a_bit_for_each_sign(
    share: float, dtype: torch.dtype
) -> None:
    """Half of the zeros that ``g * mask`` leaves are -0.0, and a message gives all bits back."""
    kept = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < share
    message = {"w": normal().to(dtype) * kept}
    data, width = encode(message), 8 * dtype.itemsize
    assert inspect(data).tensors[0].codec.startswith("bitmap and signs" if share else "palette")
    assert same(decode(data), message)
    apart = encode({"w": torch.where(kept, normal().to(dtype), 0.0)})
    assert 8 * len(data) <= 2.1 * SIZE + 1.02 * width * int(kept.sum()) + 8 * HEADER
    assert 8 * (len(data) - len(apart)) <= 1.1 * SIZE


def test_signs_of_zeros_do_not_hide_a_grid_or_signs() -> None:
    kept = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    levels = (normal().clamp(-2, 2) / 2 * 7).round() / 7 * 0.3
    for values, bits in ((levels, 4), (normal().sign(), 1)):
        message = {"w": values * kept}
        data = encode(message)
        assert same(decode(data), message)
        assert 8 * len(data) <= 2 * SIZE + bits * int(kept.sum()) + 8 * HEADER


def test_a_few_negative_zeros_are_values_like_others() -> None:
    (out,) = sent(KeepTopK(0.01)).values()
    plain = len(encode({"w": out}))
    out[:: SIZE // 10] = -0.0
    data = encode({"w": out})
    assert len(data) < plain + 10 * 8
    assert same(decode(data), {"w": out})


@pytest.mark.parametrize("odd", [0, 5, SIZE - 1])
def test_one_value_that_the_sample_missed_costs_little(odd: int) -> None:
    for transform, bits in ((Sign(), 2.0), (Quantize(8), 8.0), (KeepTopK(0.01), 0.5)):
        message = sent(transform)
        message["w"][odd] = message["w"][odd - 1] * 0.9 if transform == Sign() else 0.0
        data = encode(message)
        assert len(data) <= bits * SIZE / 8 + HEADER
        assert same(decode(data), message)


def test_a_misleading_sample_costs_no_correctness() -> None:
    """Zeros, signs and short numbers wherever a sample may look, anything elsewhere."""
    for start in (torch.zeros(SIZE), normal().sign(), normal().bfloat16().float()):
        for step in (2, 3, 293, 586, 1171):
            values = start.clone()
            values[1::step] = normal(2)[1::step]
            assert same(decode(encode({"w": values})), {"w": values})


def randomly_kept(values: Tensor) -> tuple[dict[str, Tensor], int]:
    """The message and its mask's seed: the same coordinates, whatever the values."""
    transform = KeepRandomK(0.01)
    (out,), state = transform.update([values], reseeded(transform.init([values]), 1))
    assert out is not None
    return {"a": out[:1000], "b": out[1000:].view(-1, 100)}, int(state["mask_seed"]) % 2**64


def test_a_seed_takes_the_place_of_indices() -> None:
    message, seed = randomly_kept(normal())
    data = encode(message, mask_seed=seed)
    assert same(decode(data), message)
    assert all(t.codec.startswith("seed + ") for t in inspect(data).tensors)
    assert "indices" not in dict(inspect(data).shared)
    assert 8 * len(data) <= 29 * SIZE / 100 + 8 * HEADER
    assert len(data) < 0.85 * len(encode(message))


@pytest.mark.parametrize("hidden", [0.001, 0.01, 0.4, 0.9])
def test_a_seed_that_drew_a_zero_is_not_told(hidden: float) -> None:
    """As in layers that no example has reached: the message does not say that it was drawn."""
    values = normal()
    kept, _ = randomly_kept(values)
    drawn = torch.cat([part.flatten() for part in kept.values()]).nonzero().flatten()
    values[: int(hidden * SIZE)] = 0.0
    values[drawn[-1]] = 0.0  # few zeros could all be missed by the draw
    message, seed = randomly_kept(values)
    assert sum(int(part.count_nonzero()) for part in message.values()) < SIZE // 100
    assert encode(message, mask_seed=seed) == encode(message)


def test_a_seed_never_makes_a_message_longer() -> None:
    for count in (1, 2, 3, 10, 30):
        drawn = torch.from_numpy(draw_coordinates(5, 100, count))
        for value in (1.0, 1.1):
            message = {"w": torch.zeros(100)}
            message["w"][drawn] = value
            assert len(encode(message, mask_seed=5)) <= len(encode(message))


def test_a_seed_for_more_than_half_is_ignored_and_a_tight_limit_suffices() -> None:
    for ratio, seeded in ((0.4, True), (0.6, False)):
        transform = KeepRandomK(ratio)
        (out,), state = transform.update([normal()], transform.init([normal()]))
        assert out is not None
        data = encode({"w": out}, mask_seed=int(state["mask_seed"]) % 2**64)
        assert inspect(data).tensors[0].codec.startswith("seed") is seeded
        assert same(decode(data, max_bytes=4 * SIZE), {"w": out})


def test_a_seed_of_another_message_is_ignored() -> None:
    message = sent(KeepRandomK(0.01))
    assert encode(message, mask_seed=3) == encode(message)
    with pytest.raises(ValueError, match="seed"):
        encode(message, mask_seed=2**64)


def test_factors_take_the_place_of_their_product() -> None:
    grads = normal().view(500, 600)
    transform = LowRank(2)
    (out,), state = transform.update([grads], transform.init([grads]))
    assert out is not None
    data = encode_stated({"w": out}, state, names=("w",))
    assert inspect(data).tensors[0].codec == "factors"
    assert len(data) <= 4 * 2 * (500 + 600) + HEADER
    assert same(decode(data), {"w": out})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_of_any_width_give_any_width(dtype: torch.dtype) -> None:
    p, q = normal().view(-1, 3)[:40], normal().view(-1, 3)[100:150]
    message = {"w": outer_sum(p, q).to(dtype).view(40, 5, 10)}
    data = encode(message, factors={"w": (p, q)})
    assert inspect(data).tensors[0].codec == "factors"
    assert same(decode(data), message)


def test_factors_of_something_else_are_ignored_and_impossible_ones_refused() -> None:
    p, q = normal().view(-1, 2)[:40], normal().view(-1, 2)[100:150]
    close = {"w": outer_sum(p, q)}
    close["w"][3, 4] *= 1 + 2**-23
    assert encode(close, factors={"w": (p, q)}) == encode(close)
    assert encode(close, factors={"w": (p, q[:9])}) == encode(close)
    assert encode(close, factors={"other": (p, q)}) == encode(close)
    with pytest.raises(ValueError, match=r"must be \(n, r\) and \(m, r\)"):
        encode(close, factors={"w": (p, q[:, :1])})
    with pytest.raises(TypeError, match="float32 or float64"):
        encode(close, factors={"w": (p.half(), q.half())})


def test_free_numbers_cost_nothing_on_top() -> None:
    assert len(encode({"w": normal()})) <= 4 * SIZE + HEADER


@pytest.mark.parametrize("size", [40, 300, 5000, 60_000])
def test_a_message_is_never_longer_for_not_being_portable(size: int) -> None:
    """zstd is not always the shorter of the two."""
    generator = torch.Generator().manual_seed(size)
    for share in (0.01, 0.05, 0.3):
        kept = torch.rand(size, generator=generator) < share
        message = {"w": torch.where(kept, torch.randn(size, generator=generator), 0.0)}
        assert len(encode(message)) <= len(encode(message, portable=True))


def test_the_bytes_of_version_1_stay_as_they_are() -> None:
    """Written once and kept: other versions of this library must read them, and write them."""
    message = {
        "weight": torch.tensor([[0.5, -0.5], [-0.5, -0.5]]),
        "sparse": torch.tensor([0.0] * 20 + [1.25] + [0.0] * 20),
        "count": torch.tensor(300),
    }
    data = encode(message, portable=True)
    assert data.hex() == GOLDEN
    assert same(decode(bytes.fromhex(GOLDEN)), message)
    masked = torch.tensor([0.0, -0.0, -0.0, 0.0, 0.0] * 30)
    masked[::50] = torch.tensor([0.1, -0.7, 2.3])
    assert encode({"masked": masked}, portable=True).hex() == GOLDEN_MASKED
    assert same(decode(bytes.fromhex(GOLDEN_MASKED)), {"masked": masked})


GOLDEN = (
    "8967726164677264018a35b31928002803010400000677656967687402030202020606737061727365021101290"
    "205636f756e741001000301000114020000003f02053a122c01"
)
GOLDEN_MASKED = (
    "896772616467726401521ed7631500150100000001020314066d61736b656402440196012a00039a6766000399666600"
    "0399662600037b7e800013010000000000040000000000100000000000000013638c31c61863c618638c31c68c31c618"
    "638c01"
)
