"""The law of the wire is checked on every transform, and has the power to fail."""

from __future__ import annotations

import pytest
from torch import Tensor

from gradguard import Cast, KeepRandomK, NamedParameters
from gradguard.laws import wire as laws_on_the_wire
from gradguard.laws.suite import LAWS, LawBrokenError
from gradguard.laws.wire import wire_is_lossless
from gradguard.testing import example_parameters
from gradguard.wire import decode


def test_the_law_is_among_those_that_every_transform_obeys() -> None:
    assert wire_is_lossless in LAWS


def test_messages_by_seed_obey_the_law() -> None:
    wire_is_lossless(KeepRandomK(0.2), NamedParameters(example_parameters()))


@pytest.mark.parametrize("lost", ["shape", "last bit", "order"])
def test_a_decoder_that_loses_anything_breaks_the_law(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(data: bytes) -> dict[str, Tensor]:
        message = decode(data)
        if lost == "order":
            return dict(reversed(message.items()))
        name = "body.bias"
        weaker = message[name].view(4, 1) if lost == "shape" else message[name] * (1 + 2**-23)
        return {**message, name: weaker}

    params = NamedParameters(example_parameters())
    wire_is_lossless(Cast("bfloat16"), params)
    monkeypatch.setattr(laws_on_the_wire, "decode", lossy)
    with pytest.raises(LawBrokenError, match="wire_is_lossless"):
        wire_is_lossless(Cast("bfloat16"), params)
