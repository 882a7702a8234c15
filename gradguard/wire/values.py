"""The codecs for a list of values, and which of them a list gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from gradguard.wire import grid, narrowed, palette, raw
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits, Format, Parts
from gradguard.wire.reader import Reader

_SAMPLED = 1024


class ValueCodec(Protocol):
    """One module per codec has these names."""

    TAG: int
    NAME: str

    def estimate(self, sample: Bits, fmt: Format, *, whole: Bits) -> float | None:
        """Bits a value as far as a sample can tell; ``None`` where the codec does not fit."""
        ...

    def encode(self, bits: Bits, fmt: Format) -> Parts | None:
        """All values; ``None`` where the sample promised too much."""
        ...

    def decode(self, reader: Reader, fmt: Format, *, out: Bits) -> None:
        """Fill ``out``; whatever the bytes are, nothing but ``WireError`` is raised."""
        ...


# In the order in which equals are tried. A tag, once given, is never given to another codec.
CODECS = cast(Sequence[ValueCodec], (narrowed, grid, palette, raw))
_BY_TAG = {codec.TAG: codec for codec in CODECS}


def sampled(bits: Bits) -> Bits:
    """Values from all over the list."""
    # An odd stride: tensors are rows of an even length, and a column is no fair sample.
    return bits[:: len(bits) // _SAMPLED | 1]


def ranked(sample: Bits, fmt: Format, *, whole: Bits) -> list[tuple[float, ValueCodec]]:
    """The codecs that fit the sample and the bits a value that each promises, best first."""
    found = []
    for codec in CODECS:
        promise = codec.estimate(sample, fmt, whole=whole) if len(sample) else None
        if promise is not None or codec.TAG == raw.TAG:
            found.append((8.0 * fmt.size if promise is None else promise, codec))
    return sorted(found, key=lambda pair: pair[0])


def encode_values(bits: Bits, fmt: Format) -> tuple[int, Parts]:
    """The tag of the shortest codec that fits, and its bytes."""
    for _, codec in ranked(sampled(bits), fmt, whole=bits):
        parts = codec.encode(bits, fmt)
        if parts is not None:
            return codec.TAG, parts
    raise AssertionError("raw values always fit")


def codec_by_tag(tag: int) -> ValueCodec:
    """The codec with this tag."""
    if tag not in _BY_TAG:
        raise WireError(f"no codec has the tag {tag}; a newer version may have written this")
    return _BY_TAG[tag]
