"""What a learned attack keeps of each message: bounded in size, whatever the model's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.coordinates import (
    Coordinates,
    choose_coordinates,
    rescaled,
    spread,
    unit_of,
)
from gradguard.attacks.head import Head, find_head
from gradguard.attacks.learning.class_summary import summarise
from gradguard.attacks.learning.offset import without
from gradguard.attacks.simulation import Message

BLOCK_BYTES = 32 * 2**20  # head gradients summarised at a time


@dataclass(frozen=True, eq=False)
class Readings:
    """Messages as arrays.

    Args:
        weight: Head weight gradients, float32 ``(messages, classes, columns)``.
        bias: Head bias gradients, float32 ``(messages, classes)``; zeros without a bias.
        body: Coordinates of all other layers, float32 ``(messages, coordinates)``.
        summary: Per-class numbers of the whole head, ``(messages, classes, numbers)``.
        norms: Euclidean norm of every tensor of the message, float64 ``(messages, tensors)``.
        layers: Where in ``body`` each tensor starts, and last where it ends.
    """

    weight: np.ndarray
    bias: np.ndarray
    body: np.ndarray
    summary: np.ndarray
    norms: np.ndarray
    layers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def head(self) -> np.ndarray:
        """Weight and bias of the head as one matrix, ``(messages, coordinates)``."""
        return np.concatenate([self.weight.reshape(len(self), -1), self.bias], axis=1)

    @property
    def unit_layers(self) -> np.ndarray:
        """The body with each tensor scaled to unit length: no layer drowns another."""
        starts = self.layers or (0, self.body.shape[1])
        parts = [self.body[:, low:high] for low, high in itertools.pairwise(starts)]
        norms = [np.linalg.norm(part, axis=1, keepdims=True) + 1e-20 for part in parts]
        unit = [part / norm for part, norm in zip(parts, norms, strict=True)]
        return np.concatenate(unit, axis=1) if unit else self.body


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads messages of one model: which columns of the head, which coordinates of the body.

    Memory: at most ``2 * limit`` float32 per message, and the per-class summary. The summary is
    taken from the whole head before columns are dropped, and the norms from whole tensors.
    """

    head: Head
    columns: Tensor | None
    body: Coordinates
    names: tuple[str, ...]
    offset: Message | None = None  # taken away from every message before it is read
    layers: tuple[int, ...] = ()  # as in Readings

    @classmethod
    def fit(
        cls,
        pilots: Sequence[Mapping[str, Tensor]],
        num_classes: int,
        limit: int,
        rng: np.random.Generator,
        head_name: str | None = None,
        offset: Message | None = None,
    ) -> Reader:
        """Choose what to read from a few pilot messages.

        Columns of the head are dropped whole, so that classes stay comparable column by column.
        """
        pilots = [without(pilot, offset) for pilot in pilots]
        head = find_head(pilots[0], num_classes, head_name)
        others = [name for name in pilots[0] if name not in (head.weight, head.bias)]
        unit, names = unit_of(pilots), tuple(pilots[0])
        body = replace(choose_coordinates(pilots, others, limit, rng), unit=unit)
        layers = body.starts(pilots[0])
        width, most = pilots[0][head.weight].shape[1], max(2, limit // num_classes)
        if width <= most:
            return cls(head, None, body, names, offset, layers)
        weights = [rescaled(pilot[head.weight].detach(), unit) for pilot in pilots]
        energy = torch.stack([weight**2 for weight in weights]).sum((0, 1))
        columns = torch.from_numpy(spread(energy.cpu().numpy(), most, rng))
        return cls(head, columns, body, names, offset, layers)

    def read(self, messages: Iterable[Mapping[str, Tensor]]) -> Readings:
        """Read messages one by one; only a block of whole heads is in memory at a time.

        Raises:
            ValueError: A message is not finite, or has other tensors than the pilots had.
        """
        blocks: list[Readings] = []
        weights: list[np.ndarray] = []
        biases: list[np.ndarray] = []
        bodies: list[np.ndarray] = []
        norms: list[np.ndarray] = []
        for received in messages:
            message = without(received, self.offset)
            norms.append(self._norms(message))
            weight = self._array(message[self.head.weight])
            bias = None if self.head.bias is None else self._array(message[self.head.bias])
            weights.append(weight)
            biases.append(np.zeros(len(weight), np.float32) if bias is None else bias)
            bodies.append(self.body.read(message))
            if len(weights) * weight.nbytes >= BLOCK_BYTES:
                blocks.append(self._block(weights, biases, bodies, norms))
                weights, biases, bodies, norms = [], [], [], []
        if weights:
            blocks.append(self._block(weights, biases, bodies, norms))
        return _joined(blocks)

    def _array(self, tensor: Tensor) -> np.ndarray:
        array: np.ndarray = rescaled(tensor.detach(), self.body.unit).cpu().numpy()
        return array

    def _norms(self, message: Mapping[str, Tensor]) -> np.ndarray:
        """Norms of all tensors: one pass that also sees a NaN in what is not read."""
        if message.keys() != set(self.names):
            other = sorted(message.keys() ^ set(self.names))
            raise ValueError(
                f"expected messages with the tensors of the rehearsed ones; {other[:3]} are in "
                "only one of them. Send zeros for what is withheld"
            )
        tensors = [message[name].detach() for name in self.names]
        # In double precision, in which whole numbers have norms too.
        norms = np.array([float(torch.linalg.vector_norm(t.double())) for t in tensors])
        if not np.isfinite(norms).all():
            raise ValueError(
                "expected a finite message, got NaN or infinity; "
                "the client diverged, so there is no leakage to measure"
            )
        scaled: np.ndarray = norms * self.body.unit
        return scaled

    def _block(
        self,
        weights: list[np.ndarray],
        biases: list[np.ndarray],
        bodies: list[np.ndarray],
        norms: list[np.ndarray],
    ) -> Readings:
        weight, bias = np.stack(weights), np.stack(biases)
        summary = summarise(weight, bias)
        if self.columns is not None:
            weight = weight[:, :, self.columns.numpy()]
        return Readings(weight, bias, np.stack(bodies), summary, np.stack(norms), self.layers)


def _joined(blocks: list[Readings]) -> Readings:
    if len(blocks) == 1:
        return blocks[0]
    if not blocks:
        raise ValueError("expected at least one message, got none")
    return Readings(
        np.concatenate([block.weight for block in blocks]),
        np.concatenate([block.bias for block in blocks]),
        np.concatenate([block.body for block in blocks]),
        np.concatenate([block.summary for block in blocks]),
        np.concatenate([block.norms for block in blocks]),
        blocks[0].layers,
    )
