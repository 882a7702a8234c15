"""Random streams: never shared, never standing still, and reproduced by a seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradguard.core import GradTransform, State
from gradguard.freshness import tensors_in
from gradguard.laws.checks import gradients, require, same
from gradguard.randomness import RNG_KEY, STATE_BYTES, has_randomness, reseeded
from gradguard.transforms.routing import NamedParameters


def randomness_is_fresh(transform: GradTransform, params: NamedParameters) -> None:
    """No seed is a default or shared, streams move on, and a seed reproduces them."""
    state = transform.init(params)
    found = sum(t.dtype == torch.uint8 and t.numel() == STATE_BYTES for t in tensors_in([state]))
    seen = f"a generator's state is held elsewhere than under the key {RNG_KEY!r}"
    require(found == len([*_streams(state)]), transform, "randomness_is_fresh", seen)
    if not has_randomness(state):
        return
    streams = [*_streams(state), *_streams(transform.init(params))]
    require(_distinct(streams), transform, "randomness_is_fresh", "two streams are equal")
    seeded = reseeded(state, 5)
    require(_distinct([*_streams(seeded)]), transform, "randomness_is_fresh", "seeded streams")
    require(same(seeded, reseeded(state, 5)), transform, "randomness_is_fresh", "reseeding")
    _, later = transform.update(gradients(params), state)
    for old, new in zip(_streams(state), _streams(later), strict=True):
        require(not same(old, new), transform, "randomness_is_fresh", "a stream stood still")


def _streams(state: State) -> Iterator[Tensor]:
    for key, value in state.items():
        if key == RNG_KEY:
            yield value
        elif isinstance(value, dict):
            yield from _streams(value)


def _distinct(streams: list[Tensor]) -> bool:
    return len({bytes(s.numpy()) for s in streams}) == len(streams)
