"""What every template attack on one client shares: coordinates, class gradients, a rehearsal."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from gradguard.attacks.coordinates import Coordinates, choose_coordinates
from gradguard.attacks.fingerprint import fingerprint
from gradguard.attacks.forward import labels_array
from gradguard.attacks.head import Head, find_head
from gradguard.attacks.rounding import Ints
from gradguard.attacks.templates.channel import Rehearsal, draw_batches, rehearse_pairs
from gradguard.attacks.templates.class_gradients import ClassGradients, Remembered
from gradguard.attacks.threat import Knowledge, NotApplicableError

COORDINATES = 2**16  # of the head's weight and of all other layers, each
PILOTS = 4

_remembered = Remembered(entries=6)


@dataclass(frozen=True, eq=False)
class Groundwork:
    """What the four restrictions share: nothing here depends on which coordinates are asked for."""

    coordinates: Coordinates
    tensors: Ints  # the number of each coordinate's tensor in coordinates.chosen
    gradients: ClassGradients
    rehearsal: Rehearsal
    class_prior: tuple[float, ...]  # of the classes in gradients


_prepared: weakref.WeakKeyDictionary[Knowledge, dict[str | None, tuple[bytes, Groundwork]]] = (
    weakref.WeakKeyDictionary()
)


def groundwork(knowledge: Knowledge, head: str | None) -> Groundwork:
    """Computed once for a ``Knowledge`` whose model has not changed since."""
    assert knowledge.model is not None  # for the type checker; fit has checked
    stamp = fingerprint(knowledge.model)
    known = _prepared.setdefault(knowledge, {})
    if head not in known or known[head][0] != stamp:
        known[head] = stamp, _prepare(knowledge, head)
    return known[head][1]


def _prepare(knowledge: Knowledge, head: str | None) -> Groundwork:
    assert knowledge.model is not None  # for the type checker; fit has checked
    assert knowledge.auxiliary is not None
    assert knowledge.num_classes is not None
    batches = draw_batches(knowledge, rehearsed(knowledge))
    coordinates = _choose(knowledge, head, batches[:PILOTS])
    gradients = _remembered(
        knowledge.model,
        knowledge.auxiliary,
        num_classes=knowledge.num_classes,
        coordinates=coordinates,
    )
    shapes = dict(knowledge.model.named_parameters())
    sizes = [
        shapes[name].numel() if index is None else len(index)
        for name, index in coordinates.chosen.items()
    ]
    tensors = np.repeat(np.arange(len(sizes)), sizes)
    rehearsal = rehearse_pairs(knowledge, batches, coordinates)
    coordinates = replace(coordinates, unit=rehearsal.unit)
    labels = labels_array(knowledge.auxiliary[1], knowledge.num_classes)
    share = np.bincount(labels)[gradients.classes] / len(labels)
    return Groundwork(coordinates, tensors, gradients, rehearsal, tuple(share.tolist()))


def rehearsed(knowledge: Knowledge) -> int:
    """How many batches choose between decoders: more where a batch holds few labels."""
    assert knowledge.batch_size is not None  # for the type checker; fit has checked
    return min(256, max(64, 512 // knowledge.batch_size))


def _choose(
    knowledge: Knowledge, head: str | None, batches: Sequence[tuple[Tensor, Tensor, Ints]]
) -> Coordinates:
    """At most ``COORDINATES`` of the head's weight and of the rest, in model order."""
    assert knowledge.client is not None  # for the type checker; fit has checked
    assert knowledge.num_classes is not None
    named = _trainable(knowledge)
    found = find_head(named, knowledge.num_classes, head)
    rest = [n for n in named if n not in (found.weight, found.bias)]
    pilots: list[dict[str, Tensor]] = [named]
    groups = [[found.weight], rest]
    if any(sum(named[n].numel() for n in group) > COORDINATES for group in groups):
        pilots = [knowledge.client(inputs, labels) for inputs, labels, _ in batches]
    rng = np.random.default_rng([knowledge.seed % 2**64, 0x3C6EF372])
    chosen: dict[str, Tensor | None] = {} if found.bias is None else {found.bias: None}
    for group in groups:
        chosen.update(choose_coordinates(pilots, group, COORDINATES, rng).chosen if group else {})
    return Coordinates({name: chosen[name] for name in named})


def _trainable(knowledge: Knowledge) -> dict[str, Tensor]:
    assert knowledge.model is not None  # for the type checker; fit has checked
    return {n: p.detach() for n, p in knowledge.model.named_parameters() if p.requires_grad}


def names_of(knowledge: Knowledge, head: str | None, part: str) -> list[str]:
    """The parameters that belong to a part of the model."""
    assert knowledge.num_classes is not None  # for the type checker; fit has checked
    named = _trainable(knowledge)
    found = find_head(named, knowledge.num_classes, head)
    if part == "bias" and found.bias is None:
        raise NotApplicableError(f"the output layer {found.layer!r} has no bias to read")
    names = [name for name in named if _belongs(name, found, part)]
    if not names:
        raise NotApplicableError("the model has no trainable layer besides the output layer")
    return names


def _belongs(name: str, head: Head, part: str) -> bool:
    in_head = name in (head.weight, head.bias)
    return {"bias": name == head.bias, "head": in_head, "body": not in_head, "all": True}[part]


def restricted(ground: Groundwork, names: Sequence[str]) -> Groundwork:
    """The groundwork on some tensors only."""
    wanted = np.array([name in names for name in ground.coordinates.chosen])
    kept = wanted[ground.tensors]
    gradients = replace(
        ground.gradients,
        mean=ground.gradients.mean[:, kept],
        variance=ground.gradients.variance[kept],
    )
    rehearsal = replace(
        ground.rehearsal, raw=ground.rehearsal.raw[:, kept], sent=ground.rehearsal.sent[:, kept]
    )
    chosen = {n: index for n, index in ground.coordinates.chosen.items() if n in names}
    return Groundwork(
        replace(ground.coordinates, chosen=chosen),
        ground.tensors[kept],
        gradients,
        rehearsal,
        ground.class_prior,
    )
