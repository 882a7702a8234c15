"""Where the output layer is in a message: found by shape and position, or named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


class HeadNotFoundError(ValueError):
    """No parameter of the message looks like an output layer for this many classes."""


@dataclass(frozen=True)
class Head:
    """Parameter names of the output layer: a weight ``(classes, features)``, perhaps a bias."""

    weight: str
    bias: str | None

    @property
    def layer(self) -> str:
        """The name of the module that holds the weight, ``""`` for the root module."""
        return self.weight.rpartition(".")[0]


def find_head(update: Mapping[str, Tensor], num_classes: int, name: str | None = None) -> Head:
    """The last matrix with ``num_classes`` rows, and the bias beside it.

    Args:
        update: Tensors by parameter name, in model order.
        name: The output layer's module name, where shape and position would mislead.

    Raises:
        HeadNotFoundError: Nothing fits; the message lists the matrices there are.
    """
    fits = [
        key
        for key, tensor in update.items()
        if tensor.ndim == 2
        and tensor.shape[0] == num_classes
        and (name is None or key.rpartition(".")[0] == name)
    ]
    if not fits:
        shapes = {key: tuple(t.shape) for key, t in update.items() if t.ndim == 2}
        wanted = f"a matrix with {num_classes} rows" + (f" in layer {name!r}" if name else "")
        raise HeadNotFoundError(
            f"expected an output layer, {wanted}; the matrices here are {shapes}. "
            "Name the layer with head=..., or check num_classes"
        )
    weight = fits[-1]
    bias = f"{weight.rpartition('.')[0]}.bias".lstrip(".")
    has_bias = bias in update and update[bias].shape == (num_classes,)
    return Head(weight, bias if has_bias else None)


def head_module(model: nn.Module, num_classes: int, name: str | None = None) -> nn.Linear:
    """The model's output layer as a module, for the attacks that read its inputs."""
    head = find_head(dict(model.named_parameters()), num_classes, name)
    module = model.get_submodule(head.layer)
    if not isinstance(module, nn.Linear):
        raise HeadNotFoundError(
            f"expected the output layer {head.layer!r} to be nn.Linear, "
            f"got {type(module).__name__}; name another layer with head=..."
        )
    return module
