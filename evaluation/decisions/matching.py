"""A message held against the model it is said to come from: names, shapes, values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradguard.evaluation.errors import UnusableInputError, unknown

PREFIXES = ("_module.", "module.", "_orig_mod.", "model.")
"""What Opacus, DataParallel, torch.compile and trainers put before every name."""


@dataclass(frozen=True, eq=False)
class Matched:
    """A message in the model's own names and order.

    Args:
        update: Every trainable parameter; zeros where nothing came.
        withheld: Parameters that the message lacks.
        unread: Buffers and frozen parameters that came along and that no attack reads.
        prefix: What stood before every name and was taken off.
    """

    update: dict[str, Tensor]
    withheld: tuple[str, ...]
    unread: tuple[str, ...]
    prefix: str


def match(message: Mapping[str, Tensor], model: nn.Module) -> Matched:
    """The message as an attacker reads it.

    Guarantees:

    - names and shapes are those of the model's trainable parameters, in its order, and values are
      finite; a message is never filled up or cut without saying so;
    - no tensor is copied, or grows in memory, before its shape is found to be the model's.

    Raises:
        UnusableInputError: A name is not the model's (the nearest one is named), a shape differs,
            a value is not a finite number, or nothing of the message is trainable.

    >>> found = match({"module.weight": torch.ones(1, 2)}, nn.Linear(2, 1))
    >>> found.prefix, found.withheld, found.update["bias"]
    ('module.', ('bias',), tensor([0.]))
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    every = dict(model.state_dict(keep_vars=True)) | dict(model.named_parameters())
    prefix = _prefix(message, every)
    named = {name.removeprefix(prefix): tensor for name, tensor in message.items()}
    for name in named:
        if name not in every:
            raise unknown("parameter in the message", name, wanted)
    found = {name: _checked(name, named[name], p) for name, p in wanted.items() if name in named}
    if not found:
        raise UnusableInputError(
            f"none of the {len(named)} tensors is a trainable parameter of the model; expected "
            f"{', '.join(list(wanted)[:3])}, ..."
        )
    zeros = {n: torch.zeros_like(p, device="cpu") for n, p in wanted.items() if n not in found}
    return Matched(
        {name: (found | zeros)[name].detach() for name in wanted},
        withheld=tuple(zeros),
        unread=tuple(name for name in named if name not in wanted),
        prefix=prefix,
    )


def _prefix(message: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> str:
    """What stands before all names alike, where they are the model's without it."""
    for prefix in ("", *PREFIXES):
        if all(n.startswith(prefix) and n.removeprefix(prefix) in known for n in message):
            return prefix
    return ""


def _checked(name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
    if tensor.shape != parameter.shape:
        raise UnusableInputError(
            f"{name!r} has shape {tuple(tensor.shape)} in the message and "
            f"{tuple(parameter.shape)} in the model; is it another model's?"
        )
    if not tensor.is_floating_point():
        raise UnusableInputError(
            f"{name!r}: expected floating-point values, got {tensor.dtype}; decode the message "
            "first"
        )
    values = tensor.detach().to("cpu", parameter.dtype)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest):  # of NaN the maximum is NaN
        raise UnusableInputError(
            f"{name!r} holds NaN or infinity; the client diverged, or the file is damaged"
        )
    return values.contiguous()
