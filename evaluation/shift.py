"""Auxiliary images of another distribution: an attacker seldom has the victims' own.

Each shift is a pure function of images ``(images, channels, height, width)`` and a seed. It keeps
shape, type and the range of values, and goes by that range, so that images need not lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

NOISE = 0.2
"""Standard deviation of the shift ``"noise"``, as a share of the range of values."""

DEGREES = 30.0
"""Angle of the shift ``"rotate"``."""


def noise(images: Tensor, seed: int) -> Tensor:
    """Gaussian noise on every pixel, clamped to the range of the images."""
    low, high = images.aminmax()
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed % 2**63))
    noised = images + NOISE * (high - low) * drawn.to(images)
    return noised.clamp(low, high)


def blur(images: Tensor, seed: int) -> Tensor:
    """The mean of every pixel and its eight neighbours; the border is repeated outwards."""
    _check_images(images, "blur")
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(padded, kernel_size=3, stride=1)


def invert(images: Tensor, seed: int) -> Tensor:
    """Light for dark."""
    low, high = images.aminmax()
    return low + high - images


def rotate(images: Tensor, seed: int) -> Tensor:
    """Turned by :data:`DEGREES` around the centre; the border is repeated outwards."""
    _check_images(images, "rotate")
    height, width = images.shape[2:]
    angle = math.radians(DEGREES)
    cos, sin = math.cos(angle), math.sin(angle)
    # Coordinates run from -1 to 1 along both sides, however long: a pixel is to stay a square.
    turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    turns = turn.to(images).expand(len(images), 2, 3)
    grid = functional.affine_grid(turns, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def unchanged(images: Tensor, seed: int) -> Tensor:
    """The images themselves."""
    return images


SHIFTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "none": unchanged,
    "noise": noise,
    "blur": blur,
    "invert": invert,
    "rotate": rotate,
}
"""Shifts by the names that a study calls them."""


def _check_images(images: Tensor, name: str) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"the shift {name!r} is for images (images, channels, height, width), "
            f"got {tuple(images.shape)}; use 'noise' or 'invert'"
        )
