"""docs/wire.md says all that a decoder needs to know: one written from it reads every message."""

from __future__ import annotations

import pytest
from hypothesis import given
from torch import Tensor

from gradguard.wire import decode, encode
from gradguard.wire.formats import BOOL, FLOAT32
from tests.wire.cases import made, messages, same
from tests.wire.reference_decoder import decoded
from tests.wire.test_hostile_bytes import CODECS


@pytest.mark.parametrize("name", CODECS)
def test_the_reference_reads_every_codec(name: str) -> None:
    assert same(decoded(CODECS[name]), decode(CODECS[name]))


def test_the_reference_reads_many_indices() -> None:
    message = {"w": made("sparse", FLOAT32, (1_500_000,), 5), "v": made("sparse", BOOL, (9,), 6)}
    assert same(decoded(encode(message)), message)


@given(messages())
def test_the_reference_reads_any_message(message: dict[str, Tensor]) -> None:
    assert same(decoded(encode(message)), message)
