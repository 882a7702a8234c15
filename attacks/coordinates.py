"""Which coordinates of a message an attack looks at, when it cannot look at all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A bounded choice of coordinates, read from a message as one flat vector.

    Args:
        chosen: For each tensor in model order, the flat indices to read; ``None`` reads it whole.
        unit: What to multiply by, see :func:`unit_of`.
    """

    chosen: Mapping[str, Tensor | None]
    unit: float = 1.0

    def read(self, message: Mapping[str, Tensor]) -> np.ndarray:
        """The chosen coordinates, float32 of shape ``(coordinates,)``."""
        parts = []
        for name, index in self.chosen.items():
            flat = message[name].detach().reshape(-1)
            parts.append(rescaled(flat if index is None else flat[index], self.unit))
        joined: np.ndarray = torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32)
        return joined

    def starts(self, message: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Where each tensor's coordinates start in the flat vector, and last where they end."""
        sizes = [
            message[name].numel() if index is None else len(index)
            for name, index in self.chosen.items()
        ]
        return tuple(int(start) for start in np.cumsum([0, *sizes]))


def unit_of(messages: Iterable[Mapping[str, Tensor]]) -> float:
    """The power of two that brings the largest magnitude of some messages near one.

    Messages are read in this unit, since squares of a message that a defence multiplied by
    ``1e-20`` are zero in single precision: it would look silent. A power of two, so that no digit
    changes. Messages of zeros have unit 1.
    """
    largest = 0.0
    for message in messages:
        for tensor in message.values():
            if tensor.numel():
                low, high = torch.aminmax(tensor.detach())
                largest = max(largest, -float(low), float(high))
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** -max(-1000, min(1000, math.frexp(largest)[1]))


def rescaled(tensor: Tensor, unit: float) -> Tensor:
    """``unit * tensor`` in float32, by way of float64 because the unit may exceed float32."""
    return tensor.float() if unit == 1 else (tensor.double() * unit).float()


def choose_coordinates(
    pilots: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
    limit: int,
    rng: np.random.Generator,
) -> Coordinates:
    """At most ``limit`` coordinates of the tensors ``names``: all of them where they fit.

    Args:
        pilots: A few defended messages, at least one; see :func:`spread` for what they decide.
        names: Tensors to choose from, in model order.
        limit: The most coordinates to keep, at least 2.
    """
    sizes = {name: pilots[0][name].numel() for name in names}
    if sum(sizes.values()) <= limit:
        return Coordinates(dict.fromkeys(names))
    unit = unit_of(pilots)
    energy = torch.cat(
        [
            sum((rescaled(p[name].detach().reshape(-1), unit) ** 2 for p in pilots), torch.zeros(1))
            for name in names
        ]
    )
    kept = spread(energy.cpu().numpy(), limit, rng)
    starts = np.cumsum([0, *sizes.values()])
    return Coordinates(
        {
            name: torch.from_numpy(kept[(kept >= low) & (kept < high)] - low)
            for name, low, high in zip(names, starts, starts[1:], strict=False)
        }
    )


def spread(energy: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """``limit`` sorted positions: half with the most energy, half at random from the rest.

    Energy follows what survives a sparsifier, which a random draw would almost always miss; the
    random half keeps the small magnitudes, which carry the signal of a trained model. A random
    projection was the alternative: it mixes dropped coordinates into every output, so that the
    surviving mask is lost.
    """
    top = np.argpartition(-energy, limit // 2)[: limit // 2]
    # Enough draws that those which are not already on top fill the other half.
    others = rng.choice(len(energy), size=min(limit, len(energy)), replace=False)
    others = others[~np.isin(others, top)][: limit - len(top)]
    return np.sort(np.concatenate([top, others]))
