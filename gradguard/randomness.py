"""Random streams as data: a generator's whole state lives in the transform's state.

That makes ``update`` pure and a resumed run bitwise the same, noise included. Draws are made on
the CPU and moved, so that a client computes the same message on any device.

``torch.Generator.manual_seed`` is not used: it keeps 32 bits of the seed, so a server could try
every stream, and among 65,000 clients two would likely share one and cancel by subtraction. All
19,968 bits of the state are filled instead, from the operating system.

The generator is the Mersenne Twister. It is *not* cryptographic: whoever sees 624 consecutive
outputs exactly can compute all others. Noise added to a gradient is not seen exactly; a secret
gradient is in the way. Where that is not enough, add noise outside this library.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradguard.core import State

STATE_BYTES = 5056  # torch's CPU generator state; as 64-bit words:
_SEED, _FLAGS, _NEXT = 0, 1, 2  # seed | words left (low half) and seeded (high half) | position
_WORDS = slice(3, 627)  # the 624 words of the twister, 32 bits in each
_REST = slice(627, 632)  # a cached normal draw
_READY = (1 << 32) | 1  # seeded, and one word left: the next draw twists first
RNG_KEY = "rng"


def fresh_rng() -> Tensor:
    """A generator state with 19,968 bits from the operating system.

    Guarantees:

    - no two calls give the same stream, and no seed is a default.

    Raises:
        RuntimeError: This torch lays out its generator state in another way.

    >>> fresh_rng().shape, bool((fresh_rng() == fresh_rng()).all())
    (torch.Size([5056]), False)
    """
    return _state_of(secrets.token_bytes(624 * 4))


def seeded_rng(seed: int, *, path: str = "") -> Tensor:
    """A generator state that depends on ``seed`` and ``path`` alone: for simulation and tests."""
    return _state_of(hashlib.shake_256(f"gradguard {seed} {path}".encode()).digest(624 * 4))


def generator(state: Tensor) -> torch.Generator:
    """A CPU generator that continues from ``state``; ``state`` itself is not modified."""
    rng = torch.Generator()
    rng.set_state(state.cpu())  # a checkpoint loaded with map_location may sit elsewhere
    return rng


def reseeded(state: State, seed: int | None = None, *, _path: str = "") -> State:
    """A copy of ``state`` in which every random stream is replaced.

    An integer gives streams that depend on it and on their place in the state, a different one
    for each place. Only for simulation and tests: two clients that share a seed add the same
    noise, and the server cancels it by subtraction. ``None`` draws from the operating system.

    >>> a, b = (reseeded({"x": {"rng": fresh_rng()}}, seed=1) for _ in range(2))
    >>> bool((a["x"]["rng"] == b["x"]["rng"]).all())
    True
    """
    new: State = {}
    for key, value in state.items():
        path = f"{_path}/{key}"
        if key == RNG_KEY:
            new[key] = fresh_rng() if seed is None else seeded_rng(seed, path=path)
        elif isinstance(value, dict):
            new[key] = reseeded(value, seed, _path=path)
        else:
            new[key] = value
    return new


def has_randomness(state: Any) -> bool:
    """Whether a random stream lies anywhere in ``state``."""
    if not isinstance(state, dict):
        return False
    return RNG_KEY in state or any(has_randomness(value) for value in state.values())


def _state_of(entropy: bytes) -> Tensor:
    _check_layout()
    words = np.zeros(STATE_BYTES // 8, dtype=np.int64)
    words[_FLAGS] = _READY
    words[_WORDS] = np.frombuffer(entropy, dtype=np.uint32)
    return torch.from_numpy(words).view(torch.uint8)


_layout_checked = False


def _check_layout() -> None:
    """Compare with a state that torch makes itself; a mistaken layout would mean weak noise."""
    global _layout_checked
    if _layout_checked:
        return
    state = torch.Generator().manual_seed(1).get_state()
    words = (
        state.numpy().view(np.int64) if state.numel() == STATE_BYTES else np.zeros(632, np.int64)
    )
    twister = words[_WORDS]
    # The Mersenne Twister's own seeding rule, second word: 1812433253 * (s ^ s >> 30) + 1, s = 1.
    expected = (1, _READY, 0, 1, (1812433253 + 1) % 2**32)
    if (*words[:3], twister[0], twister[1]) != expected or twister.max() >= 2**32:
        raise RuntimeError(
            f"torch {torch.__version__} lays out its CPU generator state differently: expected "
            f"{STATE_BYTES} bytes with 624 words from byte 24, got {state.numel()} bytes. Use a "
            "version of torch that gradguard was tested with"
        )
    _layout_checked = True
