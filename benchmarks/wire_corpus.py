"""Real encoded messages for a fuzzer to begin with: every transform, dtype and odd shape."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    AddLaplace,
    Cast,
    ClipByGlobalNorm,
    ClipByValue,
    ErrorFeedback,
    GradTransform,
    Identity,
    KeepRandomK,
    KeepTopK,
    LowRank,
    Only,
    Quantize,
    Sign,
    Ternary,
    Withhold,
    chain,
    guard,
    wire,
)
from gradguard.wire.compression import read_section
from gradguard.wire.envelope import opened, sealed
from gradguard.wire.reader import Reader, varint

TRANSFORMS: tuple[GradTransform, ...] = (
    *(Identity(), ClipByGlobalNorm(1.0), ClipByValue(0.1), AddGaussian(0.1), AddLaplace(0.1)),
    *(KeepTopK(0.01), KeepTopK(0.1, scope="tensor"), KeepTopK(0.5), KeepRandomK(0.1)),
    *(Quantize(2), Quantize(4), Quantize(8), Ternary(), Sign()),
    *(Cast("float16"), Cast("bfloat16"), Cast("float8_e4m3fn"), LowRank(1), LowRank(2)),
    *(ErrorFeedback(KeepTopK(0.05)), Withhold("1.*"), Only("0.*", Sign())),
    *(chain(KeepTopK(0.1), Quantize(4)), chain(KeepRandomK(0.2), Sign())),
)
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)


def corpus() -> dict[str, bytes]:
    """Encoded messages by name; apart from what transforms draw, the same in every run."""
    found = {}
    for number, (name, data) in enumerate([*_released(), *_made_up()]):
        found[f"{number:03}-{name}"] = data
        # Damage to a compressed header ends in the decompressor; this one lets it through.
        found[f"{number:03}-{name}-plain"] = with_plain_header(data)
    return found


def with_plain_header(data: bytes) -> bytes:
    """The same message with its header stored as it is."""
    reader = Reader(opened(data))
    size = reader.varint(what="the length of the header", most=2**24)
    header = bytes(read_section(reader, size=size, what="the header"))
    rest = bytes(reader.take(reader.left, what="the rest"))
    return sealed([varint(size), b"\0", varint(size), header, rest])


def _released() -> Iterator[tuple[str, bytes]]:
    """What a guard around each transform releases in its first round, and in its third."""
    rng = torch.Generator().manual_seed(0)
    for transform in TRANSFORMS:
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Linear(48, 10))
        optimizer = guard(torch.optim.SGD(model.parameters()), transform, model=model)
        for number in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=rng)
            message = optimizer.release()
            assert isinstance(message, dict)
            if number != 1:
                yield type(transform).__name__, wire.encode_release(message, optimizer)


def _made_up() -> Iterator[tuple[str, bytes]]:
    """Messages without a transform, for what the released ones have none of."""
    rng = torch.Generator().manual_seed(1)
    odd: dict[str, dict[str, Tensor]] = {
        "nothing": {},
        "shapes": {"": torch.tensor(1.5), "none": torch.zeros(3, 0), "deep": torch.ones(1, 2, 1)},
        "names": {"ä\n[b]": torch.ones(2), "x" * 300: torch.zeros(2)},
        "special": {"w": torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45])},
        "many": {f"layer.{i}.weight": torch.full((3,), float(i % 3)) for i in range(60)},
    }
    for dtype in DTYPES:
        words = torch.randint(256, (64 * dtype.itemsize,), generator=rng, dtype=torch.uint8)
        dense = (words % 2).bool() if dtype == torch.bool else words.view(dtype)
        mask = torch.rand(dense.shape, generator=rng) < 0.1
        sparse = torch.where(mask, dense.view(torch.uint8), 0) if dtype.itemsize == 1 else None
        name = str(dtype).removeprefix("torch.")
        odd[name] = {"dense": dense, "zeros": torch.zeros(300, dtype=dtype)}
        if sparse is not None and dtype != torch.bool:
            odd[name]["sparse"] = sparse.view(dtype)
    few, sparse = torch.randn(5, generator=rng), torch.zeros(20, 100)
    sparse.view(-1)[torch.randperm(2000, generator=rng)[:40]] = 1.0
    low = torch.randn(30, 1, generator=rng) @ torch.randn(1, 40, generator=rng)
    regular = torch.zeros(2**20, dtype=torch.uint8)
    regular[::17] = 1  # more indices than are compressed in one piece
    odd["regular"] = {"w": regular}
    odd["palette"] = {"w": few[torch.randint(5, (20, 30), generator=rng)]}
    odd["sparse"] = {"w": sparse, "v": sparse.half().double()}
    odd["masked"] = {"w": torch.randn(30, 20, generator=rng) * (sparse[:, :30].t() == 0.0)}
    odd["masked"]["v"] = odd["masked"]["w"].half() * sparse.t()[:30]
    odd["low rank"] = {"w": low}
    for name, message in odd.items():
        yield name.replace(" ", "-"), wire.encode(message)
        yield f"{name.replace(' ', '-')}-portable", wire.encode(message, portable=True)
