"""Counts hidden in the last digits: which mantissa bits of which coordinates go with the labels.

No regression on values sees them: a bit worth ``2**-22`` of a coordinate is lost in its variation.
A client whose code writes there, by mistake or on purpose, would pass every other reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gradguard.attacks.learning.kernel_ridge import KernelRidge, correlation, fit_kernel_ridge
from gradguard.attacks.learning.readings import Readings

BITS = 16  # of the mantissa, from the last one that is used
KEPT = 32  # the most telling bits, at most
TELLING = 0.2  # of the most telling bit's correlation; weaker ones were chosen by chance
SCREENED_ON = 300  # messages
COLUMNS = 8192  # coordinates at a time
MANTISSA = 0x7FFFFF


@dataclass(frozen=True, eq=False)
class LowBits:
    """A regression on chosen bits.

    Args:
        coordinates: Which coordinate each chosen bit is in, of head and body together.
        shifts: How far right each bit is shifted to become the last one.
        ridge: From bits to label shares.
    """

    coordinates: np.ndarray
    shifts: np.ndarray
    ridge: KernelRidge

    def predict(self, readings: Readings) -> np.ndarray:
        """Predicted shares ``(messages, classes)``; not yet on the simplex."""
        return self.ridge.predict(_bits(readings, self.coordinates, self.shifts))


def fit_low_bits(
    readings: Readings,
    shares: np.ndarray,
    held_out: Readings,
    score: Callable[[np.ndarray], float],
) -> LowBits:
    """Choose the bits most correlated with the shares, and regress on them.

    Args:
        readings: Messages to fit on.
        shares: Their true label shares, ``(messages, classes)``.
        held_out: Messages that share no image with them.
        score: Judges predicted shares for ``held_out``; higher is better.
    """
    found = [_telling(block, shares) for block in _blocks(readings)]
    strength = np.concatenate([each[0] for each in found])
    starts = np.cumsum([0, *(block.shape[1] for block in _blocks(readings))])
    where = [each[1] + start for each, start in zip(found, starts, strict=False)]
    best = np.argsort(-strength, kind="stable")[:KEPT]
    best = best[strength[best] >= TELLING * strength.max()]
    coordinates = np.concatenate(where)[best]
    shifts = np.concatenate([each[2] for each in found])[best]
    ridge = fit_kernel_ridge(
        _bits(readings, coordinates, shifts),
        shares,
        _bits(held_out, coordinates, shifts),
        score,
        "arc-cosine",
    )
    return LowBits(coordinates, shifts, ridge)


def _blocks(readings: Readings) -> Iterator[np.ndarray]:
    """Contiguous float32 columns of head and body, ``(messages, at most COLUMNS)``."""
    for part in (readings.head, readings.body):
        for low in range(0, part.shape[1], COLUMNS):
            yield np.ascontiguousarray(part[:, low : low + COLUMNS], dtype=np.float32)


def _telling(block: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlation, column and shift of the most telling bits of some coordinates."""
    used, last = block[:SCREENED_ON].view(np.uint32), _last_used_bit(block)
    strength = np.stack(
        [
            correlation(((used >> (last + bit)) & 1).astype(np.float32), shares[:SCREENED_ON])
            for bit in range(BITS)
        ]
    )
    best = np.argsort(-strength, axis=None, kind="stable")[:KEPT]
    bits, columns = np.unravel_index(best, strength.shape)
    return strength[bits, columns], columns, last + bits


def _last_used_bit(block: np.ndarray) -> int:
    """0 for float32; messages in half precision leave the last 13 or 16 bits empty."""
    used = int(np.bitwise_or.reduce(block.view(np.uint32), axis=None)) & MANTISSA
    return 0 if used == 0 else (used & -used).bit_length() - 1


def _bits(readings: Readings, coordinates: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    head = readings.head
    in_head = coordinates < head.shape[1]
    values = np.empty((len(readings), len(coordinates)), dtype=np.float32)
    values[:, in_head] = head[:, coordinates[in_head]]
    values[:, ~in_head] = readings.body[:, coordinates[~in_head] - head.shape[1]]
    bits: np.ndarray = (values.view(np.uint32) >> shifts.astype(np.uint32)) & 1
    return bits.astype(np.float32)
