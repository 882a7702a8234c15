"""What is decoded is what was encoded, bit by bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradguard import NamedParameters
from gradguard.serialization import TRANSFORMS
from gradguard.testing import example_parameters, transforms
from gradguard.wire import decode, encode, inspect
from gradguard.wire.formats import FORMATS
from tests.wire.cases import bits, made, messages, same


@given(messages(), st.booleans())
def test_any_message_comes_back_bit_by_bit(message: dict[str, Tensor], portable: bool) -> None:
    data = encode(message, portable=portable)
    assert same(decode(data), message)
    assert encode(decode(data), portable=portable) == data


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize(
    "kind", ["bits", "sparse", "dense", "few", "constant", "narrow", "grid", "masked"]
)
@pytest.mark.parametrize("size", [1000, 2**18 + 3])
def test_long_tensors_come_back_bit_by_bit(kind: str, fmt: object, size: int) -> None:
    found = next(known for known in FORMATS if known is fmt)
    message = {"first": made(kind, found, (size,), 1), "second": made(kind, found, (7,), 2)}
    assert same(decode(encode(message)), message)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@given(data=st.data())
def test_the_output_of_every_transform_comes_back(name: str, data: st.DataObject) -> None:
    params = NamedParameters(example_parameters())
    transform = data.draw(transforms(name))
    out, _ = transform.update([p.clone() for p in params], transform.init(params))
    message = {n: g for n, g in zip(params.names, out, strict=True) if g is not None}
    assert same(decode(encode(message)), message)


def test_special_values_keep_their_bits() -> None:
    odd = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, 3.4e38]
    payload = torch.tensor([0x7F800001, 0x7FC01234, -1], dtype=torch.int32).view(torch.float32)
    message = {"odd": torch.tensor(odd), "payload": payload, "scalar": torch.tensor(-0.0)}
    assert same(decode(encode(message)), message)


def test_decoding_needs_no_context() -> None:
    message = {"a.weight": torch.randn(30, 5), "ä": torch.tensor([1, 2, -3])}
    program = (
        "import sys; from gradguard.wire import decode; "
        "found = decode(sys.stdin.buffer.read()); "
        "print({n: (t.dtype, [*t.shape], t.flatten().tolist()) for n, t in found.items()})"
    )
    command = [sys.executable, "-X", "utf8", "-c", program]
    done = subprocess.run(command, input=encode(message), capture_output=True, check=True)
    told = {n: (t.dtype, [*t.shape], t.flatten().tolist()) for n, t in message.items()}
    assert done.stdout.decode().strip() == str(told)


def test_the_message_is_not_modified_and_tensors_come_back_contiguous() -> None:
    given_message = {"w": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)}
    before = bits(given_message["w"]).clone()
    found = decode(encode(given_message))["w"]
    assert torch.equal(bits(given_message["w"]), before)
    assert found.is_contiguous()
    found += 1  # and they may be written to


@given(messages())
def test_a_listing_names_what_is_inside(message: dict[str, Tensor]) -> None:
    data = encode(message)
    listing = inspect(data)
    assert [(t.name, t.shape, t.dtype) for t in listing.tensors] == [
        (name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in message.items()
    ]
    parts = [listing.header_bytes, *(size for _, size in listing.shared)]
    assert sum(parts) + sum(t.bytes for t in listing.tensors) == listing.total_bytes == len(data)
    assert listing.dense_bytes == sum(t.numel() * t.element_size() for t in message.values())
