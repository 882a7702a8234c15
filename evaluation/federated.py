"""Training by a server that averages the messages of simulated clients.

:func:`gradguard.evaluation.training.train` runs the loop of one deployed client. Where the server
sees a sum over clients, or clients train locally, what they learn together is measured here: in
every round each client of the cohort draws a batch of its own, which is all its data, and the
server applies the mean of their messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradguard import Client, Defense, LocalTraining, NonFiniteGradientError
from gradguard.evaluation.exchange import Message, mean
from gradguard.evaluation.specs import TrainingSpec
from gradguard.evaluation.training import Outcome, accuracy, endless, is_finite, loader
from gradguard.finite import NonFiniteExampleError


def train_federated(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    spec: TrainingSpec,
    seed: int,
    defense: Defense,
    training: LocalTraining | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train ``model`` in place on the mean messages of ``defense.cohort`` clients.

    Guarantees:

    - the same seed gives the same batches, with whatever defence;
    - every client keeps its own residuals and random streams over the rounds;
    - a run whose gradients or weights stop being finite ends there, with accuracy 0.0.

    Gradients are applied by SGD as in ``spec``; changes of FedAvg clients as they are, with rate 1
    and no momentum. With DP-SGD batches are shuffled here and not drawn by secret coins: this
    measures accuracy, and states no epsilon.

    Args:
        data: Inputs and labels; in each step every client takes the next batch of them.
        test: Inputs and labels to measure accuracy on.
        training: What clients do locally; without it they send gradients.
    """
    client: Any = defense.client(
        model, loss=spec.criterion, batch_size=spec.batch_size, seed=seed, training=training
    )
    rate, momentum = (spec.learning_rate, spec.momentum) if training is None else (1.0, 0.0)
    server = torch.optim.SGD(client.params, lr=rate, momentum=momentum)
    batches = endless(loader(*data, batch_size=spec.batch_size, seed=seed))
    states: list[Any] = [None] * defense.cohort
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        for _ in range(spec.steps):
            try:
                message = mean(_sent(client, batches, states))
            except (NonFiniteGradientError, NonFiniteExampleError):
                return Outcome(model, 0.0, True)
            for name, p in zip(client.names, client.params, strict=True):
                p.grad = message[name]
            server.step()
            server.zero_grad()
            if not is_finite(client.model):
                return Outcome(model, 0.0, True)
            on_step()
    _copy(client, model)
    return Outcome(model, accuracy(model, *test), False)


def _sent(
    client: Any, batches: Iterator[tuple[Tensor, Tensor]], states: list[Any]
) -> Iterator[Message]:
    """One message of every client. They differ in their state, and share all else."""
    for index, state in enumerate(states):
        inputs, labels = next(batches)
        grads = client.gradients(inputs, labels)
        if state is not None:
            client.guard.guard_state = state
        yield client.release(grads, batch_size=len(labels), first=state is None)
        states[index] = client.guard.guard_state


def _copy(client: Client, model: nn.Module) -> None:
    """The trained parameters and buffers, from the client's copy of the model."""
    trained = dict(zip(client.names, client.params, strict=True))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in trained:
                p.copy_(trained[name])
        for mine, theirs in zip(model.buffers(), client.model.buffers(), strict=True):
            mine.copy_(theirs)


def round_overhead(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    spec: TrainingSpec,
    defense: Defense,
    training: LocalTraining,
    rounds: int = 15,
) -> float:
    """Median time of a FedAvg client's defended round over that of a bare one, in turns."""
    inputs, labels = (part[: spec.batch_size] for part in data)
    sides = [
        side.client(model, loss=spec.criterion, training=training)
        for side in (Defense("none", transform=[]), defense)
    ]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for client, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            client(inputs, labels)
            taken.append(time.perf_counter() - start)
    bare, defended = (float(np.median(taken[rounds // 5 :])) for taken in times)
    return defended / bare
