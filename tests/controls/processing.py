"""Defences of which one post-processes another, and what is read from the messages of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradguard import AddGaussian, Defense, KeepTopK, Quantize, Sign, Withhold
from gradguard.attacks import ADAPTIVE, BASELINES, PUBLISHED, Knowledge
from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.nesting import nested
from gradguard.evaluation.running.memo import GradientMemo, MemoisedClient
from tests.attacks import mnist, models
from tests.controls.bench import CALIBRATION, Scores, draw_victims, interval, play, sized

SCORED = 300
SIMULATED = 500  # rather than 1,000, for every defence alike
BATCH = 8
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A model to attack, and images that nobody shares.

    Args:
        model: As the server sent it.
        auxiliary: The attacker's.
        victims: The clients'.
        noise: For defences that add some: the gradients' own root mean square.
        memo: Gradients already computed.
    """

    model: nn.Module
    auxiliary: Data
    victims: Data
    noise: float
    memo: GradientMemo

    @property
    def classes(self) -> int:
        return int(self.auxiliary[1].max()) + 1


def _task(model: nn.Module, auxiliary: Data, victims: Data) -> Task:
    drawn = torch.randperm(len(auxiliary[1]), generator=torch.Generator().manual_seed(0))[:BATCH]
    sent = models.gradient(model, auxiliary[0][drawn], auxiliary[1][drawn])
    flat = torch.cat([t.flatten() for t in sent.values()])
    return Task(model, auxiliary, victims, float(flat.square().mean().sqrt()), GradientMemo(2**29))


def trained(model: nn.Module, data: Data, steps: int) -> nn.Module:
    """``model`` after some steps of SGD with momentum on batches of 64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(data[1]), (64,), generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0][rows]), data[1][rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    return model


def _patterns(steps: int) -> Task:
    model = trained(models.cnn(), models.data(400, seed=1), steps)
    return _task(model, models.data(400, seed=7), models.data(400, seed=2))


def _mnist(steps: int) -> Task:
    pixels, labels = mnist.images()
    first, second, third = (slice(0, 2000), slice(2000, 5000), slice(5000, 8000))
    model = trained(mnist.network(0, sigmoid=False), (pixels[first], labels[first]), steps)
    return _task(model, (pixels[second], labels[second]), (pixels[third], labels[third]))


TASKS: dict[str, Callable[[], Task]] = {
    "patterns": lambda: _patterns(100),
    "mnist": lambda: _mnist(300),
}
"""Trained models: before training nearly everything is read from nearly everything."""


@functools.cache
def task(name: str) -> Task:
    """The task of that name, made once."""
    return TASKS[name]()


def defences(noise: float, head: str) -> tuple[Defense, ...]:
    """Chains that share beginnings.

    Args:
        noise: Standard deviation of added noise.
        head: Pattern of the output layer's parameters.
    """
    noised, tenth, hundredth = AddGaussian(noise), KeepTopK(0.1), KeepTopK(0.01)
    four, one, withheld = Quantize(4), Quantize(1), Withhold(head)
    return (
        Defense("raw", transform=[]),
        Defense("sign", transform=[Sign()]),
        Defense("noise", transform=[noised]),
        Defense("noise, top 10 %", transform=[noised, tenth]),
        Defense("noise, sign", transform=[noised, Sign()]),
        Defense("top 10 %", transform=[tenth]),
        Defense("top 10 %, top 1 %", transform=[tenth, hundredth]),
        Defense("4 bits", transform=[four]),
        Defense("4 bits, 1 bit", transform=[four, one]),
        Defense("no head", transform=[withheld]),
        Defense("no head, sign", transform=[withheld, Sign()]),
    )


NAMES = tuple(defence.name for defence in defences(1.0, "head.*"))
PAIRS = tuple(nested(defences(1.0, "head.*")))


@functools.cache
def read(task_name: str, defence_name: str) -> Scores:
    """What every exported attack reads of the same victims' batches under a defence."""
    on = task(task_name)
    head = list(dict(on.model.named_parameters()))[-1].partition(".")[0]
    defence = {d.name: d for d in defences(on.noise, f"{head}.*")}[defence_name]

    def client(seed: int) -> MemoisedClient:
        return MemoisedClient(defence.client(on.model, seed=seed), on.memo)

    known = Knowledge(
        model=on.model,
        auxiliary=on.auxiliary,
        client=client(1),
        num_classes=on.classes,
        batch_size=BATCH,
        composition="skewed",
    )
    victims = draw_victims(client(2), known, on.victims, CALIBRATION + SCORED, seed=3)
    return play(sized([*BASELINES, *PUBLISHED, *ADAPTIVE], SIMULATED), known, victims)


def lead(inner: Scores, outer: Scores) -> Interval:
    """By how much the worst case of the inner defence is above that of the outer: an interval.

    Paired by batch. An upper end below zero breaks the law of data processing.
    """
    return interval(inner.scored[inner.worst] - outer.scored[outer.worst])
