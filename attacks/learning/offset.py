"""A constant that a defence adds to every message: noise from a public or repeated seed.

It hides nothing from a regression, but it covers every sign: readers of signs and of class
summaries would see the noise alone. An attacker who has the model knows what a message would have
been, so it can measure the constant and take it away.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.forward import attacker_copy
from gradguard.attacks.simulation import Message
from gradguard.attacks.templates.channel import draw_batches
from gradguard.attacks.templates.class_gradients import raw_gradient
from gradguard.attacks.threat import Knowledge

PAIRS = 6
MISFIT = 0.05  # of a message's variation, that a scale and a constant may leave unexplained
RELEVANT = 0.1  # of a gradient's energy, below which a constant hides little


def constant_offset(knowledge: Knowledge) -> Message | None:
    """The constant ``c`` if messages are ``s * gradient + c``; ``None`` if they are not.

    Needs the model, auxiliary data and the client; ``None`` without them. A single scale ``s``
    for all messages is fitted along. Where the client drops coordinates, takes signs or draws
    fresh noise, a scale and a constant do not explain its messages, and nothing is taken away.
    """
    if knowledge.model is None or knowledge.auxiliary is None or knowledge.client is None:
        return None
    attacker = attacker_copy(knowledge.model)
    shapes = {name: p.shape for name, p in attacker.named_parameters() if p.requires_grad}
    sent = {name: torch.zeros(shape, dtype=torch.double) for name, shape in shapes.items()}
    raw = {name: torch.zeros_like(total) for name, total in sent.items()}
    products = np.zeros(3)  # of sent and sent, sent and raw, raw and raw
    for inputs, labels, _ in draw_batches(knowledge, PAIRS):
        message = knowledge.client(inputs, labels)
        if message.keys() != shapes.keys():
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a model's own randomness, such as dropout
            gradient = raw_gradient(attacker, inputs, labels)
        for name in shapes:
            m, g = message[name].detach().double().cpu(), gradient[name].double().cpu()
            sent[name] += m / PAIRS
            raw[name] += g / PAIRS
            products += [float((m * m).sum()), float((m * g).sum()), float((g * g).sum())]
    return _fitted(sent, raw, products)


def _fitted(
    sent: Mapping[str, Tensor], raw: Mapping[str, Tensor], products: np.ndarray
) -> Message | None:
    """From mean messages, mean gradients and the sums of their products over the batches."""
    means = [_dot(sent, sent), _dot(sent, raw), _dot(raw, raw)]
    varied, together, gradients = products - PAIRS * np.array(means)
    if not (gradients > 0 and together > 0):
        return None
    scale = together / gradients
    signal = scale * together
    constant = {name: sent[name] - scale * raw[name] for name in sent}
    explained = varied - signal <= MISFIT * signal
    if not (explained and _dot(constant, constant) > RELEVANT * scale**2 * products[2] / PAIRS):
        return None
    return constant


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return float(sum((left[name] * right[name]).sum() for name in left))


def without(message: Mapping[str, Tensor], offset: Message | None) -> Mapping[str, Tensor]:
    """The message with the constant taken away; the message itself where there is none."""
    if offset is None or message.keys() != offset.keys():
        return message
    return {n: (t.double() - offset[n].to(t.device)).float() for n, t in message.items()}
