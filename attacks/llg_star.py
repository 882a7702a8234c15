"""LLG*: LLG with impact and offset calibrated on dummy inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.forward import HeadPass, head_pass
from gradguard.attacks.llg_plus import Calibration, FittedLLGPlus, calibration_of
from gradguard.attacks.threat import Knowledge, require

# Two and not one: BatchNorm in training mode refuses a single example.
COPIES = 2
RANDOM_DRAWS = 256

DUMMIES: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "zeros": lambda shape, rng: torch.zeros(COPIES, *shape),
    "ones": lambda shape, rng: torch.ones(COPIES, *shape),
    # The authors' code calls `random_()`, which draws integers up to 2**24 and saturates any
    # network. Uniform on [0, 1) is what an image is scaled to.
    "random": lambda shape, rng: torch.rand(RANDOM_DRAWS, *shape, generator=rng),
}


def calibrate(passed: HeadPass) -> Calibration:
    """Impact and offset from a forward pass over inputs that go with every label in turn.

    ``g_j^(c) = mean_i (p_ij - [j = c]) sum_d h_id`` as for LLG+, with the same examples for all
    classes.
    """
    classes = passed.probabilities.shape[1]
    weighted = (passed.probabilities * passed.feature_sums[:, None]).mean(axis=0)
    sums = np.tile(weighted, (classes, 1)) - passed.feature_sums.mean() * np.eye(classes)
    return calibration_of(sums, np.arange(classes))


@dataclass(frozen=True)
class LLGStar:
    """LLG by an attacker who has the model and no data: dummy inputs stand in.

    Guarantees:

    - no auxiliary example is read. Where ``input_shape`` is not given, the shape and number type
      of the auxiliary inputs are all that is used of them.

    Args:
        dummy: ``"zeros"``, ``"ones"`` or ``"random"`` (uniform on [0, 1), 256 draws).
        input_shape: Shape of one input, such as ``(1, 28, 28)``; ``None`` takes the auxiliary
            inputs' shape.
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        ValueError: The dummy is none of these.

    Source: Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", 2021,
    arXiv:2105.09369.
    """

    dummy: str = "zeros"
    _: KW_ONLY
    input_shape: tuple[int, ...] | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if self.dummy not in DUMMIES:
            raise ValueError(f"dummy must be one of {', '.join(DUMMIES)}, got {self.dummy!r}")

    @property
    def needs(self) -> frozenset[str]:
        known = {"model", "num_classes"}
        return frozenset(known if self.input_shape is not None else known | {"auxiliary"})

    def fit(self, knowledge: Knowledge) -> FittedLLGPlus:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.num_classes is not None
        rng = torch.Generator().manual_seed(knowledge.seed % 2**63)
        dummies = DUMMIES[self.dummy](self._shape(knowledge), rng)
        passed = head_pass(
            knowledge.model,
            dummies.to(self._dtype(knowledge)),
            num_classes=knowledge.num_classes,
            head=self.head,
            seed=knowledge.seed,
        )
        return FittedLLGPlus(calibrate(passed), head=self.head)

    def _shape(self, knowledge: Knowledge) -> tuple[int, ...]:
        if self.input_shape is not None:
            return self.input_shape
        assert knowledge.auxiliary is not None
        return tuple(knowledge.auxiliary[0].shape[1:])

    def _dtype(self, knowledge: Knowledge) -> torch.dtype:
        if knowledge.auxiliary is not None:
            return knowledge.auxiliary[0].dtype
        assert knowledge.model is not None
        return next(knowledge.model.parameters()).dtype
