"""Where the noise of DP-SGD comes from: a stream that no one else has."""

from __future__ import annotations

import base64
import binascii
import secrets

import torch
from torch import Tensor

from gradguard.randomness import fresh_rng, seeded_rng


def fresh_generator(device: torch.device) -> torch.Generator:
    """A generator filled by the operating system, for draws on ``device``.

    Opacus' default is torch's global generator, which most scripts seed with a constant: then the
    server knows the noise.
    """
    rng = torch.Generator(device=device)
    if device.type == "cpu":
        rng.set_state(fresh_rng())
    else:
        rng.manual_seed(secrets.randbits(63))
    return rng


def reseed(rng: torch.Generator, seed: int | None, *, path: str = "") -> None:
    """Start a new stream: from the operating system, or for simulation from ``seed``."""
    if rng.device.type == "cpu":
        rng.set_state(fresh_rng() if seed is None else seeded_rng(seed, path=path))
    elif seed is None:
        rng.manual_seed(secrets.randbits(63))
    else:
        words = seeded_rng(seed, path=path).view(torch.int64)
        rng.manual_seed(int(words[3] << 31 | words[4] >> 1) & (2**63 - 1))


def encode(rng: torch.Generator) -> str:
    """The state of a generator as text."""
    return base64.b64encode(bytes(rng.get_state().tolist())).decode("ascii")


def decode(text: str, like: torch.Generator) -> Tensor:
    """The state in ``text``, checked to fit the generator ``like``."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"not the state of a random stream: {error}") from None
    size = like.get_state().numel()
    if len(found) != size:
        raise ValueError(
            f"expected the state of a random stream on {like.device.type} ({size} bytes), got "
            f"{len(found)} bytes; resume on the kind of device that the checkpoint is from"
        )
    return torch.tensor(list(found), dtype=torch.uint8, device="cpu")
