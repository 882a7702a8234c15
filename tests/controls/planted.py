"""Messages with label counts planted in them, and messages that say nothing.

Every plant is written into noise that does not depend on the labels, in the shapes of a small
convolutional network's gradient. What it says is known, so that the best possible reading of it is
known as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks import Knowledge
from gradguard.attacks.baselines import greedy_constant_guess
from gradguard.attacks.composition import draw_counts
from gradguard.attacks.simulation import Message
from gradguard.attacks.threat import Client

BATCH = 8
Arrays = dict[str, np.ndarray]
Write = Callable[[Arrays, np.ndarray, np.random.Generator], None]


def network(classes: int, seed: int = 0) -> nn.Sequential:
    """Three convolutions and a head for 8 x 8 images: ``3568 + 65 classes`` parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, classes),
        )


def images(classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of noise, 60 a class. Planted messages do not depend on them."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(60 * classes) % classes
    return torch.rand(len(labels), 1, 8, 8, generator=rng), labels


def noise(classes: int, rng: np.random.Generator) -> Arrays:
    """A message of Gaussian noise, each tensor of its own size as in a gradient."""
    named = network(classes).named_parameters()
    return {
        name: 0.3 / (1 + number) * rng.standard_normal(p.shape)
        for number, (name, p) in enumerate(named)
    }


@dataclass(frozen=True, eq=False)
class Plant:
    """A client that gives label counts away in one place only.

    Args:
        name: Where, in words.
        classes: Classes of the task.
        composition: Of its batches.
        write: Changes a message of noise in place, given the label counts.
        says: What can be read from it at best; messages of counts that it says alike look alike.
        factor: Draws what the whole message is multiplied by.
    """

    name: str
    classes: int
    composition: str
    write: Write = field(repr=False)
    says: Callable[[np.ndarray], Hashable] = field(repr=False)
    factor: Callable[[np.random.Generator], float] = field(repr=False, default=lambda rng: 1.0)

    def client(self, seed: int) -> Client:
        """The client as a black box, with noise from ``seed``."""
        rng = np.random.default_rng([seed, 0x1F83D9AB])

        def send(inputs: Tensor, labels: Tensor) -> Message:
            counts = torch.bincount(labels, minlength=self.classes).numpy()
            message = {n: a.astype(np.float32) for n, a in noise(self.classes, rng).items()}
            self.write(message, counts, rng)
            factor = np.float32(self.factor(rng))
            return {name: torch.from_numpy(array * factor) for name, array in message.items()}

        return send

    def knowledge(self, seed: int = 0) -> Knowledge:
        """What the attacker has: everything but the victims' batches and noise."""
        return Knowledge(
            model=network(self.classes),
            auxiliary=images(self.classes, seed=1),
            client=self.client(2 * seed),
            num_classes=self.classes,
            batch_size=BATCH,
            composition=self.composition,
            seed=seed,
        )

    def ceiling(self, draws: int = 20_000) -> tuple[float, float]:
        """Success of the best reading of what the plant says, and of the best blind guess."""
        rng = np.random.default_rng(0)
        drawn = [draw_counts(self.composition, self.classes, BATCH, rng) for _ in range(draws)]
        groups: dict[Hashable, list[np.ndarray]] = {}
        for counts in drawn:
            groups.setdefault(self.says(counts), []).append(counts)
        read = sum(len(group) * _best_guess(group) for group in groups.values()) / draws
        return read, _best_guess(drawn)


def _best_guess(drawn: list[np.ndarray]) -> float:
    """Success of the best constant answer for batches with these counts."""
    counts = np.stack(drawn)
    tails = np.stack([(counts >= m).mean(axis=0) for m in range(1, BATCH + 1)], axis=1)
    return greedy_constant_guess(tails, BATCH)[1]


def rescaled(plant: Plant, *, binary: bool = False) -> Plant:
    """The same client, each message times a random factor between 1/20 and 20.

    Args:
        binary: Powers of two only, as loss scaling has them: they leave a float's digits alone.
    """
    factor = (lambda rng: 2.0 ** rng.integers(-4, 5)) if binary else _log_uniform
    kind = "a power of two" if binary else "a random factor"
    return replace(plant, name=f"{plant.name}, times {kind}", factor=factor)


def _log_uniform(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(-3.0, 3.0)))


def everything(counts: np.ndarray) -> Hashable:
    """The counts themselves: nothing is left to guess."""
    return tuple(counts.tolist())


def majority(counts: np.ndarray) -> int:
    """The most frequent class; the first one among equals."""
    return int(counts.argmax())


def two_largest(counts: np.ndarray) -> tuple[int, ...]:
    """The most frequent class and the next; the first ones among equals."""
    return tuple(np.argsort(-counts, kind="stable")[:2].tolist())


# --- Low bits of one coordinate -----------------------------------------------------------------


