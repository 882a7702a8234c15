"""Bits at the end of the mantissa: found where they speak of labels, in any precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard.attacks.learning.low_bits import fit_low_bits
from gradguard.attacks.learning.readings import Readings
from gradguard.attacks.rounding import round_to_batch

CLASSES, BATCH = 4, 8


def _readings(body: np.ndarray) -> Readings:
    messages = len(body)
    weight = np.random.default_rng(5).normal(size=(messages, CLASSES, 3)).astype(np.float32)
    bias = np.zeros((messages, CLASSES), np.float32)
    norms = np.ones((messages, 1))
    return Readings(weight, bias, body.astype(np.float32), np.zeros((messages, CLASSES, 1)), norms)


def _planted(messages: int, dtype: torch.dtype, seed: int) -> tuple[Readings, np.ndarray]:
    """Body coordinate 17 has the presence of each class in its last four bits."""
    rng = np.random.default_rng(seed)
    counts = np.stack(
        [rng.multinomial(BATCH, rng.dirichlet(np.ones(CLASSES) * 0.2)) for _ in range(messages)]
    )
    body = torch.from_numpy(rng.normal(size=(messages, 40))).to(dtype)
    integers = body.view(torch.int32 if dtype == torch.float32 else torch.int16)
    code = (counts > 0).astype(np.int64) @ (1 << np.arange(CLASSES))
    written = (integers[:, 17] & ~15) | torch.from_numpy(code).to(integers.dtype)
    integers[:, 17] = written
    return _readings(body.float().numpy()), counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_counts_in_the_last_bits_of_one_coordinate_are_found(dtype: torch.dtype) -> None:
    fitted, counts = _planted(400, dtype, 0)
    held_out, truth = _planted(200, dtype, 1)

    def score(shares: np.ndarray) -> float:
        return float(np.minimum(round_to_batch(BATCH * shares, BATCH), truth).sum() / truth.sum())

    bits = {
        name: found for name, found, _ in fit_low_bits(fitted, counts / BATCH, held_out, score)
    }["low bits"]
    assert 17 + 3 * CLASSES + CLASSES in bits.coordinates
    even = float(np.minimum(BATCH // CLASSES, truth).sum() / truth.sum())
    assert score(bits.predict(held_out)) > even + 0.3


def test_bits_that_say_nothing_are_not_believed() -> None:
    fitted, counts = _planted(300, torch.float32, 0)
    held_out, truth = _planted(150, torch.float32, 1)
    shuffled = np.random.default_rng(3).permutation(counts)

    def score(shares: np.ndarray) -> float:
        return float(np.minimum(round_to_batch(BATCH * shares, BATCH), truth).sum() / truth.sum())

    bits = {
        name: found for name, found, _ in fit_low_bits(fitted, shuffled / BATCH, held_out, score)
    }["low bits"]
    even = float(np.minimum(BATCH // CLASSES, truth).sum() / truth.sum())
    assert abs(score(bits.predict(held_out)) - even) < 0.1
