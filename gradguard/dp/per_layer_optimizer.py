"""The private optimizer that clips each parameter to a norm of its own."""

from __future__ import annotations

import math
from typing import Any

from opacus.optimizers import DPPerLayerOptimizer

from gradguard.dp.private_optimizer import NORM_CHANGED, HooksAccounted, check_same_parameters


class PrivatePerLayerOptimizer(HooksAccounted, DPPerLayerOptimizer):  # type: ignore[misc]
    """Opacus' ``DPPerLayerOptimizer``: a norm for each parameter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clipped = list(self.params)

    def clip_and_accumulate(self) -> None:
        check_same_parameters(self.params, self._clipped)
        if not math.isclose(self.max_grad_norm, math.hypot(*self.max_grad_norms), rel_tol=1e-6):
            raise RuntimeError(NORM_CHANGED)
        if any(p.dim() == 0 for p in self.params):
            raise ValueError(
                "Opacus clips a parameter without dimensions by the norm over all examples; give "
                "it a shape of (1,) or clip all parameters to one norm"
            )
        super().clip_and_accumulate()
