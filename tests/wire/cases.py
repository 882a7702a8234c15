"""Messages that a wire format has to carry, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from gradguard.wire.formats import FORMATS, Format


def bits(tensor: Tensor) -> Tensor:
    """All bits in row-major order."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().contiguous().reshape(-1))
    return flat.view(torch.uint8)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Names in order, shapes, dtypes and bits."""
    return list(one) == list(other) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def messages() -> st.SearchStrategy[dict[str, Tensor]]:
    """Any names, dtypes, shapes, layouts and bits, with and without structure."""
    names = st.text(max_size=12).filter(_is_writable)
    return st.dictionaries(names, tensors(), max_size=5)


def tensors() -> st.SearchStrategy[Tensor]:
    """Any one tensor."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
    return st.tuples(st.sampled_from(FORMATS), shapes, st.integers(0, 2**32 - 1)).flatmap(
        lambda drawn: st.sampled_from(
            ["bits", "sparse", "dense", "few", "constant", "narrow", "grid", "transposed", "masked"]
        ).map(lambda kind: made(kind, *drawn))
    )


def made(kind: str, fmt: Format, shape: tuple[int, ...], seed: int) -> Tensor:
    """A tensor with this structure; ``bits`` are any bits at all, NaNs among them."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    raw = rng.integers(0, 2 if fmt.name == "bool" else 256, (size, fmt.size), dtype=np.uint8)
    if kind == "few":
        raw = raw[rng.integers(0, min(3, size), size)] if size else raw
    if kind == "constant" and size:
        raw = np.repeat(raw[:1], size, axis=0)
    if kind == "masked" and fmt.dtype.is_floating_point:  # as by a mask that is multiplied with
        raw[rng.random(size) < 0.8] = 0
        raw[:, -1] |= rng.choice(np.array([0, 128], np.uint8), size)
    if kind in ("sparse", "dense"):
        raw[rng.random(size) < (0.97 if kind == "sparse" else 0.4)] = 0
    tensor = torch.empty(size, dtype=fmt.dtype)
    tensor.view(torch.uint8).copy_(torch.from_numpy(raw.reshape(-1)))
    if fmt.dtype.is_floating_point and kind == "narrow":
        tensor = torch.from_numpy(rng.normal(size=size)).to(torch.float8_e5m2).to(fmt.dtype)
    if fmt.dtype in (torch.float32, torch.float64) and kind == "grid":
        levels = torch.from_numpy(rng.integers(-7, 8, size)).to(fmt.dtype)
        tensor = levels / 7 * 0.3
    tensor = tensor.reshape(shape)
    if kind == "transposed" and len(shape) > 1:
        return tensor.transpose(0, -1)
    return tensor


def _is_writable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
