"""Counts hidden in the last digits: which mantissa bits of which coordinates go with the labels.

No regression on values sees them: a bit worth ``2**-22`` of a coordinate is lost in its variation.
A client whose code writes there, by mistake or on purpose, would pass every other reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from gradguard.attacks.learning.kernel_ridge import KernelRidge, correlation, fit_kernel_ridge
from gradguard.attacks.learning.readings import Readings

BITS = 16  # of the mantissa, from the last one that is used
LISTED = 256  # bits that look most telling on some messages; others tell which of them do
KEPT = 32  # of those listed, at most
WHOLE = 2  # coordinates of which all low bits are read
CHANCE = 0.05  # that any of the listed bits passes without telling anything
SCREENED_ON = 300  # messages, or half of them
COLUMNS = 8192  # coordinates at a time
MANTISSA = 0x7FFFFF

Places = tuple[np.ndarray, np.ndarray]  # coordinates and shifts


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
        return self.ridge.predict(_with_pairs(_bits(readings, self.coordinates, self.shifts)))


def fit_low_bits(
    readings: Readings,
    shares: np.ndarray,
    held_out: Readings,
    score: Callable[[np.ndarray], float],
) -> Iterator[tuple[str, LowBits, np.ndarray]]:
    """Two regressions: on the bits that go with the shares, and on all bits beside them.

    Each comes with its name and what it predicts for ``held_out``.

    The second is there because the last bit of a number says nothing alone, and is needed to read
    the number; the first because all bits that say nothing are noise.

    Args:
        readings: Messages to fit on.
        shares: Their true label shares, ``(messages, classes)``.
        held_out: Messages that share no image with them.
        score: Judges predicted shares for ``held_out``; higher is better.
    """
    first = min(SCREENED_ON, len(readings) // 2)
    listed = _listed(readings, shares, first)
    strength = correlation(_bits(readings, *listed)[first:], shares[first:])
    telling = _telling(listed, strength, len(shares) - first, shares.shape[1])
    for name, places in (("low bits", telling), ("coordinates' low bits", _all_beside(*telling))):
        features = _with_pairs(_bits(readings, *places))
        others = _with_pairs(_bits(held_out, *places))
        ridge, answers = fit_kernel_ridge(features, shares, others, score, "arc-cosine")
        yield name, LowBits(*places, ridge), answers


def _blocks(readings: Readings) -> Iterator[np.ndarray]:
    """Contiguous float32 columns of head and body, ``(messages, at most COLUMNS)``."""
    for part in (readings.head, readings.body):
        for low in range(0, part.shape[1], COLUMNS):
            yield np.ascontiguousarray(part[:, low : low + COLUMNS], dtype=np.float32)


def _listed(readings: Readings, shares: np.ndarray, first: int) -> Places:
    """Coordinates and shifts of the bits most correlated with the shares of the first messages."""
    strengths, places, shifts = [], [], []
    start = 0
    for block in _blocks(readings):
        used, last = block[:first].view(np.uint32), _last_used_bit(block)
        for bit in range(BITS):
            bits = ((used >> (last + bit)) & 1).astype(np.float32)
            strength = correlation(bits, shares[:first])
            best = np.argsort(-strength, kind="stable")[:LISTED]
            strengths.append(strength[best])
            places.append(start + best)
            shifts.append(np.full(len(best), last + bit))
        start += block.shape[1]
    best = np.argsort(-np.concatenate(strengths), kind="stable")[:LISTED]
    return np.concatenate(places)[best], np.concatenate(shifts)[best]


def _telling(listed: Places, strength: np.ndarray, messages: int, classes: int) -> Places:
    """The bits that tell more than chance would, or the best one."""
    # Squared correlations with targets that are independent of a bit: chi-squared, over messages.
    beyond = messages * strength > chi2.isf(CHANCE / LISTED, classes)
    order = np.argsort(-strength, kind="stable")
    best = order[: np.clip(int(beyond.sum()), 1, KEPT)]
    return listed[0][best], listed[1][best]


def _all_beside(coordinates: np.ndarray, shifts: np.ndarray) -> Places:
    """All bits around the telling ones, of the coordinates that hold the most telling."""
    chosen = list(dict.fromkeys(coordinates.tolist()))[:WHOLE]
    bits = [_around(shifts[coordinates == one]) for one in chosen]
    return np.repeat(chosen, [len(b) for b in bits]), np.concatenate(bits)


def _around(shifts: np.ndarray) -> np.ndarray:
    low = max(0, int(shifts.min()) - BITS + 1)
    return np.arange(low, min(low + 2 * BITS, MANTISSA.bit_length()))


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


def _with_pairs(bits: np.ndarray) -> np.ndarray:
    """The bits and all products of two, as signs: a number written in several is not linear."""
    signs = 2 * bits - 1
    first, second = np.triu_indices(bits.shape[1], k=1)
    return np.concatenate([signs, signs[:, first] * signs[:, second]], axis=1)
