"""A model with Opacus' hooks, and the private optimizer that goes with it."""

from __future__ import annotations

from typing import Any

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from gradguard.dp.ghost_module import CountingGhostModule
from gradguard.dp.ghost_optimizer import PrivateGhostOptimizer
from gradguard.dp.per_layer_optimizer import PrivatePerLayerOptimizer
from gradguard.dp.private_optimizer import PrivateOptimizer

BATCH_NORMS = nn.modules.batchnorm._BatchNorm  # all of them, SyncBatchNorm included
Private = PrivateOptimizer | PrivatePerLayerOptimizer | PrivateGhostOptimizer


def wrapped(
    model: nn.Module, max_grad_norm: float | tuple[float, ...], mode: str, **options: Any
) -> tuple[nn.Module, Private]:
    """The model with Opacus' hooks and the optimizer that goes with it."""
    if mode == "ghost":
        module = _hooked(model, CountingGhostModule, max_grad_norm=max_grad_norm)
        ghost = PrivateGhostOptimizer(max_grad_norm=max_grad_norm, module=module, **options)
        return module, ghost
    hooked = _hooked(model, GradSampleModule)
    options["module"] = hooked
    if isinstance(max_grad_norm, tuple):
        return hooked, PrivatePerLayerOptimizer(max_grad_norm=list(max_grad_norm), **options)
    return hooked, PrivateOptimizer(max_grad_norm=max_grad_norm, **options)


def _hooked(model: nn.Module, kind: type[Any], **options: Any) -> Any:
    ModuleValidator.validate(getattr(model, "_module", model), strict=True)
    if isinstance(model, GradSampleModule | CountingGhostModule):
        if type(model) is not kind:
            raise ValueError("the model was made private in another mode; give the plain model")
        return model
    module = kind(model, batch_first=True, loss_reduction="mean", **options)
    module.forbid_grad_accumulation()
    module.register_forward_pre_hook(_count_rows)
    for part in model.modules():
        if isinstance(part, BATCH_NORMS):
            part.register_forward_pre_hook(_refuse_batch_statistics)
    return module


def _count_rows(module: Any, inputs: tuple[Any, ...]) -> None:
    """Keep the size of the batch, against which the rows that were clipped are held."""
    if not (torch.is_grad_enabled() and module.training):
        return  # an evaluation between backward and step
    first = inputs[0] if inputs else None
    module.rows = len(first) if isinstance(first, Tensor) and first.dim() else None


def _refuse_batch_statistics(module: Any, _: Any) -> None:
    """Opacus refuses trainable batch norms only; a frozen one mixes examples just as well."""
    if torch.is_grad_enabled() and (module.training or module.running_mean is None):
        raise ValueError(
            "a batch norm in training mode mixes examples, and clipping one by one would bound "
            "nothing; call eval() on it after each model.train(), or use GroupNorm"
        )
