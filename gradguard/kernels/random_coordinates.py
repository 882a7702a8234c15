"""Random coordinates that a seed reproduces: the sender need not send which ones it kept.

The draw is made from raw words of Philox, a counter-based generator whose words numpy promises to
keep for good. The distributions of ``numpy.random.Generator`` and ``torch.randperm`` carry no such
promise: another version may draw other coordinates, and the receiver would decode nonsense.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Coordinates = NDArray[np.int64]

_MASKED_FROM = 1 / 64  # the share drawn from which marks in a mask are quicker than sorting
_WORDS = 2**18  # drawn at once into a mask


def draw_coordinates(seed: int, size: int, count: int) -> Coordinates:
    """``count`` of the coordinates ``0 .. size - 1``, drawn uniformly without replacement.

    Guarantees:

    - exactly ``count`` coordinates, sorted, no two equal;
    - every set of ``count`` coordinates is equally likely for a uniformly random seed;
    - the same arguments give the same coordinates on every machine and in every version.

    Whoever knows the seed knows the coordinates, of this draw and of no other.

    Args:
        seed: 0 to 2**64 - 1.
        size: How many coordinates there are, 0 to 2**62.
        count: How many are drawn, 0 to ``size``.

    Returns:
        Sorted coordinates, shape (count,).

    Raises:
        ValueError: An argument is out of range.

    John K. Salmon, Mark A. Moraes, Ron O. Dror and David E. Shaw, "Parallel Random Numbers: As
    Easy as 1, 2, 3", 2011 (Philox).

    >>> draw_coordinates(7, 1000, 5)
    array([ 30, 120, 522, 655, 692])
    """
    _check(seed, size, count)
    if count > size - count:  # the others are fewer: draw those that stay out
        kept = np.ones(size, dtype=bool)
        kept[draw_coordinates(seed, size, size - count)] = False
        return np.flatnonzero(kept)
    words = np.random.Philox(key=seed)
    if not count:
        return np.empty(0, dtype=np.int64)
    if count > size * _MASKED_FROM:
        return _drawn_into_mask(words, size, count)
    return _drawn_into_list(words, size, count)


# Both draw as many words as coordinates are missing, again and again. They thus find the first
# ``count`` different numbers of one stream, and never one too many, which would have to be taken
# back at random.


def _drawn_into_list(words: np.random.Philox, size: int, count: int) -> Coordinates:
    # With a stop at the end, so that every search lands on something.
    found = np.append(_distinct(_below(words, size, count)), size)
    while len(found) <= count:
        more = _distinct(_below(words, size, count + 1 - len(found)))
        place = np.searchsorted(found, more)
        new = found[place] != more
        found = np.insert(found, place[new], more[new])
    return found[:-1]


def _distinct(numbers: Coordinates) -> Coordinates:
    # Not np.unique, which hashes first and sorts then in some versions, several times slower.
    numbers.sort()
    distinct: Coordinates = numbers[np.diff(numbers, prepend=-1) != 0]
    return distinct


def _drawn_into_mask(words: np.random.Philox, size: int, count: int) -> Coordinates:
    mask = np.zeros(size, dtype=bool)
    missing = count
    while missing:
        for start in range(0, missing, _WORDS):
            mask[_below(words, size, min(_WORDS, missing - start))] = True
        missing = count - int(np.count_nonzero(mask))
    return np.flatnonzero(mask)


def _below(words: np.random.Philox, size: int, most: int) -> Coordinates:
    """Uniform numbers below ``size``, from ``most`` words: as many, or hardly any fewer."""
    drawn = words.random_raw(most)
    # Up to a multiple of ``size``: of the words beyond it only some remainders are left.
    usable = drawn[drawn <= np.uint64(2**64 - 2**64 % size - 1)]
    return (usable % np.uint64(size)).astype(np.int64)


def _check(seed: int, size: int, count: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0 to 2**64 - 1, got {seed!r}")
    if not 0 <= size <= 2**62:
        raise ValueError(f"size must lie in 0 to 2**62, got {size!r}")
    if not 0 <= count <= size:
        raise ValueError(f"count must lie in 0 to size = {size}, got {count!r}")
