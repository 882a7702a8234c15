"""ResNet-50 in the torchvision layout, for cost only: there are no weights to load.

K. He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPANSION = 4
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of the first


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with BatchNorm and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != wide or stride != 1:
            widen = nn.Conv2d(channels, wide, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(widen, nn.BatchNorm2d(wide))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.branch(inputs) + self.shortcut(inputs))


def resnet50(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """161 tensors; 25,557,032 parameters with 1,000 classes and three input channels."""
    stem = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for i in range(blocks):
            layers.append(Bottleneck(channels, width, stride if i == 0 else 1))
            channels = EXPANSION * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.add_module("head", nn.Linear(channels, num_classes))
    return model
