"""Warm-up of sparsity: many coordinates in the first steps, few once training has settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.kernels.selection import Numbers, Stretch, selects
from gradguard.transforms.sparsification import KeepTopK


@dataclass(frozen=True)
class WarmUp:
    """Keep a quarter of the coordinates at first, and a quarter of that in every later stage.

    A stage is ``steps`` steps long; the ratio is a quarter in the first, a sixteenth in the second,
    and so on down to the transform's own ratio, where it stays. With the paper's stages of one
    epoch and a ratio of 0.1 % that is 25 %, 6.25 %, 1.5625 %, 0.39 % and then 0.1 %.

    Guarantees:

    - how many coordinates are kept depends on the number of steps and on nothing else;
    - the ratio never falls below the transform's own; from then on the result is the transform's.

    A step in which there is no gradient counts as well. The first messages are large, and show the
    server more.

    Args:
        transform: ``KeepTopK`` with the ratio of the end.
        steps: Length of a stage, at least 1.

    Yujun Lin, Song Han, Huizi Mao, Yu Wang and William J. Dally, "Deep Gradient Compression:
    Reducing the Communication Bandwidth for Distributed Training", 2018, arXiv:1712.01887.

    >>> [round(WarmUp(KeepTopK(0.001), steps=2).ratio(step), 6) for step in range(0, 12, 2)]
    [0.25, 0.0625, 0.015625, 0.003906, 0.001, 0.001]
    """

    transform: KeepTopK
    _: KW_ONLY
    steps: int
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if not (isinstance(self.transform, KeepTopK) and selects(self.transform)):
            raise TypeError(f"WarmUp changes the ratio of a KeepTopK, got {self.transform!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps must be an integer of at least 1, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps!r}")

    def ratio(self, step: int) -> float:
        """Share of the coordinates kept in a step, counted from 0."""
        return max(self.transform.ratio, 0.25 ** (1 + step // self.steps))

    def init(self, params: Sequence[Tensor]) -> State:
        return {"step": 0, type(self.transform).__name__: self.transform.init(params)}

    def select(self, numbers: Numbers, state: State) -> tuple[list[Stretch], State]:
        chosen, inner = self._now(state).select(numbers, state[self._key])
        return chosen, self._later(state, inner)

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        out, inner = self._now(state).update(grads, state[self._key])
        return out, self._later(state, inner)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        out, inner = self._now(state).update_(grads, state[self._key])
        return out, self._later(state, inner)

    @property
    def _key(self) -> str:
        return type(self.transform).__name__

    def _now(self, state: State) -> KeepTopK:
        return replace(self.transform, ratio=self.ratio(state["step"]))

    def _later(self, state: State, inner: State) -> State:
        return {"step": state["step"] + 1, self._key: inner}
