"""Many random 16-bit words from a few: stochastic rounding needs one for every coordinate.

The twister of :mod:`gradguard.randomness` takes a 32-bit draw and a floating-point operation for
each. Here it gives 256 bits a step, which seed numpy's SFC64; a word of that is four draws. numpy
promises to keep the raw words of a bit generator and of ``SeedSequence`` for good.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def words_from(rng: torch.Generator) -> np.random.SFC64:
    """A stream of words that depends on the next 256 bits of ``rng``.

    >>> from gradguard.randomness import generator, seeded_rng
    >>> sixteen_bits(words_from(generator(seeded_rng(0))), 3)
    tensor([-30446,  23644,  23145], dtype=torch.int16)
    """
    entropy = torch.randint(2**32, (8,), generator=rng, device="cpu").tolist()
    return np.random.SFC64(np.random.SeedSequence(entropy, pool_size=8))


def sixteen_bits(words: np.random.SFC64, count: int) -> Tensor:
    """``count`` independent integers, uniform on -32,768 to 32,767; shape (count,), int16."""
    raw = words.random_raw(-(-count // 4))
    # Little-endian by definition: a client draws the same on every machine.
    return torch.from_numpy(raw.astype("<u8", copy=False).view("<i2")[:count])
