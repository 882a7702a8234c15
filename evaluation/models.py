"""The built-in classifiers, and the user's own: reproducible from a seed, output layer ``head``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gradguard.attacks.head import HeadNotFoundError
from gradguard.evaluation.errors import UnusableInputError, one_line, unknown
from gradguard.evaluation.own_model import OwnFactory, check_model

Factory = Callable[[tuple[int, ...], int], nn.Module]
"""Builds a fresh model for an input shape ``(channels, height, width)`` and a number of classes."""


def _named(body: nn.Module, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """``body`` followed by a linear layer named ``head`` of the right width."""
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(_width(body, input_shape), num_classes))
    return model


def _width(body: nn.Module, input_shape: Sequence[int]) -> int:
    with torch.no_grad():
        return int(body(torch.zeros(1, *input_shape)).shape[1])


def _three_convolutions(input_shape: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(channels, 12, 5, padding=2, stride=stride), activation()]
        channels = 12
    return nn.Sequential(*layers, nn.Flatten())


def cnn_relu(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The LLG paper's three-convolution network with ReLU and torch's default weights."""
    return _named(_three_convolutions(input_shape, nn.ReLU), input_shape, num_classes)


def llg_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same as the LLG authors run it: sigmoid, every parameter uniform on (-0.5, 0.5)."""
    model = _named(_three_convolutions(input_shape, nn.Sigmoid), input_shape, num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model


def lenet(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """LeNet-5's shape with ReLU and average pooling; padded, so that 8 x 8 images fit."""
    features = nn.Sequential(
        *(nn.Conv2d(input_shape[0], 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Flatten(),
    )
    # Not nn.LazyLinear: it warns, and draws its weights outside the seeded construction.
    dense = nn.Linear(_width(features, input_shape), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()
    return _named(nn.Sequential(*features, *dense), input_shape, num_classes)


def mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two hidden layers of 128 and 64 ReLU units."""
    width = int(torch.Size(input_shape).numel())
    body = nn.Sequential(
        *(nn.Flatten(), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    )
    return _named(body, input_shape, num_classes)


class _Block(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            *(nn.GroupNorm(8, width), nn.ReLU()),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
        )
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride=stride)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.branch(inputs) + self.shortcut(inputs))


def resnet_gn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels; GroupNorm, as per-example clipping needs."""
    body = nn.Sequential(
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        *(nn.GroupNorm(8, 16), nn.ReLU()),
        *(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return _named(body, input_shape, num_classes)


MODELS: dict[str, Factory] = {
    "cnn-relu": cnn_relu,
    "llg-cnn": llg_cnn,
    "lenet": lenet,
    "mlp": mlp,
    "resnet-gn": resnet_gn,
}


def find_factory(name: str | None, factory: str | None) -> Factory:
    """The factory of a built-in ``name``, or of the user's own ``"module:callable"``."""
    if factory is not None:
        own = OwnFactory(factory)
        own.find()
        return own
    if name not in MODELS:
        raise unknown("model", str(name), MODELS)
    return MODELS[name]


def build_model(
    factory: Factory, *, input_shape: tuple[int, ...], num_classes: int, seed: int
) -> nn.Module:
    """A fresh model, the same for the same ``seed``.

    Guarantees:

    - torch's global random state is as it was before the call;
    - no two models share parameters, whatever the factory returns.

    Raises:
        UnusableInputError: The factory fails, the model does not map a batch of images to
            ``(batch, num_classes)``, or its output layer cannot be found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        try:
            # A copy: a factory may hand out the same module each time, and models are trained.
            model = copy.deepcopy(factory(input_shape, num_classes))
            check_model(model, input_shape, num_classes)
        except (UnusableInputError, HeadNotFoundError) as error:
            raise UnusableInputError(f"model: {one_line(error)}") from error
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            raise UnusableInputError(
                f"model: failed on images of shape {input_shape}: {one_line(error)}"
            ) from error
    return model