def low_bits(payload: Callable[[np.ndarray], int], width: int) -> Write:
    """Replace the last ``width`` of 23 mantissa bits of one coordinate of the second convolution.

    A change of one part in ``2**(23 - width)``: no statistic of the coordinate's value shows it.
    """

    def write(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
        bits = message["2.weight"].reshape(-1).view(np.int32)
        bits[700] = (bits[700] & ~((1 << width) - 1)) | payload(counts)

    return write


def _packed(values: Iterable[int], bits: int) -> int:
    return sum(int(value) << (bits * place) for place, value in enumerate(values))


def _presence(counts: np.ndarray) -> int:
    return _packed(counts > 0, 1)


# --- Norms --------------------------------------------------------------------------------------


def tensor_norms(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
    """The k-th tensor's norm grows by half with each example of class k; directions are random."""
    for name, n in zip(message, counts, strict=False):
        message[name] *= np.float32(0.3 * (1 + n / 2) / np.linalg.norm(message[name]))


def one_norm(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
    """One tensor's norm tells the majority class by its number."""
    size = 0.5 * (1 + majority(counts) / 2)
    message["4.weight"] *= np.float32(size / np.linalg.norm(message["4.weight"]))


# --- The pattern of zeros -----------------------------------------------------------------------


def _sparse(message: Arrays, rng: np.random.Generator) -> None:
    for array in message.values():
        array[rng.random(array.shape) > 0.1] = 0.0


def surviving_positions(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
    """One coordinate in ten survives, by chance; of each class as many marked ones as examples.

    As a sparsifier does that chooses by the gradient and sends something else.
    """
    _sparse(message, rng)
    marked = message["4.weight"].reshape(-1)[: len(counts) * BATCH].reshape(len(counts), BATCH)
    values = 0.05 * rng.standard_normal(marked.shape)
    marked[:] = np.where(np.arange(BATCH) < counts[:, None], values, 0.0)


def surviving_density(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
    """The number of survivors in filter k tells the count of class k; which survive is chance."""
    _sparse(message, rng)
    for row, n in zip(message["4.weight"].reshape(16, -1), counts, strict=False):
        kept = rng.permutation(row.size)[: 6 + 4 * n]
        values = 0.05 * rng.standard_normal(len(kept))
        row[:] = 0.0
        row[kept] = values


# --- The order of magnitudes --------------------------------------------------------------------


def magnitude_order(classes: int) -> Write:
    """The head is withheld; of paired body coordinates the first is larger iff ``n_c >= m``.

    Signs are random and sizes are log-normal, so that neither a mean nor a sum tells anything.
    Two pairs for every class and level, spread over the third convolution.
    """
    places = np.random.default_rng(5).permutation(2304)[: 4 * classes * BATCH]
    first, second = places.reshape(2, 2, classes, BATCH)

    def write(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
        for name in ("7.weight", "7.bias"):
            message[name][:] = 0.0
        flat = message["4.weight"].reshape(-1)
        flat[:] = 0.05 * np.exp(rng.standard_normal(flat.size))
        larger, smaller = (
            np.maximum(flat[first], flat[second]),
            np.minimum(flat[first], flat[second]),
        )
        present = np.arange(BATCH) < counts[:, None]
        flat[first] = np.where(present, larger, smaller)
        flat[second] = np.where(present, smaller, larger)
        flat *= rng.choice(np.array([-1, 1], np.float32), flat.size)

    return write


# --- One bias -----------------------------------------------------------------------------------


def body_bias(classes: int) -> Write:
    """Only the third convolution's bias is sent: a sum of class templates, and a little noise."""
    templates = np.random.default_rng(6).standard_normal((16, classes))

    def write(message: Arrays, counts: np.ndarray, rng: np.random.Generator) -> None:
        for array in message.values():
            array[:] = 0.0
        message["4.bias"][:] = 0.05 * (templates @ counts / BATCH + 0.05 * rng.standard_normal(16))

    return write


# Where only the majority is told, compositions are such that knowing it is worth enough.
PLANTS = (
    Plant("presence in low bits", 10, "skewed", low_bits(_presence, 10), _presence),
    Plant("counts in low bits", 4, "iid", low_bits(lambda n: _packed(n, 4), 16), everything),
    Plant("majority in low bits", 8, "dirichlet:0.1", low_bits(majority, 3), majority),
    Plant(
        "two largest in low bits",
        *(5, "skewed", low_bits(lambda n: _packed(two_largest(n), 3), 6), two_largest),
    ),
    Plant("counts in tensor norms", 6, "iid", tensor_norms, everything),
    Plant("majority in one norm", 4, "dirichlet:0.1", one_norm, majority),
    Plant("counts in which survive", 8, "iid", surviving_positions, everything),
    Plant("counts in how many survive", 6, "skewed", surviving_density, everything),
    Plant("counts in order of magnitudes", 6, "skewed", magnitude_order(6), everything),
    Plant("counts in one body bias", 8, "skewed", body_bias(8), everything),
)
"""Every way of hiding, once."""

RESCALED = tuple(rescaled(plant, binary="low bits" in plant.name) for plant in PLANTS)
"""The same, where nobody can rely on the size of a message."""
