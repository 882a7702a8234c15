"""The fuzzer of the wire format, on a few inputs; ``python -m benchmarks fuzz_wire`` has more."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
import torch

from benchmarks.fuzz_blind import mutated
from benchmarks.fuzz_target import check, kind_of, resealed
from benchmarks.fuzz_wire import fuzz
from benchmarks.wire_corpus import corpus, with_plain_header
from gradguard import wire
from gradguard.wire.envelope import HEAD_BYTES
from gradguard.wire.header import Support
from gradguard.wire.values import CODECS


@pytest.fixture(scope="module")
def messages() -> dict[str, bytes]:
    return corpus()


def test_the_corpus_holds_every_codec_and_every_way_to_leave_out_zeros(
    messages: dict[str, bytes],
) -> None:
    found = {t.codec for data in messages.values() for t in wire.inspect(data).tensors}
    said = " ".join(found)
    for codec in CODECS:
        assert codec.NAME in said
    for word in ("factors", "shared values", "indices", "bitmap", "seed", "signs"):
        assert word in said
    assert len(Support) == 5


def test_the_corpus_is_of_messages_and_a_plain_header_changes_none(
    messages: dict[str, bytes],
) -> None:
    for data in messages.values():
        assert check(data) is None
        plain, same = wire.decode(with_plain_header(data)), wire.decode(data)
        assert list(plain) == list(same)
        for name, part in same.items():
            assert torch.equal(_bytes(plain[name]), _bytes(part))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_most_inputs_have_a_checksum_that_fits_and_some_have_not() -> None:
    data = bytearray(wire.encode({"w": torch.ones(3)}))
    data[-1] ^= 1
    fitting = 0
    for seed in range(200):
        sealed = resealed(bytes(data), seed)
        fitting += zlib.crc32(sealed[HEAD_BYTES:]).to_bytes(4, "little") == sealed[9:HEAD_BYTES]
    assert 160 <= fitting < 200


def test_mutated_messages_are_messages_or_refused_for_many_reasons(
    messages: dict[str, bytes],
) -> None:
    rng, seeds = random.Random(0), list(messages.values())
    reasons: set[str] = set()
    accepted = 0
    for _ in range(1500):
        refusal = check(mutated(rng, seeds))
        accepted += refusal is None
        reasons |= set() if refusal is None else {kind_of(refusal)}
    assert accepted > 30
    assert len(reasons) > 30


@pytest.mark.slow
def test_the_fuzzer_runs_in_a_process_of_its_own_and_counts(tmp_path: Path) -> None:
    done, counts = fuzz(tmp_path, 400, 1, "blind")
    assert done.returncode == 0, done.stderr
    assert counts["inputs"] == 400
    assert counts["accepted"] + sum(counts["refusals"].values()) == 400


@pytest.mark.slow
def test_atheris_fuzzes_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done, counts = fuzz(tmp_path, 1000, 1, "atheris")
    assert done.returncode == 0, done.stderr
    assert counts["inputs"] >= 1000
