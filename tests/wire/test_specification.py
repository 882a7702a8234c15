"""docs/wire.md says all that a decoder needs to know: one written from it reads every message."""

from __future__ import annotations

import pytest
from hypothesis import given
from torch import Tensor

from gradguard.wire import decode, encode
from tests.wire.cases import messages, same
from tests.wire.reference_decoder import decoded
from tests.wire.test_hostile_bytes import CODECS


@pytest.mark.parametrize("name", CODECS)
def test_the_reference_reads_every_codec(name: str) -> None:
    assert same(decoded(CODECS[name]), decode(CODECS[name]))


@given(messages())
def test_the_reference_reads_any_message(message: dict[str, Tensor]) -> None:
    assert same(decoded(encode(message)), message)
