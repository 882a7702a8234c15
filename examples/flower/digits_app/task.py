"""The digits, the model, and how it is trained: nothing here knows of Flower or of gradguard."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 360


class Net(nn.Sequential):
    """A small convolutional network for images of 8 x 8; 21,386 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


def digits() -> tuple[Tensor, Tensor]:
    """All images and labels, in an order that is always the same."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16).float().view(-1, 1, 8, 8)[order], torch.tensor(labels)[order]


def client_loader(partition: int, partitions: int, batch_size: int) -> DataLoader:
    """One client's share of the training images."""
    images, labels = (whole[HELD_OUT:][partition::partitions] for whole in digits())
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True)


def train(model: nn.Module, optimizer, loader, epochs: int) -> None:
    """Local training, private or not: that is up to the optimizer and the loader."""
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """The share of images, none of which any client has, that are named correctly."""
    images, labels = (whole[:HELD_OUT] for whole in digits())
    return (model.eval()(images).argmax(dim=1) == labels).float().mean().item()
