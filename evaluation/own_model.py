"""The user's own model: imported by name, and checked before anything is attacked."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradguard.attacks.head import find_head, head_module
from gradguard.evaluation.errors import UnusableInputError, one_line


@dataclass(frozen=True)
class OwnFactory:
    """The callable that ``"module:callable"`` names, with ``(input_shape, num_classes)`` if it can.

    A class that holds the name: a worker process can be sent no lambda or local function.
    """

    spec: str

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        found = self.find()
        model: nn.Module
        try:
            inspect.signature(found).bind(input_shape, num_classes)
        except TypeError:
            model = found()
        except ValueError:  # a builtin without a signature
            model = found(input_shape, num_classes)
        else:
            model = found(input_shape, num_classes)
        return model

    def find(self) -> Any:
        """The callable itself.

        Raises:
            UnusableInputError: There is no such module or callable.
        """
        module_name, _, attribute = self.spec.partition(":")
        if not module_name or not attribute:
            raise UnusableInputError(f"model factory must be 'module:callable', got {self.spec!r}")
        # A console script does not have the working folder on its path; the user's module is there.
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:  # a user's module may do anything when imported
            raise UnusableInputError(f"model factory {self.spec!r}: {one_line(error)}") from error
        if not callable(found):
            raise UnusableInputError(
                f"model factory {self.spec!r} is not callable; name a function"
            )
        return found


def check_model(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Raise unless ``model`` classifies and the attacks will look for its labels where they are.

    Raises:
        UnusableInputError: It is no module, or its outputs have another shape.
        HeadNotFoundError: No trainable ``nn.Linear`` has one row per class.
    """
    if not isinstance(model, nn.Module):
        raise UnusableInputError(f"the factory returned {type(model).__name__}, not an nn.Module")
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(partial(_note, called))
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    training = model.training
    with torch.no_grad():
        shape = tuple(model.eval()(torch.zeros(2, *input_shape)).shape)
    model.train(training)
    for hook in hooks:
        hook.remove()
    if shape != (2, num_classes):
        raise UnusableInputError(
            f"expected outputs (batch, {num_classes}), got {shape} for a batch of 2; "
            "check the number of classes"
        )
    _check_head(model, num_classes, called)


def _note(called: list[nn.Module], module: nn.Module, *_: object) -> None:
    called.append(module)


def _check_head(model: nn.Module, num_classes: int, called: list[nn.Module]) -> None:
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    layer = find_head(trainable, num_classes).layer
    head_module(model, num_classes, layer)
    # Attacks that read another layer than the output would find nothing, and call it safe.
    names = {module: name for name, module in model.named_modules()}
    last = names[called[-1]] if called else None
    if last != layer:
        raise UnusableInputError(
            f"the output layer is taken to be {layer!r}, the last matrix of {num_classes} rows, "
            f"but {last!r} is computed last; define the output layer after all others"
        )
