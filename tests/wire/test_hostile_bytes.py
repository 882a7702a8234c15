"""Whatever the bytes are: a message or a WireError, in bounded memory."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gradguard.wire import WireError, decode, encode, inspect
from gradguard.wire.compression import section
from gradguard.wire.envelope import HEAD_BYTES, MAGIC, opened, sealed
from gradguard.wire.formats import FLOAT32, format_by_code
from gradguard.wire.header import Header, Pool, Record, Support, decode_header, encode_header
from gradguard.wire.reader import Reader, varint
from tests.wire.cases import made, messages, same

SMALL = 2**20


def every_codec() -> dict[str, bytes]:
    """A short message for every way to write a tensor."""
    rng = torch.Generator().manual_seed(1)
    normal = torch.randn(400, generator=rng)
    few = torch.where(normal.abs() > 2.2, normal, 0.0)
    some = torch.where(normal.abs() > 0.7, normal, 0.0)
    p, q = torch.randn(20, 2, generator=rng), torch.randn(15, 2, generator=rng)
    product = sum((p[:, k : k + 1] * q[:, k] for k in range(2)), torch.zeros(20, 15))
    assert isinstance(product, Tensor)
    drawn = torch.zeros(400)
    from gradguard.kernels.random_coordinates import draw_coordinates

    drawn[torch.from_numpy(draw_coordinates(7, 400, 40))] = 1 + normal[:40].abs()
    return {
        "raw": encode({"a": normal, "b": torch.tensor(3)}),
        "narrowed": encode({"a": normal.bfloat16().float()}),
        "palette of 2": encode({"a": normal.sign() * 0.3}),
        "palette of 3": encode({"a": (normal * 2).round().clamp(-1, 1) * 0.3}),
        "palette of 5": encode({"a": normal.double().round().clamp(-2, 2) * 0.3}),
        "grid": encode({"a": (normal / normal.abs().max() * 7).round() / 7 * 0.5 + 0.0}),
        "indices": encode({"a": few, "b": some, "c": few.bfloat16(), "d": few.double()}),
        "bitmap and signs": encode({"a": normal * (normal.abs() > 1), "b": normal.bfloat16() * 0}),
        "indices, zlib": encode({"a": few, "b": some}, portable=True),
        "bitmap": encode({"a": some, "b": some.sign() * normal.abs().round()}),
        "seed": encode({"a": drawn}, mask_seed=7),
        "factors": encode({"a": product}, factors={"a": (p, q)}),
        "bool": encode({"a": normal > 0}),
        "nothing": encode({}),
    }


CODECS = every_codec()


def resealed(body: bytes) -> bytes:
    """With a checksum that is right, so that the parser behind it is reached."""
    return sealed([body])


def check(data: bytes) -> None:
    """Nothing but WireError is raised, and whatever is decoded can be encoded."""
    try:
        inspect(data)
        message = decode(data, max_bytes=SMALL)
    except WireError:
        return
    assert sum(t.numel() * t.element_size() for t in message.values()) <= SMALL
    assert same(decode(encode(message)), message)


def test_every_codec_is_among_the_mutated_messages() -> None:
    named = {t.codec for data in CODECS.values() for t in inspect(data).tensors}
    parts = {part for name in named for part in name.split(" + ")}
    values = {"raw", "narrowed", "palette", "grid", "shared values", "factors"}
    assert parts == values | {"indices", "bitmap", "bitmap and signs", "seed"}


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=200)
@given(data=st.data())
def test_mutated_messages_are_refused_or_decoded(name: str, data: st.DataObject) -> None:
    body = bytearray(opened(CODECS[name]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        how = data.draw(st.sampled_from(["set", "flip", "cut", "insert", "copy"]))
        if how == "set":
            body[at : at + 1] = bytes((data.draw(st.sampled_from([0, 1, 127, 128, 255])),))
        elif how == "flip" and body:
            body[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del body[at : at + data.draw(st.integers(1, 9))]
        elif how == "insert":
            body[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            body[at:at] = body[data.draw(st.integers(0, max(0, len(body) - 1))) :][:20]
    check(resealed(bytes(body)))


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_bit_is_found(name: str) -> None:
    """By the checksum; with the checksum put right, by the parser or not at all."""
    data = CODECS[name]
    for at in range(0, len(data), max(1, len(data) // 25)):
        for bit in range(8):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            with pytest.raises(WireError):
                decode(bytes(broken))
            check(resealed(bytes(broken[HEAD_BYTES:])))


@pytest.mark.parametrize("name", CODECS)
def test_every_truncated_or_prolonged_message_is_refused(name: str) -> None:
    data, body = CODECS[name], bytes(opened(CODECS[name]))
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:size])
    for size in range(len(body)):
        with pytest.raises(WireError):
            decode(resealed(body[:size]))
    for more in (b"\0", body):
        with pytest.raises(WireError):
            decode(resealed(body + more))


@given(st.binary(max_size=60))
def test_any_bytes_at_all_are_refused_or_decoded(data: bytes) -> None:
    check(data)
    check(resealed(data))


@given(messages(), messages())
def test_two_messages_glued_together_are_refused(
    first: dict[str, Tensor], second: dict[str, Tensor]
) -> None:
    with pytest.raises(WireError, match="checksum"):
        decode(encode(first) + encode(second))
    for more in (encode(second), bytes(opened(encode(second)))):
        with pytest.raises(WireError, match="announces"):
            decode(resealed(bytes(opened(encode(first))) + more))


def header(*records: Record, indices: int = 0, index_bytes: int = 0, seed: int = 0,
           drawn: int = 0, pools: tuple[Pool, ...] = ()) -> bytes:  # fmt: skip
    return encode_header(Header(records, indices, index_bytes, seed, drawn, pools))


def record(*shape: int, support: Support = Support.ALL, tag: int = 0, length: int = 0,
           name: str = "w") -> Record:  # fmt: skip
    return Record(name, FLOAT32, shape, support, tag, length)


NO_SIGN = format_by_code(7)
LOW, ONES = varint(1) + bytes(4), b"\x01" * 4
REFUSED: dict[str, tuple[bytes, str]] = {
    "a name twice": (header(record(0), record(0)), "more than once"),
    "more bytes than announced": (header(record(1, length=4)) + bytes(5), "announces 4 bytes"),
    "fewer bytes than announced": (header(record(1, length=4)) + bytes(3), "at most 3"),
    "values too few": (header(record(2, length=4)) + bytes(4), "truncated"),
    "values too many": (header(record(1, length=8)) + bytes(8), "follow after"),
    "unknown codec": (header(record(1, tag=9, length=4)) + bytes(4), "no codec has the tag"),
    "2**40 raw values": (header(record(2**40, length=4)) + bytes(4), "max_bytes"),
    "2**40 zeros": (header(record(2**40, support=Support.INDICES)), "max_bytes"),
    "2**60 elements": (header(record(2**30, 2**30)), "at most"),
    "empty, with a huge side": (header(record(0, 2**40, 2**40)), "at most"),
    "2**40 equal values": (header(record(2**20, 2**20, tag=2, length=5)) + LOW, "max_bytes"),
    "more indices than zeros allow": (
        header(record(64, support=Support.INDICES), indices=9, index_bytes=0), "one in eight"),
    "2**40 indices": (
        header(record(2**43, support=Support.INDICES), indices=2**40, index_bytes=0), "max_bytes"),
    "2**40 drawn": (header(record(2**40, support=Support.SEED), drawn=2**39), "max_bytes"),
    "drawn beyond the end": (header(record(4, support=Support.SEED), drawn=3), "more memory than"),
    "a pool beyond its tensors": (header(record(4), pools=(Pool(FLOAT32, 5, 0),)), "more than"),
    "an index beyond the end": (
        header(record(64, support=Support.INDICES), indices=1, index_bytes=4)
        + bytes((1, 0, 1, 64)), "less than 64"),
    "a palette that is not in order": (
        header(record(8, tag=2, length=10)) + varint(2) + ONES + bytes(4) + bytes(1), "order"),
    "a palette that holds nothing": (header(record(8, tag=2, length=1)) + varint(0), "one value"),
    "a grid of 17 bits": (header(record(8, tag=3, length=5)) + bytes((17, *ONES)), "2 to 16"),
    "a grid code out of range": (
        header(record(2, tag=3, length=6)) + b"\x02???\x3f\x0f", "codes up to 2"),
    "bits after the last code": (
        header(record(2, tag=2, length=10)) + varint(2) + bytes(4) + ONES + b"\x04", "zero bits"),
    "bits after the last flag": (
        header(record(2, support=Support.BITMAP, length=3)) + b"\0\1\4", "zero bits"),
    "signs of zeros of a dtype without": (
        header(replace(record(2, support=Support.SIGNED_BITMAP, length=6), fmt=NO_SIGN))
        + b"\0\1\0\0\1\1",
        "no sign of zero"),
    "signs of zeros too few": (
        header(record(9, support=Support.SIGNED_BITMAP, length=7)) + b"\0\2\0\0\0\1\1",
        "2 bytes, and holds 1"),
    "bits after the last sign": (
        header(record(2, support=Support.SIGNED_BITMAP, length=6)) + b"\0\1\0\0\1\4",
        "zero bits"),
    "a digit that base 3 has not": (
        header(record(2, tag=2, length=14)) + varint(3) + bytes(4) + ONES + b"\2" * 4 + b"\xff",
        "at most 242"),
    "a narrower dtype that is wider": (
        header(record(1, tag=1, length=9)) + varint(1) + bytes(8), "never narrowed"),
    "a rank that saves nothing": (
        header(record(4, tag=5, length=19)) + bytes((2, 2, 1)) + bytes(16), "smaller than"),
    "no planes of gaps": (
        header(record(64, support=Support.INDICES), indices=1, index_bytes=4)
        + bytes((0, 0, 1, 6)), "1 to 6 planes"),
    "a plane of zeros": (
        header(record(64, support=Support.INDICES), indices=1, index_bytes=7)
        + bytes((2, 0, 1, 6, 0, 1, 0)), "must not be zero"),
    "values that belong to no tensor": (
        header(record(4), pools=(Pool(FLOAT32, 0, 8),)) + bytes(8), "holds"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_lie_is_refused_with_its_reason(name: str) -> None:
    body, reason = REFUSED[name]
    with pytest.raises(WireError, match=reason.replace("(", r"\(")):
        decode(resealed(body), max_bytes=SMALL)


def test_a_decompression_bomb_is_refused() -> None:
    bombs = {1: zlib.compress(bytes(2**26))}
    if (zstandard := _zstandard()) is not None:
        bombs[2] = zstandard(bytes(2**26))
    for method, bomb in bombs.items():
        stored = bytes((method,)) + varint(len(bomb)) + bomb
        table = header(record(8, support=Support.BITMAP, length=len(stored)))
        for data in (resealed(table + stored), resealed(varint(2**20) + stored)):
            assert _peak_of(partial(decode, data, max_bytes=SMALL)) < 2**23


@pytest.mark.parametrize("name", [name for name in REFUSED if "2**" in name])
def test_what_is_too_large_is_refused_before_it_is_allocated(name: str) -> None:
    body, _ = REFUSED[name]
    assert _peak_of(lambda: decode(resealed(body), max_bytes=SMALL)) < 2**22


def test_the_limit_is_on_all_tensors_together() -> None:
    data = encode({"a": torch.zeros(100), "b": torch.zeros(100)})
    assert len(decode(data, max_bytes=800)) == 2
    with pytest.raises(WireError, match="800 bytes in memory, and max_bytes is 799"):
        decode(data, max_bytes=799)


def test_other_versions_and_other_files_are_told_apart() -> None:
    data = encode({"a": torch.ones(2)})
    newer = data[: len(MAGIC)] + b"\x02" + data[len(MAGIC) + 1 :]
    with pytest.raises(WireError, match="version 2"):
        decode(newer)
    with pytest.raises(WireError, match="something else"):
        decode(b"PK\x03\x04" + data)


def test_a_receiver_without_zstd_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    message = {"a": made("sparse", FLOAT32, (4000,), 3)}
    with_zstd, portable = encode(message), encode(message, portable=True)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert same(decode(portable), message)
    assert encode(message) == portable
    if with_zstd != portable:
        with pytest.raises(WireError, match=r"gradguard\[wire\]"):
            decode(with_zstd)


def test_views_and_arrays_of_bytes_are_read_too() -> None:
    message = {"a": torch.arange(5.0)}
    data = encode(message)
    strided = memoryview(b"".join(bytes((byte, 0)) for byte in data))[::2]
    for form in (bytearray(data), memoryview(data), strided):
        assert same(decode(form), message)


def test_no_bytes_in_whatever_form_are_no_message() -> None:
    for nothing in (b"", bytearray(), np.empty((0, 3), "u1"), np.empty((4, 0, 2))):
        for read in (decode, inspect):
            with pytest.raises(WireError, match="truncated"):
                read(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="max_bytes must be"):
        decode(encode({"a": torch.ones(2)}), max_bytes=limit)  # type: ignore[arg-type]


def test_a_listing_of_lies_costs_no_memory() -> None:
    body = header(*(record(2**40, name=str(i), support=Support.INDICES) for i in range(100)))
    assert _peak_of(lambda: inspect(resealed(body))) < 2**22
    assert inspect(resealed(body)).dense_bytes == 400 * 2**40


@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        ({"w": torch.ones(2, dtype=torch.complex64)}, TypeError, "complex64"),
        ({"w": torch.eye(2).to_sparse()}, TypeError, "sparse"),
        ({"w": torch.empty(2, device="meta")}, TypeError, "meta"),
        ({"w": FakeTensorMode().from_tensor(torch.ones(2))}, TypeError, "no memory to read"),
        ({"w": 1.0}, TypeError, "must be a tensor"),
        ({"\ud800": torch.ones(2)}, WireError, "UTF-8"),
        ({"w" * 5000: torch.ones(2)}, WireError, "4096 bytes"),
    ],
)
def test_what_a_message_cannot_hold_is_refused_by_the_encoder(
    message: dict[str, Tensor], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        encode(message)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_refused_by_the_encoder(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(TypeError, match="dense tensor"):
        encode({"w": nested})


def test_a_header_is_what_was_written() -> None:
    one = Header((record(3, 4, length=48),), 0, 0, 0, 0, ())
    reader = Reader(memoryview(encode_header(one) + bytes(48)))
    assert decode_header(reader) == one
    assert reader.left == 48


def test_the_checksum_is_crc_32_of_the_body() -> None:
    """So that any language can check it: little-endian, after the magic and the version."""
    data = encode({"a": torch.ones(2)})
    assert struct.unpack("<I", data[HEAD_BYTES - 4 : HEAD_BYTES])[0] == zlib.crc32(
        data[HEAD_BYTES:]
    )
    assert section(b"abc", portable=True) == b"\0\x03abc"


def _peak_of(run: Callable[[], object]) -> int:
    """Bytes that Python and numpy had allocated at most while ``run`` was refused, or not."""
    import tracemalloc

    tracemalloc.start()
    try:
        run()
    except WireError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def _zstandard() -> Callable[[bytes], bytes] | None:
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard.ZstdCompressor().compress
