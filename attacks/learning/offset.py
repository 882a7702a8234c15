"""A constant that a defence adds to every message: noise from a public or repeated seed.

It hides nothing from a regression, but it covers every sign: readers of signs and of class
summaries would see the noise alone. An attacker who has the model knows what a message would have
been, so it can measure the constant and take it away, also where messages were clipped first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradguard.attacks.forward import attacker_copy
from gradguard.attacks.simulation import Message
from gradguard.attacks.templates.channel import draw_batches
from gradguard.attacks.templates.class_gradients import raw_gradient
from gradguard.attacks.threat import Knowledge

PAIRS = 6
MISFIT = 0.05  # of the scaled gradients' energy, that scales and a constant may leave unexplained
RELEVANT = 0.1  # of that energy, below which a constant hides little
REPEATED = 0.6  # of the coordinates, if a sparse message shows the constant where nothing is sent


def constant_offset(knowledge: Knowledge) -> Message | None:
    """The constant ``c`` if messages are ``s * gradient + c``; ``None`` if they are not.

    Needs the model, auxiliary data and the client; ``None`` without them. Every message has its
    own scale ``s``, as clipping gives it. A tensor that is the same in all messages is taken away
    whole. Where most coordinates of a tensor repeat the same value, which is not zero, and the
    others do not, the client dropped coordinates first, and that value is the constant. Signs and
    fresh noise fit none of this, and then nothing is taken away.
    """
    if knowledge.model is None or knowledge.auxiliary is None or knowledge.client is None:
        return None
    attacker = attacker_copy(knowledge.model)
    sent: list[dict[str, Tensor]] = []
    raw: list[dict[str, Tensor]] = []
    for inputs, labels, _ in draw_batches(knowledge, PAIRS):
        message = knowledge.client(inputs, labels)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # a model's own randomness, such as dropout
            gradient = raw_gradient(attacker, inputs, labels)
        if message.keys() != gradient.keys():
            return None
        # As they come: in double precision twelve of a large model's would not fit into memory.
        sent.append({name: t.detach().cpu() for name, t in message.items()})
        raw.append({name: t.cpu() for name, t in gradient.items()})
    return _fitted(sent, raw) or _repeated(sent)


def _repeated(sent: Sequence[Mapping[str, Tensor]]) -> Message | None:
    """The value that most coordinates have in all messages, where it is not zero."""
    medians = {name: torch.stack([m[name] for m in sent]).median(0).values for name in sent[0]}
    same = sum(int((m[name] == medians[name]).sum()) for m in sent for name in medians)
    total = len(sent) * sum(median.numel() for median in medians.values())
    if same < REPEATED * total or not any(bool(median.any()) for median in medians.values()):
        return None
    # A value must repeat nearly everywhere it is shown: the coordinates that are always sent vary.
    hidden = {
        name: torch.stack([m[name] == medians[name] for m in sent]).double().mean(0) > 0.5
        for name in medians
    }
    constant = {n: torch.where(hidden[n], medians[n].double(), 0.0) for n in medians}
    return constant if any(bool(value.any()) for value in constant.values()) else None


def _fitted(
    sent: Sequence[Mapping[str, Tensor]], raw: Sequence[Mapping[str, Tensor]]
) -> Message | None:
    """Scales and constant by least squares, if they explain the messages."""
    moving = [n for n in sent[0] if any(not torch.equal(m[n], sent[0][n]) for m in sent[1:])]
    if not moving:
        return None
    # With the constant solved for, the scales are the solution of a small linear system.
    pairs = len(sent)
    products = torch.zeros(pairs, pairs, dtype=torch.double)
    target = torch.zeros(pairs, 1, dtype=torch.double)
    for name in moving:
        messages, gradients = _rows(sent, name), _rows(raw, name)
        products += gradients @ gradients.T
        target += ((messages - messages.mean(0)) * gradients).sum(1, keepdim=True)
    projector = torch.eye(pairs, dtype=torch.double) - 1 / pairs
    scales = torch.linalg.lstsq(projector * products, target).solution
    found = {name: value.double() for name, value in sent[0].items()}
    energies = torch.zeros(3, dtype=torch.double)  # of scaled gradients, of the rest, constant
    for name in moving:
        scaled = scales * _rows(raw, name)
        rest = _rows(sent, name) - scaled
        constant = rest.mean(0)
        parts = [scaled, rest - constant, constant]
        energies += torch.stack([(part**2).sum() for part in parts])
        found[name] = constant.reshape(sent[0][name].shape)
    explained, misfit, constants = energies.tolist()
    hides = constants > RELEVANT * explained / pairs
    fits = bool((scales > 0).all()) and misfit <= MISFIT * explained
    return found if fits and hides else None


def _rows(of: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """One tensor of all messages, flat and in double precision, ``(messages, numbers)``."""
    return torch.stack([each[name].flatten() for each in of]).double()


def without(message: Mapping[str, Tensor], offset: Message | None) -> Mapping[str, Tensor]:
    """The message with the constant taken away; the message itself where there is none."""
    if offset is None or message.keys() != offset.keys():
        return message
    return {n: (t.double() - offset[n].to(t.device)).float() for n, t in message.items()}
