"""The same bytes whatever the process was told about devices and subnormal numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard.kernels.low_rank_product import outer_sum
from gradguard.wire import WireError, decode, encode, inspect
from gradguard.wire.factors import TAG as FACTORS
from gradguard.wire.formats import FORMATS, Format
from gradguard.wire.header import Header, Record, Support, encode_header
from gradguard.wire.reader import varint
from tests.wire.cases import same
from tests.wire.test_hostile_bytes import resealed

KINDS = ["bits", "sparse", "dense", "few", "constant", "narrow", "grid", "masked"]
BY_NAME = {fmt.name: fmt for fmt in FORMATS}


@pytest.fixture
def flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def test_another_default_device_changes_nothing() -> None:
    program = (
        "import torch\n"
        "from gradguard.wire import decode, encode\n"
        "from tests.wire.cases import made, same\n"
        "from gradguard.wire.formats import FORMATS\n"
        "from gradguard.kernels.low_rank_product import outer_sum\n"
        f"kinds = {KINDS}\n"
        "message = {f'{k} {f.name} {n}': made(k, f, (n,), 3)"
        " for k in kinds for f in FORMATS for n in (0, 20000)}\n"
        "p, q = torch.randn(300, 2), torch.randn(200, 2)\n"
        "message['product'] = outer_sum(p, q)\n"
        "with torch.device('meta'):\n"
        "    found = decode(encode(message, factors={'product': (p, q)}, mask_seed=3))\n"
        "assert same(found, message)\n"
        "assert not any(part.is_meta for part in found.values())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def flush_cases() -> dict[str, Tensor]:
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    halves = halves[~halves.isnan()]
    tiny = torch.tensor([1e-45, 1e-40, 1.1e-38, 0.0, -1e-39, 1.0, 3.5])
    random = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    return {
        "float16 in float32": halves.float(),
        "float16 in float64": halves.double(),
        "float32 in float64": torch.cat((random, tiny)).double(),
        "bfloat16 in float64": (random * 2.0**-125).bfloat16().double(),
        "float8 in float32": random.to(torch.float8_e5m2).float(),
        "subnormal": random * 1e-39,
        "subnormal grid": (random.clamp(-1, 1) * 7).round() / 7 * 1e-38,
        "small grid": (random.double().clamp(-1, 1) * 7).round() / 7 * 1e-307,
    }


@pytest.mark.parametrize("name", flush_cases())
def test_bytes_do_not_depend_on_what_becomes_of_subnormal_numbers(name: str, flushed: None) -> None:
    torch.set_flush_denormal(False)
    message = {"w": flush_cases()[name]}
    data = encode(message)
    assert same(decode(data), message)
    torch.set_flush_denormal(True)
    assert same(decode(data), message)
    there = encode(message)
    torch.set_flush_denormal(False)
    assert same(decode(there), message)
    assert there == data


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-15, 1e-19, 1e-22, 1e-30, 1e-40])
def test_factors_are_not_sent_where_their_products_may_be_subnormal(
    scale: float, flushed: None
) -> None:
    torch.set_flush_denormal(False)
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(n, 2, generator=generator) * scale for n in (60, 70))
    message = {"w": outer_sum(p, q)}
    data = encode(message, factors={"w": (p, q)})
    assert (inspect(data).tensors[0].codec == "factors") is (scale > 1e-15)
    torch.set_flush_denormal(True)
    there = decode(data)
    again = encode(message, factors={"w": (p, q)})
    torch.set_flush_denormal(False)
    assert same(there, message)
    assert again == data


def one(fmt: Format, shape: tuple[int, ...], tag: int, own: bytes) -> bytes:
    record = Record("w", fmt, shape, Support.ALL, tag, len(own))
    return resealed(encode_header(Header((record,), 0, 0, 0, 0, ())) + own)


def numbers(kind: str, *values: float) -> bytes:
    return np.array(values, dtype=kind).tobytes()


NARROWED, GRID = 1, 3
NEVER_WRITTEN: dict[str, tuple[bytes, str]] = {
    "NaN in float16": (
        one(BY_NAME["float32"], (2,), NARROWED, b"\3" + numbers("<f2", 1, np.nan)), "neither NaN"),
    "NaN in float32": (
        one(BY_NAME["float64"], (2,), NARROWED, b"\2" + numbers("<f4", 1, np.nan)), "neither NaN"),
    "NaN in bfloat16": (
        one(BY_NAME["float64"], (1,), NARROWED, b"\4\xc1\x7f"), "neither NaN"),
    "NaN in float8_e4m3fn": (
        one(BY_NAME["float32"], (1,), NARROWED, b"\5\x7f"), "neither NaN"),
    "NaN in float8_e5m2": (
        one(BY_NAME["float32"], (1,), NARROWED, b"\6\x7f"), "neither NaN"),
    "subnormal in float32": (
        one(BY_NAME["float64"], (1,), NARROWED, b"\2" + numbers("<f4", 1e-45)), "nor subnormals"),
    "subnormal in bfloat16": (
        one(BY_NAME["float64"], (1,), NARROWED, b"\4\1\0"), "nor subnormals"),
    **{f"a grid up to {largest}": (
        one(BY_NAME["float32"], (4,), GRID, b"\2" + numbers("<f4", largest) + b"\0"), "scale")
       for largest in (np.nan, np.inf, -1.0, 0.0, 1e-40)},
    **{f"a factor of {value}": (
        one(BY_NAME["float32"], (3, 3), FACTORS,
            b"\2\3\1" + numbers("<f4", 1, 2, 3, value, 1, 0)), "finite")
       for value in (np.nan, np.inf, -np.inf, 1e-40, 1e-37)},
    "inf - inf": (
        one(BY_NAME["float32"], (6, 6), FACTORS,
            b"\2\6\2" + numbers("<f4", *[3e38, -3e38] * 6, *[3e38] * 12)),
        "must not be NaN"),
    "rank 0": (one(BY_NAME["float32"], (3, 3), FACTORS, b"\2\3\0"), "rank 0"),
    "float64 factors of float16": (
        one(BY_NAME["float16"], (64, 64), FACTORS, b"\1\x40\1" + bytes(8 * 128)), "smaller than"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER_WRITTEN)
def test_what_is_never_written_is_refused(name: str) -> None:
    data, reason = NEVER_WRITTEN[name]
    with pytest.raises(WireError, match=reason):
        decode(data)


def test_factors_of_a_product_that_is_nan_are_ignored() -> None:
    p = torch.tensor([3e38, -3e38]).expand(6, 2).contiguous()
    q = torch.tensor([3e38, 3e38]).expand(6, 2).contiguous()
    message = {"w": outer_sum(p, q)}
    assert message["w"].isnan().all()
    data = encode(message, factors={"w": (p, q)})
    assert inspect(data).tensors[0].codec != "factors"
    assert same(decode(data), message)


def test_factors_of_rank_0_or_wider_than_needed_are_ignored() -> None:
    empty = torch.zeros(50, 0)
    zeros = {"w": torch.zeros(50, 50)}
    assert encode(zeros, factors={"w": (empty, empty)}) == encode(zeros)
    p, q = torch.randn(50, 1).double(), torch.randn(50, 1).double()
    half = {"w": outer_sum(p, q).half()}
    assert encode(half, factors={"w": (p, q)}) == encode(half)


def test_a_product_takes_little_more_memory_than_its_tensor() -> None:
    """``tracemalloc`` does not see torch's memory: the peak is that of a process."""
    program = (
        "import resource, sys, torch\n"
        "from gradguard.wire import decode, encode\n"
        "data = sys.stdin.buffer.read()\n"
        "decode(encode({'w': torch.ones(3, 3)}))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode(data, max_bytes=2**27)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    own = b"\2" + varint(2**13) + varint(1) + numbers("<f4", *[1.5] * 2**14)
    data = one(BY_NAME["bfloat16"], (2**13, 2**13), FACTORS, own)
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=True, timeout=120
    )
    assert int(done.stdout) * 1024 < 1.3 * 2**27
    assert "w" in decode(data, max_bytes=2**27)
