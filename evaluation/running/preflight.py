"""What can be wrong with a study's model and defences, found before any work is done."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gradguard import Defense
from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.running.memo import GradientMemo, MemoisedClient
from gradguard.evaluation.study import Study
from gradguard.evaluation.training import loader


def check_defenses(study: Study, model: nn.Module, data: Data) -> None:
    """Send one message of every defence: a pattern that fits no parameter is found now.

    Raises:
        UnusableInputError: The model cannot be trained as its clients train it, or a defence
            cannot be used with it.
    """
    # The smallest batch: layers such as BatchNorm cannot train on a single image.
    size = min(*study.attack.batch_sizes, study.training.batch_size)
    inputs, labels = data.images[:size], data.labels[:size]
    _try_training(study, model, inputs.clone(), labels.clone())
    for defense in study.defenses:
        try:
            _try_defense(study, defense, model, inputs, labels)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise UnusableInputError(f"defence {defense.name!r}: {one_line(error)}") from error


def _try_training(study: Study, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    if study.client is not None:
        _check_buffers(model)
    loss, bare = study.training.criterion, Defense("none", transform=[])
    client = bare.client(model, loss=loss, seed=0, training=study.client)
    try:
        sent = client(inputs, labels)
    except Exception as error:  # the user's forward pass may raise anything
        raise UnusableInputError(
            f"model: failed to train on a batch of {len(labels)}: {one_line(error)}"
        ) from error
    if study.client is not None and not _finite(sent):
        raise UnusableInputError(
            "local training diverges even without a defence; lower client.learning_rate"
        )


def _check_buffers(model: nn.Module) -> None:
    for name, _ in model.named_buffers():
        if name.rpartition(".")[2] == "running_mean":
            raise UnusableInputError(
                f"model: {name!r} is a running statistic, which a [client] that trains locally "
                "does not send, so that the server's model would have none; use a normalisation "
                "without them, such as GroupNorm, or leave out [client]"
            )


def _try_defense(
    study: Study, defense: Defense, model: nn.Module, inputs: Tensor, labels: Tensor
) -> None:
    loss = study.training.criterion
    if defense.dp is not None:
        # Opacus' hooks on a copy: the loop of a deployed client, as far as its first step. Before
        # the client, for it says what is wrong where Opacus has bare assertions.
        images = loader(inputs, labels, batch_size=len(labels), seed=0)
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.0)
        defense.attach(copied, optimizer, images, criterion=loss, aggregated=True)
    client = defense.client(model, loss=loss, seed=0, training=study.client)
    if not _finite(MemoisedClient(client, GradientMemo(0))(inputs, labels)):
        raise ValueError(
            "its first message holds NaN or infinity: the noise or a clipping norm is larger than "
            "the model's numbers can be; lower it"
        )


def _finite(message: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in message.values())
