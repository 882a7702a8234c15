"""The model that a client sends back after local training, as the server rebuilds it."""

from __future__ import annotations

import torch
from torch import nn

from gradguard.attacks.forward import attacker_copy
from gradguard.attacks.threat import Observation


def tells_the_received_model(observation: Observation) -> bool:
    """Whether the message is the change of a model over several steps, so that it has an end.

    A single step has its gradient at the start. Without learning rate the message is a sum of
    gradients, and how far the model moved is not known.
    """
    return observation.local_steps > 1 and observation.learning_rate is not None


def received_model(model: nn.Module, observation: Observation) -> nn.Module:
    """A copy of ``model`` with the message subtracted: updates are *before minus after*.

    Parameters that the message does not hold stay as they are. So does what a defence withheld,
    since that is sent as zeros.

    Raises:
        ValueError: The message has a tensor that is no parameter of the model.
    """
    end = attacker_copy(model)
    parameters = dict(end.named_parameters())
    strange = sorted(set(observation.update) - set(parameters))
    if strange:
        raise ValueError(f"expected tensors named as the model's parameters, got {strange}")
    with torch.no_grad():
        for name, change in observation.update.items():
            parameters[name].sub_(change.to(parameters[name]))
    return end
