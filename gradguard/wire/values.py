"""The codecs for a list of values, and which of them a list gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from gradguard.wire import grid, narrowed, palette, raw
from gradguard.wire.errors import WireError
from gradguard.wire.formats import Bits, Format, Parts
from gradguard.wire.reader import Reader
from gradguard.wire.sample import Sample


class ValueCodec(Protocol):
    """One module per codec has these names."""

    TAG: int
    NAME: str

    def estimate(self, sample: Sample) -> float | None:
        """Bits a value as far as a sample can tell; ``None`` where the codec does not fit."""
        ...

    def encode(self, sample: Sample, *, bits: float) -> Parts | None:
        """All values, in the bits estimated; ``None`` where the sample promised too much."""
        ...

    def decode(self, reader: Reader, fmt: Format, *, out: Bits) -> None:
        """Fill ``out``; whatever the bytes are, nothing but ``WireError`` is raised."""
        ...


# In the order in which they are tried. A tag, once given, is never given to another codec.
CODECS = cast(Sequence[ValueCodec], (palette, narrowed, grid, raw))
_BY_TAG = {codec.TAG: codec for codec in CODECS}


def ranked(sample: Sample, *, enough: float = 2.0) -> list[tuple[float, ValueCodec]]:
    """The codecs that fit the sample and the bits a value that each promises, best first.

    Codecs after one that needs less than ``enough`` bits are not looked at.
    """
    if not len(sample.values):
        return [(0.0, CODECS[-1])]
    found = []
    for codec in CODECS:
        bits = codec.estimate(sample)
        if bits is not None:
            found.append((bits, codec))
            if bits < enough:
                break
    return sorted(found, key=lambda pair: pair[0])


def encode_values(sample: Sample, order: Sequence[tuple[float, ValueCodec]]) -> tuple[int, Parts]:
    """The tag of the first codec that fits all values, and its bytes."""
    for bits, codec in order:
        parts = codec.encode(sample, bits=bits)
        if parts is not None:
            return codec.TAG, parts
    # The sample was misleading, and a codec that was not looked at may fit after all.
    rest = [pair for pair in ranked(sample, enough=0.0) if pair not in order]
    return encode_values(sample, rest)


def codec_by_tag(tag: int) -> ValueCodec:
    """The codec with this tag."""
    if tag not in _BY_TAG:
        raise WireError(f"no codec has the tag {tag}; a newer version may have written this")
    return _BY_TAG[tag]
